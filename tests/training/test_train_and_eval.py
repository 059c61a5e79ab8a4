"""train.py and eval.py by their own `main`, on pictures made here."""

import json

import pytest
from safetensors.torch import load_file

from ccnet_hf.evaluation.evaluate import main as evaluate
from ccnet_hf.training.train import main as train


pytest.importorskip("timm", reason="the demo's backbone comes from timm")
VARIANT = "ccnet-mobilenetv2-camvid"


def train_arguments(dataset: str, output_dir, *more: str) -> list[str]:
    return (
        f"--variant {VARIANT} --dataset_name {dataset} --output_dir {output_dir} --batch_size 2 --max_train_steps 2 "
        "--eval_steps 2 --crop_size 64 64 --scale 96 72 --dataloader_num_workers 0"
    ).split() + list(more)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_trains_logs_and_scores(coloured_folder, tmp_path, capsys):
    output_dir = tmp_path / "model"
    more = ["--class_weight_power", "0.25", "--ema_decay", "0.9", "--checkpointing_steps", "1"]
    more += ["--report_to", "tensorboard", "--freeze", "model.backbone._backbone.conv_stem"]
    assert train(train_arguments(coloured_folder, output_dir, *more)) == 0
    assert "step 2: eval_mean_iou" in capsys.readouterr().out
    assert list(output_dir.rglob("events.out.tfevents*"))
    assert (output_dir / "checkpoint-1" / "model.safetensors").is_file()
    config = json.loads((output_dir / "config.json").read_text())
    assert config["id2label"]["3"] == "Road"
    assert json.loads((output_dir / "preprocessor_config.json").read_text())["size"] == {
        "shortest_edge": 72,
        "longest_edge": 96,
    }

    output_json = tmp_path / "scores.json"
    arguments = ["--model_name_or_path", str(output_dir), "--dataset_name", coloured_folder, "--batch_size", "2"]
    assert evaluate([*arguments, "--output_json", str(output_json), "--flip"]) == 0
    scores = json.loads(output_json.read_text())
    assert scores["num_examples"] == 3 and 0 <= scores["mean_iou"] <= 1
    assert "Road" in capsys.readouterr().out
    assert evaluate([*arguments, "--name_prefix", "picture1", "--output_json", str(output_json)]) == 0
    assert json.loads(output_json.read_text())["num_examples"] == 1

    resumed = train_arguments(coloured_folder, tmp_path / "stage2", "--model_name_or_path", str(output_dir))
    assert train([*resumed, "--learning_rate", "1e-12", "--output_stride", "8"]) == 0
    assert json.loads((tmp_path / "stage2" / "config.json").read_text())["backbone_config"]["output_stride"] == 8
    weights = [load_file(folder / "model.safetensors") for folder in (output_dir, tmp_path / "stage2")]
    assert weights[0]["classifier.weight"].allclose(weights[1]["classifier.weight"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--variant", "ccnet-r7-nowhere"], "unknown variant 'ccnet-r7-nowhere'"),
        (["--dataset_name", "no/such/folder/here"], "no/such/folder/here"),
        (["--optimizer", "lion"], "--optimizer is sgd or adamw, got 'lion'"),
        (["--learning_rate", "0"], "--learning_rate must be positive, got 0.0"),
        (["--ratio_range", "1"], "--ratio_range takes two values, got 1"),
        (["--freeze", "stem"], "no module 'stem' to freeze"),
        (["--train_split", "everything"], "no split 'everything'"),
        (["--per_device_train_batch_size", "3"], "a batch of 2 does not come in passes of 3"),
        (["--resume_from_checkpoint", "last"], "holds no checkpoint"),
        (["--backbone_checkpoint", "missing.safetensors"], "missing.safetensors is not a readable safetensors file"),
    ],
)
def test_bad_input_is_one_line(coloured_folder, tmp_path, capfd, arguments, message):
    assert train(train_arguments(coloured_folder, tmp_path / "model", *arguments)) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_label_outside_the_classes_stops_the_training(tmp_path, capfd):
    import datasets
    import numpy as np

    rows = {"image": [np.zeros((8, 8, 3), np.uint8)], "label": [np.full((8, 8), 11, np.uint8)], "name": ["bad.png"]}
    features = {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    folder = tmp_path / "data"
    folder.mkdir()
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    split.to_parquet(folder / "train-00000-of-00001.parquet")
    assert train(train_arguments(str(folder), tmp_path / "model", "--eval_steps", "0")) == 1
    assert "bad.png: label id 11 is outside 0..10 and is not 255" in capfd.readouterr().err
