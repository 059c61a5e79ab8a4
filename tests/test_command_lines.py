"""Every command with values that its options cannot have: one line and a status, before memory or processes run out.

In the other direction, a mistake of the package's own keeps its traceback in every command.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dataset import write_dataset
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.cli import main
from ccnet_hf.kernels.libraries import why_torch_is_too_old
from ccnet_hf.recipes import RECIPES, TrainingRecipe
from ccnet_hf.training.settings import TrainingSettings


BILLION = str(10**9)
ENDLESS = "1" + "0" * 300


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with a checkpoint, a dataset and an image."""
    folder = tmp_path_factory.mktemp("material")
    tiny_model(num_labels=3).save_pretrained(folder / "model")
    CCNetImageProcessor(size={"shortest_edge": 36, "longest_edge": 48}).save_pretrained(folder / "model")
    write_dataset(folder / "data")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "image.png")
    return folder


@pytest.fixture
def here(material, tmp_path, monkeypatch) -> Path:
    """The working folder: what `material` has, and a checkpoint that is none."""
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    torch.save({"state_dict": {"classifier.weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


MODEL = ["--model_name_or_path", "model"]
DATASET = ["--dataset_name", "data"]
SEGMENT = ["segment", "image.png", *MODEL, "--output_dir", "none", "--device", "cpu"]
EVAL = ["eval", *MODEL, *DATASET, "--device", "cpu"]
TRAIN = [
    *("train", "--variant", "ccnet-mobilenetv2-camvid", *MODEL, *DATASET, "--output_dir", "none"),
    *("--num_labels", "3", "--batch_size", "2", "--max_train_steps", "1", "--crop_size", "32", "32"),
    *("--scale", "48", "36", "--eval_steps", "0", "--dataloader_num_workers", "0", "--report_to", "none"),
]
FAR_MARKS = ["far_marks", "--output_dir", "none"]
RECEPTIVE_FIELD = ["receptive_field", *MODEL, *DATASET]
CONVERT = [
    "convert_checkpoint",
    "--variant",
    "ccnet-r50-cityscapes",
    "--output",
    "none",
    "--checkpoint",
    "weights.pth",
]
PREPARE = ["prepare_dataset", "camvid", "--source", "data", "--output_dir", "none"]
PUSH = ["push_to_hub", "--checkpoints", "model", "--namespace"]

WRONG = [
    (SEGMENT, ["--scales", "1000"], "scale 1000 makes 600 megapixels"),
    (SEGMENT, ["--scales", "1e300"], "scale 1e+300 makes inf megapixels"),
    (SEGMENT, ["--scales", "nan"], "scales must be positive numbers"),
    (SEGMENT, ["--crop_size", "0", "0", "--stride", "0", "0", "--mode", "slide"], "must be two positive numbers"),
    (SEGMENT, ["--device", "meta"], "cannot use device meta"),
    (SEGMENT, ["--model_name_or_path", "a" * 5000], "File name too long"),
    (SEGMENT, ["--model_name_or_path", "me/..x"], "me/..x cannot be read: Repo id must"),
    (EVAL, ["--batch_size", BILLION], "--batch_size must be at most 1,024, got 1000000000"),
    (EVAL, ["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
    (EVAL, ["--scales", "1000"], "scale 1000 makes 1728 megapixels"),
    (EVAL, ["--device", "nothing"], "unknown device 'nothing'"),
    (EVAL, ["--split", "+"], "has no split ''"),
    (TRAIN, ["--num_labels", BILLION], "--num_labels must be at most 255, got 1000000000"),
    (TRAIN, ["--num_labels", "1"], "--num_labels must be at least 2, got 1"),
    (TRAIN, ["--num_labels", "256"], "--num_labels must be at most 255, got 256"),
    (TRAIN, ["--recurrence", BILLION], "recurrence must be at most 100, got 1000000000"),
    (TRAIN, ["--crop_size", BILLION, BILLION], "crop_size must be at most 268,435,456 pixels"),
    (TRAIN, ["--scale", BILLION, BILLION], "scale and ratio_range must make images of at most 268,435,456 pixels"),
    (TRAIN, ["--ratio_range", "1", "1e9"], "scale and ratio_range must make images of at most 268,435,456 pixels"),
    (TRAIN, ["--ratio_range", "0.5", "inf"], "ratio_range must be two positive numbers"),
    (TRAIN, ["--ratio_step", "1e-300"], "ratio_step must be 0 or make at most 1,000,000 steps"),
    (TRAIN, ["--batch_size", BILLION], "batch_size must be at most 65,536"),
    (
        TRAIN,
        ["--batch_size", "32768", "--crop_size", "96", "96"],
        "a pass of 32768 images of 96x96 has 301,989,888 pixels, 268,435,456 are allowed",
    ),
    (TRAIN, ["--warmup_steps", ENDLESS], "warmup_steps must be at most 1,000,000,000"),
    (TRAIN, ["--learning_rate", "1e300"], "learning_rate must be at most 1,000,000,000, got 1e+300"),
    (TRAIN, ["--class_weight_power", "nan"], "--class_weight_power must be at least 0, got nan"),
    (TRAIN, ["--class_weight_power", "1e9"], "--class_weight_power must be at most 10, got 1000000000.0"),
    (TRAIN, ["--dataloader_num_workers", BILLION], "dataloader_num_workers must be at most 256"),
    (TRAIN, ["--shuffle_buffer_size", BILLION], "shuffle_buffer_size must be at most 1,000,000"),
    (TRAIN, ["--seed", "-1"], "seed must be at least 0, got -1"),
    (TRAIN, ["--seed", ENDLESS], "seed must be at most 4,294,967,295"),
    (TRAIN, ["--ohem_threshold", "nan"], "ohem_threshold must be in (0, 1] or None, got nan"),
    (TRAIN, ["--freeze", "model", "classifier", "auxiliary_head"], "leaves nothing that learns"),
    (TRAIN, ["--push_to_hub", "--hub_model_id", "a b"], "--hub_model_id: Repo id must"),
    (FAR_MARKS, ["--recurrences", BILLION], "--recurrences must be at most 100"),
    (FAR_MARKS, ["--recurrences", "-1"], "--recurrences must be at least 0, got -1"),
    (FAR_MARKS, ["--seeds", "-1"], "--seeds must be at least 0, got -1"),
    (FAR_MARKS, ["--max_train_steps", "0"], "--max_train_steps must be at least 1, got 0"),
    (RECEPTIVE_FIELD, ["--num_examples", "0"], "--num_examples must be at least 1, got 0"),
    (RECEPTIVE_FIELD, ["--num_examples", ENDLESS], "--num_examples must be at most 1,000,000,000"),
    (RECEPTIVE_FIELD, ["--seed", ENDLESS], "--seed must be at most 4,294,967,295"),
    (CONVERT, ["--num_labels", BILLION], "num_labels must be at most 65,536, got 1000000000"),
    (CONVERT, ["--num_labels", "256"], "semantic_loss_ignore_index must be no class"),
    (CONVERT, ["--recurrence", BILLION], "recurrence must be at most 100, got 1000000000"),
    (CONVERT, ["--recurrence", "-1"], "recurrence must be at least 0, got -1"),
    (PREPARE, ["--num_proc", BILLION], "num_proc must be at most 256, got 1000000000"),
    (PREPARE, ["--num_proc", "0"], "num_proc must be at least 1, got 0"),
    (PREPARE, ["--hub_dataset_id", "a b"], "Repo id must"),
    (["benchmark", "op"], ["--sizes", f"{BILLION}x{BILLION}"], "--sizes takes heights and widths like 97x97"),
    (["benchmark", "op"], ["--sizes", "9000x9000"], "value would have 41,472,000,000 elements"),
    (["benchmark", "op"], ["--batch_sizes", BILLION], "--batch_sizes must be at most 65,536"),
    (["benchmark", "op"], ["--threads", BILLION], "--threads must be at most 1,024"),
    (["benchmark", "op"], ["--device", "meta"], "cannot measure on meta"),
    (["benchmark", "model"], ["--size", "90000x90000"], "the stem's feature map would have"),
    (["benchmark", "model"], ["--batch_size", BILLION], "--batch_size must be at most 65,536"),
    (["benchmark", "growth"], ["--sizes", "90000x90000"], "the stem's feature map would have"),
    (["benchmark", "growth"], ["--sizes", "3by4"], "--sizes takes heights and widths like 97x97"),
    (["benchmark", "memory"], ["--hidden_size", BILLION], "--hidden_size must be at most 65,536"),
    (["benchmark", "memory"], ["--size", "90000x90000"], "the feature map would have"),
    (["benchmark", "data"], ["--num_workers", BILLION], "--num_workers must be at most 256"),
    (["benchmark", "data"], ["--size", "90000x90000"], "the pixels of --size must be at most 268,435,456"),
    (["benchmark", "data"], ["--size", "1x1"], "the height of --size must be at least 36, got 1"),
    (["kernels", "build"], ["--arch", "9" * 400], why_torch_is_too_old() or "an architecture is written like 8.0"),
    (["kernels", "hub"], ["--output", "none", "--repo_id", "a b/c"], "Repo id must"),
    (["zoo", "verify"], ["model", "--variant", "none"], "unknown variant 'none'"),
    (["zoo", "to_mmsegmentation"], ["data", "--output", "none.pth"], "data holds no config.json"),
]


CHECKED_AT_ONCE = {field.name for kind in (TrainingRecipe, TrainingSettings) for field in dataclasses.fields(kind)}
CHECKED_AT_ONCE = CHECKED_AT_ONCE - {"freeze"} | {"class_weight_power"}


@pytest.mark.parametrize(
    ("command", "options", "message"), WRONG, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_a_wrong_value_is_one_line(here, capfd, command, options, message):
    try:
        status = main([*command, *options])
    except SystemExit as exit_:
        status = exit_.code
    # What a single option of a training allows is known before the command begins.
    at_once = command is TRAIN and options[0].removeprefix("--") in CHECKED_AT_ONCE and "a pass of" not in message
    assert status == (2 if at_once else 1)
    *_, last = capfd.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and message in last
    assert not list(here.glob("none*/[!.]*")) and not (here / "none.pth").exists()


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (PUSH, ["a b", "--all"], "--namespace: Repo id must"),
        (["push_to_hub", "--dataset", "data"], ["--hub_dataset_id", "a b/c"], "--hub_dataset_id: Repo id must"),
        (SEGMENT, ["--dtype", "float7"], "invalid choice: 'float7'"),
        (SEGMENT, ["--scales", "9" * 10_000 + "x"], "invalid float value: '9999"),
        (TRAIN, ["--seed", "9" * 10_000], "invalid int value: '9999"),
        (EVAL, ["--do_reduce_labels", "maybe"], "got maybe"),
        (EVAL, ["more", "\n", "words"], "unrecognized arguments: more words"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(here, capsys, command, options, message):
    with pytest.raises(SystemExit) as exit_:
        main([*command, *options])
    told = capsys.readouterr().err
    assert exit_.value.code == 2 and told.startswith("error: ") and message in told
    assert told.count("\n") == 1 and len(told) < 500


def test_options_in_a_file_beside_the_script_are_not_taken(here, monkeypatch, capsys):
    """`HfArgumentParser` would read them on its own."""
    (here / "script.args").write_text("--scales 0")
    monkeypatch.setattr(sys, "argv", [str(here / "script.py")])
    assert main([*SEGMENT[:-4], "--output_dir", str(here / "out"), "--device", "cpu"]) == 0


def with_value(recipe: TrainingRecipe, name: str, value) -> TrainingRecipe:
    """A recipe with another value, a tuple for a list."""
    return dataclasses.replace(recipe, **{name: tuple(value) if isinstance(value, list) else value})


@pytest.mark.parametrize("value", [True, [True, 3], 2.0, "3", float("inf"), [1, float("inf")], 10**400, [3, 10**400]])
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainingRecipe)])
def test_no_value_of_another_type_gets_into_a_recipe(field, value):
    recipe = RECIPES["ccnet-mobilenetv2-camvid"].training
    allowed = {
        "photometric_distortion": (True,),
        "pad_before_normalization": (True,),
        **dict.fromkeys(("letterbox", "group_by_shape", "decay_norms_and_biases"), (True,)),
        **dict.fromkeys(("ratio_step", "learning_rate", "min_learning_rate", "power", "weight_decay"), (2.0,)),
        **dict.fromkeys(("max_grad_norm", "backbone_learning_rate_factor"), (2.0,)),
    }
    if value in allowed.get(field, ()) and type(value) is type(allowed[field][0]):
        assert getattr(with_value(recipe, field, value), field) == value
    else:
        with pytest.raises(ValueError, match=field):
            with_value(recipe, field, value)


MODEL_CLASS = "ccnet_hf.models.modeling_ccnet.CCNetForSemanticSegmentation"
MISTAKES = [
    (SEGMENT, f"{MODEL_CLASS}.__init__"),
    (SEGMENT, "ccnet_hf.models.configuration_ccnet.CCNetConfig.to_dict"),
    (SEGMENT, "ccnet_hf.inference.loading.check_values"),
    (SEGMENT, "ccnet_hf.models.image_processing_ccnet.CCNetImageProcessor.preprocess"),
    (TRAIN, f"{MODEL_CLASS}.__init__"),
    (SEGMENT, "ccnet_hf.inference.predictor.Predictor.steps"),
    (SEGMENT, "ccnet_hf.inference.segment.find_images"),
    (EVAL, "ccnet_hf.evaluation.metric.confusion_matrix"),
    (TRAIN, "ccnet_hf.training.augmentation.training_transforms"),
    (TRAIN, "ccnet_hf.training.objective.SemanticObjective.forward"),
    (["far_marks", "--output_dir", "far", "--max_train_steps", "1"], "ccnet_hf.experiments.far_marks.build_model"),
    (RECEPTIVE_FIELD, "ccnet_hf.experiments.receptive_field.gradient_by_distance"),
    (CONVERT, "ccnet_hf.zoo.mmsegmentation.is_authors_layout"),
    (["zoo", "export", "model", "--output", "model.pth"], "ccnet_hf.zoo.to_mmsegmentation.mmsegmentation_key"),
    (["zoo", "verify", "model", "--variant", "ccnet-r50-cityscapes"], "ccnet_hf.recipes.Recipe.config"),
    (["zoo", "list"], "ccnet_hf.zoo.listing.describe"),
    (PREPARE, "ccnet_hf.data.preparation.prepare.find_examples"),
    ([*PUSH, "me", "--variant", "ccnet-r50-cityscapes"], "ccnet_hf.zoo.push.model_repositories"),
    (["benchmark", "op", "--sizes", "3x4"], "ccnet_hf.benchmark.op.compare"),
    (["benchmark", "memory", "--size", "3x4"], "ccnet_hf.benchmark.efficiency.measure_block"),
    (["benchmark", "data"], "ccnet_hf.benchmark.throughput.synthetic_split"),
    (["kernels", "info"], "ccnet_hf.kernels.__main__.info"),
]


@pytest.mark.parametrize("mistake", [ValueError("operands"), TypeError("no attribute"), KeyError("key")], ids=repr)
@pytest.mark.parametrize(("command", "target"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mistake_of_the_package_keeps_its_traceback(here, monkeypatch, command, target, mistake):
    def wrong(*arguments, **options):
        raise mistake

    monkeypatch.setattr(target, wrong)
    with pytest.raises(type(mistake)) as caught:
        main(command)
    assert caught.value is mistake
