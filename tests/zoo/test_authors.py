"""The authors' checkpoints: what the converted folder computes against the authors' network in plain formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from authors_network import SMALL_SIZES, AuthorsNetwork, slide
from golden_files import assert_close
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ccnet_hf.inference import predict_logits
from ccnet_hf.inference.logits import window_positions
from ccnet_hf.zoo.convert import main


VARIANT = "ccnet-r101-cityscapes"
MEAN_BGR = np.array([104.00698793, 116.66876762, 122.67891434])


def authors_network(**sizes) -> AuthorsNetwork:
    torch.manual_seed(0)
    return AuthorsNetwork(**sizes).double().eval().requires_grad_(False)


def convert(variant: str, content: dict, tmp_path: Path, *arguments: str) -> Path:
    torch.save(content, tmp_path / "authors.pth")
    output = tmp_path / "folder"
    command = ["--variant", variant, "--checkpoint", str(tmp_path / "authors.pth"), "--output", str(output)]
    assert main([*command, *arguments]) == 0
    (tmp_path / "authors.pth").unlink()
    return output


def outputs(folder: Path, bgr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both heads for the same image, whose channels the converted model expects as RGB."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.dtype == bgr.dtype
    labels = torch.full((len(bgr), *bgr.shape[-2:]), 255)  # all ignored: the auxiliary head runs with a loss only
    with torch.no_grad():
        found = model(bgr.flip(1), labels=labels)
    return found.logits, found.auxiliary_logits


def random_input(batch_size: int, height: int, width: int) -> torch.Tensor:
    return 100 * torch.randn(batch_size, 3, height, width, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.mark.slow
def test_full_size(tmp_path):
    network, bgr = authors_network(), random_input(1, 64, 90)
    expected = network(bgr, 2)
    assert expected[0].shape == (1, 19, 9, 12)  # where mmsegmentation's pooling gives 8 x 12
    folder = convert(VARIANT, network.state_dict(), tmp_path)
    for found, wanted, head in zip(outputs(folder, bgr), expected, ("head", "auxiliary head"), strict=True):
        assert_close(found, wanted, 1e-9, head)


@pytest.mark.parametrize("recurrence", [0, 1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (66, 62)])
def test_recurrence_and_sizes(recurrence, height, width, small_authors_variant, tmp_path):
    network, bgr = authors_network(**SMALL_SIZES), random_input(2, height, width)
    folder = convert(small_authors_variant, network.state_dict(), tmp_path, "--recurrence", str(recurrence))
    found = outputs(folder, bgr)
    for logits, expected in zip(found, network(bgr, recurrence), strict=True):
        assert_close(logits, expected, 1e-9)
    other = network(bgr, recurrence + 1)[0]
    assert (other - found[0]).abs().max() > 1e-3 * other.abs().max()


def spoilt(name: str, network: AuthorsNetwork) -> None:
    """What the network would be if a converter had missed one of its peculiarities."""
    if name == "dilation":
        network.layer3[0].conv2.dilation = network.layer3[0].conv2.padding = (1, 1)
    elif name == "slope":
        network.head.convb[1].slope = 0.0
    elif name == "scale":
        network.bn1.weight.abs_().sub_(1e-5)
    elif name == "bias":
        network.dsn[0].bias.zero_()
    elif name == "channels":
        network.conv1.weight.copy_(network.conv1.weight.flip(1))


@pytest.mark.parametrize(
    ("peculiarity", "head"), [("dilation", 0), ("slope", 0), ("scale", 0), ("bias", 1), ("channels", 0)]
)
def test_every_peculiarity_shows(peculiarity, head, small_authors_variant, tmp_path):
    """The comparison above would notice each of them."""
    network, bgr = authors_network(**SMALL_SIZES), random_input(1, 66, 62)
    folder = convert(small_authors_variant, network.state_dict(), tmp_path)
    spoilt(peculiarity, network)
    expected = network(bgr, 2)[head]
    assert (outputs(folder, bgr)[head] - expected).abs().max() > 1e-7 * expected.abs().max()


@pytest.mark.parametrize("form", ["model", "counters", "parallel"])
def test_other_forms_of_the_file(form, small_authors_variant, tmp_path):
    network, bgr = authors_network(**SMALL_SIZES), random_input(1, 33, 33)
    state_dict = network.state_dict()
    content = {
        "model": {"model": state_dict, "iteration": 60000},
        "counters": state_dict
        | {
            key.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
            for key in state_dict
            if key.endswith("running_mean")
        },
        "parallel": {f"module.{key}": tensor for key, tensor in state_dict.items()},
    }[form]
    folder = convert(small_authors_variant, content, tmp_path)
    assert_close(outputs(folder, bgr)[0], network(bgr, 2)[0], 1e-9)


def test_from_image_to_scores(small_authors_variant, tmp_path):
    """uint8 RGB through the image processor and sliding windows, as the authors test."""
    network = authors_network(**SMALL_SIZES)
    folder = convert(small_authors_variant, network.state_dict(), tmp_path)
    rgb = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    bgr = torch.from_numpy(rgb[..., ::-1] - MEAN_BGR).permute(2, 0, 1)[None]
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        pixel_values = processor(rgb, do_resize=False, return_tensors="pt").pixel_values
        assert_close(pixel_values.flip(1), bgr, 3e-7, backend)
    windows = {"crop_size": (33, 33), "stride": (22, 22)}
    logits = predict_logits(model, bgr.flip(1), mode="slide", **windows)
    assert_close(logits, slide(network, bgr, 2, tile=33), 1e-9)


def test_protocol(small_authors_variant, tmp_path):
    folder = convert(small_authors_variant, authors_network(**SMALL_SIZES).state_dict(), tmp_path)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    config = model.config
    assert (config.align_corners, processor.align_corners, config.loss_reduction) == (True, True, "valid")
    assert config.id2label[0] == "road" and config.semantic_loss_ignore_index == 255
    assert processor.palette[0] == [128, 64, 128] and not processor.do_reduce_labels
    # a Cityscapes image keeps its size and is seen in the authors' eight tiles
    image = np.zeros((1024, 2048, 3), np.uint8)
    height, width = processor(image, return_tensors="pt").pixel_values.shape[-2:]
    assert (height, width) == (1024, 2048)
    windows = window_positions(height, width, config.inference["crop_size"], config.inference["stride"])
    assert [window[:2] for window in windows] == [(row, column) for row in (0, 255) for column in (0, 513, 1026, 1279)]
    assert {(bottom - top, right - left) for top, left, bottom, right in windows} == {(769, 769)}


class TestRefusal:
    def refuse(self, capsys, variant: str, content: dict, tmp_path: Path, *arguments: str) -> str:
        torch.save(content, tmp_path / "authors.pth")
        output = tmp_path / "new" / "folder"
        command = ["--variant", variant, "--checkpoint", str(tmp_path / "authors.pth"), "--output", str(output)]
        assert main([*command, *arguments]) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["authors.pth"]
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"dsn.0.bias": None}, "missing: dsn.0.bias"),
            ({"head.cca.gamma": None}, "missing: head.cca.gamma"),
            ({"bn3.running_var": None}, "missing: bn3.running_var"),
            ({"fc.weight": torch.ones(3)}, "left over: fc.weight"),
            ({"dsn.0.bias": torch.ones(3)}, "dsn.0.bias has shape (3,)"),
            ({"conv1.weight": torch.ones(())}, "conv1.weight has shape ()"),
            ({"layer1.0.bn1.weight": torch.full((4,), torch.nan)}, "layer1.0.bn1.weight holds NaN"),
            ({"head.bottleneck.3.weight": torch.ones(7, 16, 1, 1)}, "has 7 classes"),
            ({"bn1.weight": torch.ones(64, dtype=torch.int64)}, "bn1.weight holds torch.int64"),
        ],
    )
    def test_content(self, change, reason, small_authors_variant, tmp_path, capsys):
        state_dict = authors_network(**SMALL_SIZES).state_dict() | change
        content = {key: tensor for key, tensor in state_dict.items() if tensor is not None}
        assert reason in self.refuse(capsys, small_authors_variant, content, tmp_path)

    def test_other_depth(self, small_authors_variant, tmp_path, capsys):
        content = authors_network(**SMALL_SIZES | {"depths": (1, 2, 3, 1)}).state_dict()
        assert "left over: layer3.2." in self.refuse(capsys, small_authors_variant, content, tmp_path)

    @pytest.mark.parametrize("variant", ["ccnet-r50-cityscapes", "ccnet-r101-ade20k", "ccnet-r101-voc12aug"])
    def test_other_variant(self, variant, tmp_path, capsys):
        content = authors_network(**SMALL_SIZES).state_dict()
        assert "are of ccnet-r101-cityscapes-authors, not of" in self.refuse(capsys, variant, content, tmp_path)

    def test_layout_of_mmsegmentation(self, small_authors_variant, small_checkpoint, tmp_path, capsys):
        message = self.refuse(capsys, small_authors_variant, small_checkpoint, tmp_path)
        assert "is not laid out as the authors' checkpoints" in message

    def test_nothing_to_download(self, small_authors_variant, tmp_path, capsys):
        assert main(["--variant", small_authors_variant, "--output", str(tmp_path / "folder")]) == 1
        assert "give its file with --checkpoint" in capsys.readouterr().err

    def test_recurrence(self, small_authors_variant, tmp_path, capsys):
        content = authors_network(**SMALL_SIZES).state_dict()
        message = self.refuse(capsys, small_authors_variant, content, tmp_path, "--recurrence", "-1")
        assert "recurrence must be at least 0, got -1" in message
