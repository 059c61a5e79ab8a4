"""train.py and eval.py by their own `main`, on images made here."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from ccnet_hf.data.transforms import RandomHorizontalFlip
from ccnet_hf.evaluation.eval import main as evaluate
from ccnet_hf.evaluation.tasks import TASKS
from ccnet_hf.recipes import RECIPES, TrainingRecipe, get_recipe
from ccnet_hf.training import building, publishing
from ccnet_hf.training import train as train_module
from ccnet_hf.training.card import write_card
from ccnet_hf.training.distributed import precision_hint
from ccnet_hf.training.train import main as train
from ccnet_hf.training.training_arguments import ARGUMENTS, ModelArguments, given_options, run_training


pytest.importorskip("timm", reason="the demo's backbone comes from timm")
VARIANT = "ccnet-mobilenetv2-camvid"


def train_arguments(dataset: str, output_dir, *more: str) -> list[str]:
    return (
        f"--variant {VARIANT} --dataset_name {dataset} --output_dir {output_dir} --batch_size 2 --max_train_steps 2 "
        "--eval_steps 2 --crop_size 64 64 --scale 96 72 --dataloader_num_workers 0 --report_to none"
    ).split() + list(more)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_trains_logs_and_scores(coloured_folder, tmp_path, capsys):
    output_dir = tmp_path / "model"
    more = ["--class_weight_power", "0.25", "--ema_decay", "0.9", "--checkpointing_steps", "1"]
    more += ["--report_to", "tensorboard", "--logging_steps", "1", "--freeze", "model.backbone._backbone.conv_stem"]
    assert train(train_arguments(coloured_folder, output_dir, *more)) == 0
    printed = capsys.readouterr().out
    assert "step 2: eval_mean_iou" in printed and f"{output_dir} holds the last model" in printed
    assert list(output_dir.rglob("events.out.tfevents*"))
    assert (output_dir / "checkpoint-1" / "model.safetensors").is_file()
    assert Image.open(output_dir / "training_curves.png").width > 1000
    assert Image.open(output_dir / "predictions.png").width > 1000
    scores = json.loads((output_dir / "checkpoint-best" / "scores.json").read_text())
    assert scores["step"] == 2 and 0 <= scores["eval_mean_iou"] <= 1
    card = ModelCard.load(output_dir / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(100 * scores["eval_mean_iou"], abs=5e-3)
    assert result.dataset_split == "validation" and str(tmp_path) not in card.content
    shown = yaml.safe_load(of_card(card.text))
    assert shown["ema_decay"] == 0.9 and shown["crop_size"] == [64, 64] and shown["dataset_name"] == "coloured"
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
    assert evaluate([*arguments, "--name_prefix", "image1", "--output_json", str(output_json)]) == 0
    assert json.loads(output_json.read_text())["num_examples"] == 1

    resumed = train_arguments(coloured_folder, tmp_path / "stage2", "--model_name_or_path", str(output_dir))
    assert train([*resumed, "--learning_rate", "1e-12", "--output_stride", "8"]) == 0
    assert json.loads((tmp_path / "stage2" / "config.json").read_text())["backbone_config"]["output_stride"] == 8
    weights = [load_file(folder / "model.safetensors") for folder in (output_dir, tmp_path / "stage2")]
    assert weights[0]["classifier.weight"].allclose(weights[1]["classifier.weight"])


def test_a_model_brings_its_image_processor_and_gets_other_classes(coloured_folder, tmp_path):
    from ccnet_hf import CCNetImageProcessor

    first, second = tmp_path / "first", tmp_path / "second"
    more = ["--eval_steps", "0", "--max_train_steps", "1"]
    changes = ["--num_labels", "4", "--do_reduce_labels", "true"]
    assert train(train_arguments(coloured_folder, first, *more, *changes)) == 0
    image_processor = CCNetImageProcessor.from_pretrained(first)
    assert image_processor.do_reduce_labels and image_processor.palette is None
    assert json.loads((first / "config.json").read_text())["id2label"]["3"] == "LABEL_3"
    image_processor.image_mean = [0.1, 0.2, 0.3]
    image_processor.save_pretrained(first)

    more += ["--model_name_or_path", str(first), "--num_labels", "7"]
    assert train(train_arguments(coloured_folder, second, *more)) == 0
    image_processor = CCNetImageProcessor.from_pretrained(second)
    assert tuple(image_processor.image_mean) == (0.1, 0.2, 0.3)
    assert not image_processor.do_reduce_labels  # that was for the other classes
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert [len(tensors["classifier.weight"]) for tensors in weights] == [4, 7]
    # One step of learning apart: the attention came from the first model.
    name = "model.head.attention.value.weight"
    assert weights[0][name].allclose(weights[1][name], atol=5e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset_name", "no/such/folder/here"], "no/such/folder/here"),
        (["--recurrence", "-1"], "recurrence must be"),
        (["--output_stride", "12"], "--output_stride is 8, 16 or 32, got 12"),
        (["--model_name_or_path", "nowhere"], "no such model folder: nowhere"),
        (["--label_column_name", "name_length"], "has no column 'name_length'"),
        (["--label_column_name", ""], "--label_column_name '' leaves nothing to learn from"),
        (["--report_to", "paper"], "--report_to takes none or some of aim, "),
        (["--report_to", "comet_ml"], "--report_to comet_ml: it is not installed"),
        (["--freeze", "stem"], "no module 'stem' to freeze"),
        (["--train_split", "everything"], "no split 'everything'"),
        (["--per_device_train_batch_size", "3"], "a batch of 2 does not come in passes of 3"),
        (["--resume_from_checkpoint", "last"], "holds no checkpoint"),
        (["--backbone_checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["--push_to_hub", "--hub_model_id", "my model"], "--hub_model_id: "),
    ],
)
def test_bad_input_is_one_line(coloured_folder, tmp_path, capfd, arguments, message):
    assert train(train_arguments(coloured_folder, tmp_path / "model", *arguments)) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--variant", "ccnet-r7-nowhere"], "unknown variant 'ccnet-r7-nowhere'"),
        (["--learning_rate", "0"], "learning_rate must be a positive number, got 0.0"),
        (["--ratio_range", "1"], "argument --ratio_range/--ratio-range: expected 2 arguments"),
        (["--ratio_range", "2", "1"], "ratio_range must be two positive numbers, low and high, got (2.0, 1.0)"),
        (["--crop_size", "64", "64", "64"], "unrecognized arguments: 64"),
        (["--checkpointing_steps", "-1"], "checkpointing_steps must be at least 0, got -1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be at least 1, got 0"),
        (["--model_name_or_path", "m", "--backbone_checkpoint", "b"], "--model_name_or_path brings its own backbone"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(tmp_path, capfd, arguments, message):
    try:
        status = train(train_arguments("unread", tmp_path / "model", *arguments))
    except SystemExit as error:
        status = error.code
    told = capfd.readouterr().err
    assert status == 2 and told.startswith("error: ") and message in told and told.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_only_a_whole_ccnet_is_trained_on(coloured_folder, tmp_path, capfd):
    from tiny_training import tiny_model

    foreign, damaged = tmp_path / "foreign", tmp_path / "damaged"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "segformer"}')
    tiny_model().save_pretrained(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    messages = {foreign: "its model type is 'segformer', not 'ccnet'", damaged: "model.safetensors cannot be read: "}
    for folder, message in messages.items():
        arguments = train_arguments(coloured_folder, tmp_path / "model", "--model_name_or_path", str(folder))
        assert train(arguments) == 1
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last


def without_numbers(folder) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] = torch.full_like(tensors["classifier.bias"], torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "config.json cannot be read: "),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "config.json cannot be read: "),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "model holds no preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "safetensors cannot be read: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "model holds no model.safetensors"),
        (without_numbers, "model cannot be read: classifier.bias has values that are not finite"),
    ],
)
def test_a_damaged_model_to_train_on_is_one_line(coloured_folder, tmp_path, capfd, damage, message):
    from tiny_training import tiny_model

    from ccnet_hf import CCNetImageProcessor

    folder = tmp_path / "model"
    tiny_model(num_labels=11).save_pretrained(folder)
    CCNetImageProcessor().save_pretrained(folder)
    damage(folder)
    assert train(train_arguments(coloured_folder, tmp_path / "new", "--model_name_or_path", str(folder))) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "fast", "'FAST' is not a valid DynamoBackend"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not installed"),
    ],
)
def test_what_accelerate_is_told_is_checked(coloured_folder, tmp_path, capfd, monkeypatch, name, value, message):
    monkeypatch.setattr("accelerate.accelerator.is_deepspeed_available", lambda: False)
    monkeypatch.setenv(name, value)
    assert train(train_arguments(coloured_folder, tmp_path / "model")) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: Accelerate: ") and message in last


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


def test_streams_skip_and_name_corrupt_examples_and_the_model_is_uploaded(
    coloured_folder, tmp_path, capsys, monkeypatch
):
    import datasets

    created, published = [], []

    class FakeHub:
        def create_repo(self, repo_id, **options):
            created.append(options)
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def repo_info(self, repo_id):
            return type("Info", (), {"private": True})

    monkeypatch.setattr(publishing, "HfApi", FakeHub)
    monkeypatch.setattr(publishing, "publish", lambda hub, repository, **options: published.append(repository))
    file = f"{coloured_folder}/train-00000-of-00001.parquet"
    split = datasets.Dataset.from_parquet(file)
    for column in ("image", "label"):
        split = split.cast_column(column, datasets.Image(decode=False))
    rows = [{"bytes": b"none", "path": None} if i == 1 else row for i, row in enumerate(split["image"])]
    split.remove_columns("image").add_column("image", rows, feature=datasets.Image()).to_parquet(file)

    output_dir = tmp_path / "model"
    more = ["--streaming", "--skip_corrupt", "--push_to_hub", "--hub_private_repo", "--deterministic"]
    try:
        assert train(train_arguments(coloured_folder, output_dir, *more, "--eval_steps", "0")) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    printed = capsys.readouterr().out
    assert (
        "1 corrupt examples were replaced in training:" in printed
        and "image1: cannot be read (it is not an image in " in printed
    )
    assert "uploaded: https://huggingface.co/me/model" in printed
    assert created == [{"private": True, "exist_ok": True}]
    (repository,) = published
    assert (repository.repo_id, repository.repo_type) == ("me/model", "model")
    assert {"model.safetensors", "modeling_ccnet.py", "training_curves.png"} <= repository.files.keys()
    assert not {name for name in repository.files if "/" in name} | {"predictions.png"} & repository.files.keys()
    assert json.loads(repository.files["config.json"])["auto_map"]["AutoConfig"] == "configuration_ccnet.CCNetConfig"
    assert "AutoImageProcessor" in json.loads(repository.files["config.json"])["auto_map"]
    assert repository.card.data.library_name == "transformers" and repository.card.data.eval_results is None
    assert 'model="me/model"' in repository.card.text
    assert "skip_corrupt: true" in repository.card.text
    assert not re.search("push_to_hub|hub_model_id|hub_private_repo|output_dir:", repository.card.text)
    # A finished training goes on with its upload.
    more = ["--streaming", "--skip_corrupt", "--push_to_hub", "--eval_steps", "0", "--resume_from_checkpoint", "last"]
    assert train(train_arguments(coloured_folder, output_dir, *more)) == 0
    assert published[1].files.keys() == repository.files.keys()
    assert train(train_arguments(coloured_folder, tmp_path / "strict", "--streaming", "--eval_steps", "0")) == 1


def parsed(argv: list[str]) -> dict:
    """The options that a command line makes, by name."""
    seen = []
    assert run_training(lambda *parts: seen.append(parts), argv) == 0
    assert tuple(type(part) for part in seen[0]) == ARGUMENTS
    return {name: value for part in seen[0] for name, value in vars(part).items()}


def test_config_file(tmp_path):
    file = tmp_path / "config.yaml"
    content = {"variant": VARIANT, "dataset_name": "d", "output_dir": "o", "crop_size": [4, 8], "streaming": True}
    content |= {"compile": False, "learning_rate": 1e-3, "do_reduce_labels": False, "photometric_distortion": False}
    content |= {"freeze": [], "max_grad_norm": 0, "seed": None, "optimizer": "sgd"}
    file.write_text(yaml.safe_dump(content))
    argv = ["--config", str(file), "--optimizer", "adamw", "--crop_size", "2", "2"]
    options = parsed(argv)
    assert options["variant"] == VARIANT and options["streaming"] and not options["compile"]
    assert options["learning_rate"] == 1e-3 and options["do_reduce_labels"] is False
    assert options["photometric_distortion"] is False and options["pad_before_normalization"] is False
    assert (options["optimizer"], options["crop_size"], options["max_grad_norm"]) == ("adamw", (2, 2), 0)
    assert options["seed"] == 0
    assert not parsed(["--config", str(file), "--no-streaming"])["streaming"]
    assert parsed([*argv, "--photometric_distortion"])["photometric_distortion"] is True
    with pytest.raises(SystemExit):  # not read as --config, which would have been too late for the file
        run_training(print, ["--conf", str(file), "--variant", VARIANT, *NEEDED])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"learning_rat: 1", "there is no field 'learning_rat'"),
        (b"config: other.yaml", "there is no field 'config'"),
        (b"1: 2", "there is no field 1"),
        (b"- 1", "does not map fields to values"),
        (b"", "does not map fields to values"),
        (b"a: [", "cannot be read: "),
        (b"[1]: 2", "cannot be read: "),
        (b"seed: 1\nseed: 2", "cannot be read: seed is given twice"),
        (b"\x89PNG\r\n\x1a\n\0", "cannot be read: "),
        ("optimizer: sgd".encode("utf-16"), "cannot be read: "),
        (b"[" * 20_000, "cannot be read: it is nested too deeply"),
        (b"# " + b"x" * 2**20, "cannot be read: it has more than 1,048,576 bytes"),
        (b"!!python/object/apply:os.abort []", "cannot be read: "),
        (b"streaming: 3", "streaming is true or false, got 3"),
        (b"streaming: 'false'", "streaming is true or false, got 'false'"),
        (b"photometric_distortion: 1", "photometric_distortion is true or false, got 1"),
        (b"optimizer: lion", "optimizer is sgd or adamw, got 'lion'"),
        (b"optimizer: [sgd]", "optimizer is sgd or adamw, got ['sgd']"),
        (b"seed: true", "seed is an integer, got True"),
        (b"seed: 1.5", "seed is an integer, got 1.5"),
        (b"seed: [1]", "seed is an integer, got [1]"),
        (b"seed: 2020-01-01", "seed is an integer, got datetime.date(2020, 1, 1)"),
        (b"learning_rate: fast", "learning_rate is a number, got 'fast'"),
        (b"learning_rate: {a: 1}", "learning_rate is a number, got {'a': 1}"),
        (b"crop_size: [1, two]", "crop_size is a list of 2, each an integer, got [1, 'two']"),
        (b"crop_size: []", "crop_size is a list of 2, each an integer, got []"),
        (b"seed: []", "seed is an integer, got []"),
        (b"decay_steps: [1, two]", "decay_steps is a list, each an integer, got [1, 'two']"),
        (b"frozen_modules: [--help]", "frozen_modules is a list, each a text, got ['--help']"),
        (b"crop_size: 4", "crop_size is a list of 2, each an integer, got 4"),
        (b"ratio_range: [1]", "ratio_range is a list of 2, each a number, got [1]"),
        (b"crop_size: [[1, 2], 3]", "crop_size is a list of 2, each an integer, got [[1, 2], 3]"),
        (b"freeze: [--help]", "freeze is a list, each a text, got ['--help']"),
        (b"freeze: [null]", "freeze is a list, each a text, got [None]"),
        (b"hub_model_id: [me/model]", "hub_model_id is a text, got ['me/model']"),
        (b'hub_model_id: "a\\0b"', "hub_model_id is a text, got 'a\\x00b'"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\nseed: [*b, *b]", "there is no field 'a'"),
    ],
)
def test_bad_config_files_are_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    argv = ["--variant", "v", "--dataset_name", "d", "--output_dir", "o", f"--config={file}"]
    try:
        status = train(argv)
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr().err
    assert status == 2 and printed.startswith(f"error: {file}") and message in printed and printed.count("\n") == 1


def test_values_of_a_config_file_reach_the_command_as_they_are(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        f"variant: {VARIANT}\nmodel_name_or_path: -m\ndataset_name: d\noutput_dir: 2017\nlearning_rate: 1e-3\n"
        "ratio_range: [1, 1.5]\nseed: 0x10\nfreeze: [a, b]\nmin_learning_rate: 0\n",
        encoding="utf-8-sig",
    )
    options = parsed(["--config", str(file)])
    assert (options["model_name_or_path"], str(options["output_dir"]), options["freeze"]) == ("-m", "2017", ["a", "b"])
    assert (options["learning_rate"], options["min_learning_rate"], options["seed"]) == (1e-3, 0, 16)
    assert options["ratio_range"] == (1, 1.5)


def of_card(text: str) -> str:
    """The file that a card shows."""
    return text.partition("```yaml\n")[2].partition("```")[0]


@pytest.mark.parametrize("variant", RECIPES)
def test_the_file_on_a_card_makes_the_same_settings(variant, tmp_path):
    file, recipe, seen = tmp_path / "training.yaml", RECIPES[variant], []
    argv = ["--config", str(file), "--output_dir", "o"]
    values = {name: list(value) if type(value) is tuple else value for name, value in vars(recipe.training).items()}
    start = {"model_name_or_path": "m", "dataset_name": "d", "freeze": ["a"], "seed": 3, "do_reduce_labels": False}
    file.write_text(yaml.safe_dump(start | values))
    assert run_training(lambda *parts: seen.append(parts), argv) == 0
    assert seen[0][ARGUMENTS.index(TrainingRecipe)] == recipe.training
    write_card(tmp_path, "me/m", recipe.config(), given_options(seen[0], None), "validation", {}, 1, "no")
    file.write_text(of_card((tmp_path / "README.md").read_text()))
    assert run_training(lambda *parts: seen.append(parts), argv) == 0
    assert seen[1] == seen[0]


@pytest.mark.parametrize("values", [(), ("a",), ("a", "b", "c")])
def test_a_recipes_lists_of_any_length_are_replaced(values, tmp_path):
    file, recipe = tmp_path / "training.yaml", get_recipe("ccnet-r50-coco")
    assert recipe.training.frozen_modules and recipe.training.decay_steps
    steps = tuple(range(1, len(values) + 1))
    content = {"variant": recipe.name, "dataset_name": "d", "output_dir": "o", "group_by_shape": False}
    file.write_text(yaml.safe_dump(content | {"frozen_modules": list(values), "decay_steps": list(steps)}))
    seen = []
    assert run_training(lambda *parts: seen.append(parts), ["--config", str(file)]) == 0
    training = seen[0][ARGUMENTS.index(TrainingRecipe)]
    assert (training.frozen_modules, training.decay_steps) == (values, steps)
    given = given_options(seen[0], recipe)
    assert (given["frozen_modules"], given["decay_steps"]) == (list(values), list(steps))
    assert parsed(["--config", str(file), "--frozen_modules", "x"])["frozen_modules"] == ("x",)


NEEDED = ["--dataset_name", "d", "--output_dir", "o"]


@pytest.mark.parametrize("variant", [VARIANT, "ccnet-r101-cityscapes", "ccnet-r50-voc12aug"])
def test_the_values_of_a_recipe_are_the_defaults(variant):
    recipe = get_recipe(variant)
    options = parsed(["--variant", variant, *NEEDED])
    assert TrainingRecipe(**{name: options[name] for name in vars(recipe.training)}) == recipe.training
    config = recipe.config()
    assert all(options[name] == getattr(config, name, None) for name in ModelArguments.CHANGES)
    assert options["output_stride"] == getattr(config.backbone_config, "output_stride", None)
    assert options["backbone_checkpoint"] == recipe.backbone_checkpoint
    changed = parsed(["--variant", variant, *NEEDED, "--max_grad_norm", "0", "--no-photometric_distortion"])
    assert changed["max_grad_norm"] == 0 and changed["photometric_distortion"] is False
    # A model that is trained on keeps what it has, and brings its own backbone.
    options = parsed(["--variant", variant, *NEEDED, "--model_name_or_path", "m"])
    assert options["batch_size"] == recipe.training.batch_size
    assert {options[name] for name in (*ModelArguments.CHANGES, "output_stride", "backbone_checkpoint")} == {None}


def test_a_model_is_trained_on_without_a_recipe(coloured_folder, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    more = ["--eval_steps", "0", "--max_train_steps", "1", "--backbone_checkpoint", "none"]
    assert train(train_arguments(coloured_folder, first, *more)) == 0
    arguments = ["--model_name_or_path", str(first), "--dataset_name", coloured_folder, "--output_dir", str(second)]
    with pytest.raises(SystemExit):
        train(arguments)
    needed = "error: the following arguments are required: --crop_size, --scale, --batch_size, --max_train_steps, "
    assert capsys.readouterr().err.splitlines()[-1].replace("/", ", --").count(needed.partition(":")[0]) == 1
    arguments += "--crop_size 64 64 --scale 96 72 --batch_size 2 --max_train_steps 1 --eval_steps 0".split()
    assert train([*arguments, "--dataloader_num_workers", "0", "--report_to", "none"]) == 0
    card = (second / "README.md").read_text()
    assert "trained with `ccnet_hf`." in card and "crop_size: [64, 64]" in card and "optimizer" not in card
    assert train(["--dataset_name", "d", "--output_dir", "o"]) == 2
    assert "--variant names the recipe to train by, or --model_name_or_path" in capsys.readouterr().err


def test_help_has_groups_and_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as exit_:
        train(["--variant", "ccnet-r101-cityscapes", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    for group in ("model: --variant", "dataset: --dataset_name", "recipe: --crop_size H W", "run: --output_dir"):
        assert group in told
    for default in ("769 769", "timm/resnet101c.gluon_in1k", "0.5 2.0", "0.01", "80000"):
        assert f"(default: {default})" in told
    assert "(default: None)" not in told and "default: recipe" not in told
    with pytest.raises(SystemExit) as exit_:
        train(["--help"])
    assert exit_.value.code == 0 and "recipe: --crop_size H W" in " ".join(capsys.readouterr().out.split())


def test_every_option_has_a_help_and_one_place():
    from dataclasses import fields

    options = [field for part in ARGUMENTS for field in fields(part)]
    assert len({field.name for field in options}) == len(options)
    assert [field.name for field in options if len(field.metadata["help"]) < 6] == []


def test_without_tensorboard_there_is_a_hint(coloured_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "get_available_trackers", lambda: ["tensorboard"])
    assert train_module._trackers(None) == ["tensorboard"]
    monkeypatch.setattr(train_module, "get_available_trackers", lambda: [])
    assert train_module._trackers(None) == []
    arguments = train_arguments(coloured_folder, tmp_path / "model", "--max_train_steps", "1", "--eval_steps", "0")
    start = arguments.index("--report_to")
    assert train(arguments[:start] + arguments[start + 2 :]) == 0
    assert "TensorBoard is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("has_instructions", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bfloat16_is_suggested_where_the_processor_has_it_and_it_is_off(monkeypatch, has_instructions, precision):
    monkeypatch.setattr("ccnet_hf.deployment.machine._has_instructions", lambda *names: has_instructions)
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    hint = precision_hint(accelerator)
    if has_instructions and precision == "no":
        assert "accelerate launch --mixed_precision bf16" in hint and "\n" not in hint
    else:
        assert hint is None
    assert precision_hint(SimpleNamespace(device=torch.device("meta"), mixed_precision="no")) is None


def test_the_command_says_the_suggestion_once(coloured_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ccnet_hf.deployment.machine._has_instructions", lambda *names: True)
    arguments = train_arguments(coloured_folder, tmp_path / "model", "--max_train_steps", "1", "--eval_steps", "0")
    assert train(arguments) == 0
    assert capsys.readouterr().err.count("--mixed_precision bf16") == 1


def test_classes_of_the_datasets_own(coloured_folder):
    """They are neither reduced, coloured nor mirrored as those of the recipe's benchmark, even if equally many."""

    def built(variant: str, *more: str):
        arguments = train_arguments(coloured_folder, "unused", "--variant", variant, "--backbone_checkpoint", "none")
        seen = []
        assert run_training(lambda *parts: seen.append(parts), [*arguments, *more]) == 0
        arguments, data, training, *_ = seen[0]
        recipe = get_recipe(variant)
        task = TASKS[recipe.task]
        model = building.build_model(arguments, recipe, task, is_resumed=False)
        image_processor = building.build_image_processor(arguments, data, recipe, training)
        dataset, _ = building.build_datasets(data, training, 0, task, model.config, image_processor)
        (flip,) = (step for step in dataset.transform.transforms if isinstance(step, RandomHorizontalFlip))
        return model.config, image_processor, dataset, flip

    config, image_processor, _, flip = built("ccnet-r101-lip")
    assert config.id2label[14] == "Left-arm" and flip.label_pairs == ((14, 15), (16, 17), (18, 19))
    config, image_processor, _, flip = built("ccnet-r101-lip", "--num_labels", "20")
    assert config.id2label[14] == "LABEL_14" and flip.label_pairs == () and image_processor.palette is None
    assert built("ccnet-r50-ade20k")[2].reduce_labels
    config, image_processor, dataset, _ = built("ccnet-r50-ade20k", "--num_labels", "5")
    assert not dataset.reduce_labels and not image_processor.do_reduce_labels
    assert built("ccnet-r50-ade20k", "--num_labels", "5", "--do_reduce_labels", "true")[2].reduce_labels


def write_masks(folder, masks) -> str:
    import datasets
    import numpy as np

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {"image": [np.zeros((*mask.shape, 3), np.uint8) for mask in masks], "label": list(masks)}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_a_dataset_with_a_train_split_only_says_what_to_do(tmp_path, capfd):
    import numpy as np

    folder = write_masks(tmp_path / "data", [np.zeros((8, 8), np.uint8)])
    assert train(train_arguments(folder, tmp_path / "model")) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "has no split 'validation'; it has train" in error
    assert "--validation_split names another, --eval_steps 0 trains without evaluation" in error
    assert train(train_arguments(folder, tmp_path / "model", "--train_split", "training")) == 1
    assert "--train_split names another" in capfd.readouterr().err.strip().splitlines()[-1]


MASKS_LINE = "is labelled 1 (LABEL_1); 19.0 % are 255, which is ignored (of masks of 0 and 255, 255 has to become 1)"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ([], f"no pixel of 5 label maps {MASKS_LINE}"),
        (["--streaming"], f"no pixel of 5 label maps {MASKS_LINE}"),
        (["--class_weight_power", "0.5"], f"no pixel {MASKS_LINE}"),
    ],
    ids=["sampled", "streamed", "counted"],
)
def test_masks_of_0_and_255_are_noticed_before_the_first_step(tmp_path, capfd, monkeypatch, more, line):
    import numpy as np

    masks = np.zeros((5, 10, 10), np.uint8)
    masks[:, :2, :9], masks[:, 2, 0] = 255, 255
    folder = write_masks(tmp_path / "data", masks)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module.TrainingLoop, "run", stop)
    more = [*more, "--num_labels", "2", "--eval_steps", "0"]
    assert train(train_arguments(folder, tmp_path / "model", *more)) == 130
    assert capfd.readouterr().err.count(f"{line}\n") == 1
    folder = write_masks(tmp_path / "whole", [masks[0] // 255, masks[1]])
    assert train(train_arguments(folder, tmp_path / "model", *more)) == 130
    assert "is labelled" not in capfd.readouterr().err


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_label_maps_turned_with_their_images_are_told_of_once(tmp_path, capfd, num_workers):
    import datasets
    import numpy as np
    from tiny_training import coloured_split
    from turned import encode_turned, turn

    folder = tmp_path / "data"
    folder.mkdir()
    split = coloured_split(4)
    images = [{"bytes": encode_turned(np.asarray(image), 6), "path": None} for image in split["image"]]
    rows = {"image": images, "label": [turn(np.asarray(label), 6) for label in split["label"]]}
    turned = datasets.Dataset.from_dict(rows | {"name": split["name"][:]}, features=split.features)
    for name in ("train", "validation"):
        turned.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    more = ["--max_train_steps", "4", "--dataloader_num_workers", num_workers]
    assert train(train_arguments(str(folder), tmp_path / "model", *more)) == 0
    printed = capfd.readouterr()
    note = "label maps that fit only the stored pixels of an image are turned with it as its EXIF orientation says: "
    assert printed.err.count(note) == 1
    assert printed.out.count(f"in evaluation, {note}image0, image1, image2 and 1 more\n") == 1


def test_images_above_the_limit_name_the_option_that_allows_them(coloured_folder, tmp_path, capfd):
    more = ["--max_train_steps", "1", "--eval_steps", "0", "--max_image_pixels"]
    assert train(train_arguments(coloured_folder, tmp_path / "model", *more, "1727")) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "image0 (label): cannot be read (Image size (1728 pixels) exceeds limit of 1727" in error
    assert "--max_image_pixels allows larger images, 0 any" in error
    assert train(train_arguments(coloured_folder, tmp_path / "model", *more, "1728")) == 0
