"""`python -m ccnet_hf.zoo verify`."""

import json
from pathlib import Path

import pytest
import torch
from authors_network import SMALL_SIZES, AuthorsNetwork
from golden_files import SMALL_SET
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from ccnet_hf.zoo import convert_checkpoint
from ccnet_hf.zoo.__main__ import main


@pytest.fixture
def small_folder(small_variant, small_checkpoint, tmp_path) -> Path:
    torch.save(small_checkpoint, tmp_path / "source.pth")
    convert_checkpoint(small_variant, tmp_path / "source.pth", tmp_path / small_variant)
    return tmp_path / small_variant


def refuse(capsys, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["verify", *map(str, arguments)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: ")
    return message


def test_golden_numbers(converted_folder, capsys):
    assert main(["verify", str(converted_folder(50)), "--goldens", str(SMALL_SET)]) == 0
    weights, config, logits, auxiliary_logits = capsys.readouterr().out.splitlines()
    assert weights == "weights: 365 tensors, all finite"
    assert config.endswith("ccnet-r50-cityscapes-512x1024-40k says")
    assert logits.startswith("r50_c19_1x3x65x97_forward.npz: logits within")
    assert auxiliary_logits.startswith("r50_c19_1x3x65x97_forward.npz: auxiliary_logits within")


@pytest.mark.parametrize("entry", ["model.head.attention.gamma", "auxiliary_head.classifier.bias"])
def test_other_weights_than_those_of_the_golden_files(entry, converted_folder, tmp_path, capsys):
    model = AutoModelForSemanticSegmentation.from_pretrained(converted_folder(50))
    model.state_dict()[entry].mul_(1.01)
    folder = tmp_path / converted_folder(50).name
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((converted_folder(50) / "preprocessor_config.json").read_bytes())
    message = refuse(capsys, folder, "--goldens", SMALL_SET)
    assert "of the largest magnitude, 2e-05 is allowed" in message
    assert ("auxiliary_logits are off" if "auxiliary" in entry else ": logits are off") in message


def test_a_folder_without_golden_files(small_folder, tmp_path, capsys):
    assert main(["verify", str(small_folder)]) == 0
    assert "r20_c19_*_forward.npz" in refuse(capsys, small_folder, "--goldens", tmp_path)


def test_another_name_needs_the_variant(small_folder, small_variant, capsys):
    other = small_folder.rename(small_folder.with_name("mine"))
    assert "unknown variant 'mine'" in refuse(capsys, other)
    assert main(["verify", str(other), "--variant", small_variant]) == 0


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "align_corners", False),
        ("config.json", "loss_reduction", "valid"),
        ("config.json", "inference", {"mode": "whole"}),
        ("config.json", "recurrence", 1),
        ("preprocessor_config.json", "image_mean", [0.5, 0.5, 0.5]),
        ("preprocessor_config.json", "align_corners", False),
    ],
)
def test_a_field_that_is_not_the_recipes(file, name, value, small_folder, capsys):
    content = json.loads((small_folder / file).read_text()) | {name: value}
    (small_folder / file).write_text(json.dumps(content))
    assert f"has {name}=" in refuse(capsys, small_folder)


def test_weights_that_are_not_finite(small_folder, capsys):
    model = AutoModelForSemanticSegmentation.from_pretrained(small_folder)
    model.classifier.bias.data[3] = torch.nan
    model.save_pretrained(small_folder)
    assert "classifier.bias has values that are not finite" in refuse(capsys, small_folder)


def test_no_folder(tmp_path, capsys):
    assert "no such model folder" in refuse(capsys, tmp_path / "absent")


@pytest.mark.parametrize("recurrence", [1, 2])
def test_the_authors_network(recurrence, small_authors_variant, tmp_path, capsys):
    torch.save(AuthorsNetwork(**SMALL_SIZES).state_dict(), tmp_path / "authors.pth")
    folder = tmp_path / "folder"
    convert_checkpoint(small_authors_variant, tmp_path / "authors.pth", folder, recurrence=recurrence)
    assert main(["verify", str(folder), "--variant", small_authors_variant]) == 0


class TestScore:
    """Against the reported 79.45; the evaluation itself has tests of its own."""

    @pytest.fixture
    def measured(self, monkeypatch) -> dict:
        evaluation = pytest.importorskip("ccnet_hf.evaluation.eval", exc_type=ImportError)
        scores = {}

        def evaluate(arguments):
            assert (arguments.dataset_name, arguments.split) == ("some/dataset", "validation")
            assert arguments.mode is None and arguments.scales == [1.0] and not arguments.flip
            return scores

        monkeypatch.setattr(evaluation, "evaluate", evaluate)
        return scores

    @pytest.mark.parametrize("mean_iou", [0.7936, 0.7945, 0.7954])
    def test_near(self, mean_iou, measured, small_folder, capsys):
        measured["mean_iou"] = mean_iou
        assert main(["verify", str(small_folder), "--dataset_name", "some/dataset"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"mean_iou {100 * mean_iou:.2f}, reported 79.45"

    @pytest.mark.parametrize("mean_iou", [0.7934, 0.7956, float("nan")])
    def test_far(self, mean_iou, measured, small_folder, capsys):
        measured["mean_iou"] = mean_iou
        message = refuse(capsys, small_folder, "--dataset_name", "some/dataset")
        assert f"mean_iou is {100 * mean_iou:.2f}, reported is 79.45" in message


def test_a_real_dataset(small_folder, tmp_path, capsys):
    """The way through the evaluation: random weights score far from what is reported."""
    pytest.importorskip("accelerate")
    datasets = pytest.importorskip("datasets")
    # so flat that the test size of 2049x1025 leaves them small
    images = [Image.new("RGB", (1024, 8), colour) for colour in ("red", "green")]
    labels = [Image.new("L", (1024, 8), label) for label in (3, 7)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    split = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict({"validation": split}).save_to_disk(tmp_path / "dataset")
    capsys.readouterr()
    assert main(["verify", str(small_folder), "--dataset_name", str(tmp_path / "dataset")]) == 1
    captured = capsys.readouterr()
    assert "2 images" in captured.out
    assert captured.err.endswith(", reported is 79.45: more than 0.1 apart\n")
