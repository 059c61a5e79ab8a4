"""Video models trained and scored by the commands, from images' checkpoints, too."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_training import coloured_split, tiny_model
from transformers import AutoModelForSemanticSegmentation, AutoVideoProcessor

from ccnet_hf import CCNetForVideoSegmentation, CCNetImageProcessor, CCNetVideoProcessor
from ccnet_hf.evaluation.eval import main as evaluate
from ccnet_hf.recipes import RECIPES, get_recipe
from ccnet_hf.training.train import main as train


NAME = "ccnet-r101-camvid-video"


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The paper's recipe with a narrow network and small clips."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    recipe = get_recipe(NAME)
    backbone = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
    model = recipe.model | {"hidden_size": 16, "auxiliary_channels": 8}
    model["backbone_config"] = recipe.model["backbone_config"] | backbone
    training = replace(recipe.training, crop_size=(32, 32), scale=(48, 36), batch_size=2, max_train_steps=2)
    training = replace(training, eval_steps=2)
    monkeypatch.setitem(RECIPES, NAME, replace(recipe, model=model, training=training, backbone_checkpoint=None))


@pytest.fixture
def video_folder(tmp_path) -> str:
    folder = tmp_path / "frames"
    folder.mkdir()
    for split, size in (("train", 6), ("validation", 4)):
        names = [f"drive_{30 * number:06d}" for number in range(size)]
        rows = coloured_split(size).remove_columns("name").add_column("name", names)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def arguments(dataset: str, output_dir, *more: str) -> list[str]:
    return (
        f"--variant {NAME} --dataset_name {dataset} --output_dir {output_dir} --dataloader_num_workers 0 "
        "--report_to none --logging_steps 1 --num_frames 3"
    ).split() + list(more)


def test_trains_scores_and_reloads(video_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    assert train(arguments(video_folder, folder)) == 0
    assert "step 2: eval_mean_iou" in capsys.readouterr().out
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert isinstance(model, CCNetForVideoSegmentation) and model.config.recurrence == 3
    assert model.config.num_frames == 3
    assert isinstance(AutoVideoProcessor.from_pretrained(folder), CCNetVideoProcessor)
    assert not (folder / "preprocessor_config.json").exists() and (folder / "predictions.png").is_file()
    card = ModelCard.load(folder / "README.md")
    assert "video-segmentation" in card.data.tags and "AutoVideoProcessor" in card.text
    scored = ["--model_name_or_path", str(folder), "--dataset_name", video_folder]
    found = {}
    for frames in ("1", "3"):
        assert evaluate([*scored, "--num_frames", frames, "--output_json", str(tmp_path / "scores.json")]) == 0
        found[frames] = json.loads((tmp_path / "scores.json").read_text())
        assert found[frames]["num_examples"] == 4 and found[frames]["num_frames"] == int(frames)
    best = json.loads((folder / "checkpoint-best" / "scores.json").read_text())
    assert found["3"]["mean_iou"] == pytest.approx(best["eval_mean_iou"])


def test_begins_with_an_image_model_and_its_recurrence(video_folder, tmp_path):
    image = tiny_model(recurrence=2, num_labels=11)
    image.save_pretrained(tmp_path / "image")
    CCNetImageProcessor(image_mean=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "image")
    more = ("--model_name_or_path", str(tmp_path / "image"), "--learning_rate", "1e-12")
    for folder, recurrence, changes in (("kept", 2, ()), ("given", 3, ("--recurrence", "3"))):
        assert train(arguments(video_folder, tmp_path / folder, *more, *changes)) == 0
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["model_type"] == "ccnet_video" and config["recurrence"] == recurrence
        processor = CCNetVideoProcessor.from_pretrained(tmp_path / folder)
        assert list(processor.image_mean) == [0.4, 0.5, 0.6] and processor.size["longest_edge"] == 48
        weights = load_file(tmp_path / folder / "model.safetensors")
        for key, tensor in image.state_dict().items():
            if tensor.is_floating_point() and "running" not in key:
                assert weights[key].allclose(tensor, atol=1e-6)


def test_a_stream_has_no_clips(video_folder, tmp_path, capfd):
    assert train(arguments(video_folder, tmp_path / "model", "--streaming")) == 1
    assert "clips need the frames before a frame" in capfd.readouterr().err.strip().splitlines()[-1]
