"""The trained checkpoints and a real ResNet in every form: logits, labels, scores on CamVid, and what int8 costs."""

import json
from pathlib import Path

import pytest
import torch

import ccnet_hf
from ccnet_hf.cli import main
from ccnet_hf.inference.loading import load_checkpoint


pytestmark = pytest.mark.nightly

_CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SMALL = str(_CHECKPOINTS / "ccnet-mobilenetv2-camvid")
LARGE = str(_CHECKPOINTS / "ccnet-efficientnet-camvid")


@pytest.fixture(scope="module")
def camvid(shared_dir) -> str:
    return str(shared_dir / "camvid")


@pytest.fixture(scope="module")
def calibration(camvid, tmp_path_factory) -> Path:
    """Forty pictures of the training split."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("pictures")
    split = datasets.load_dataset(camvid, split="train")
    for index in range(0, len(split), len(split) // 40):
        split[index]["image"].convert("RGB").save(folder / f"{index}.png")
    return folder


def score(model: str, camvid: str, file: Path, *options: str) -> float:
    words = ["eval", "--model_name_or_path", model, "--dataset_name", camvid, "--split", "test", "--device", "cpu"]
    assert main([*words, "--output_json", str(file), *options]) == 0
    return json.loads(file.read_text())["mean_iou"]


@pytest.mark.parametrize(
    ("checkpoint", "program_format", "number", "frames"),
    [(SMALL, "onnx", "64", ""), (SMALL, "openvino", "64", ""), (LARGE, "openvino", "10", "0001TP")],
)
def test_int8_scores_as_float32(checkpoint, program_format, number, frames, camvid, calibration, tmp_path):
    exported, chosen = str(tmp_path / "exported"), ["--name_prefix", frames] if frames else []
    words = ["export", checkpoint, "--format", program_format, "--int8", "--calibration", str(calibration)]
    assert main([*words, "--calibration_images", number, "--output", exported]) == 0
    expected = score(checkpoint, camvid, tmp_path / "float32.json", *chosen)
    assert score(exported, camvid, tmp_path / "int8.json", *chosen) > expected - 0.003


@pytest.mark.parametrize("checkpoint", [SMALL, LARGE], ids=["small", "large"])
def test_float32_forms_give_the_same_labels(checkpoint, camvid):
    datasets = pytest.importorskip("datasets")
    model, processor = load_checkpoint(checkpoint, "float32", "cpu")
    split = datasets.load_dataset(camvid, split="test").select(range(0, 230, 23))
    images = [processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in split["image"]]
    for backend in ("eager", "onnx", "openvino"):
        assert ccnet_hf.optimize(model, backend).check(images) <= 1e-4


def test_bfloat16_loses_at_most_half_of_what_the_model_in_bfloat16_loses(camvid, tmp_path):
    expected = score(SMALL, camvid, tmp_path / "float32.json")
    plain = score(SMALL, camvid, tmp_path / "plain.json", "--dtype", "bfloat16")
    folded = score(SMALL, camvid, tmp_path / "folded.json", "--dtype", "bfloat16", "--runtime", "eager")
    assert expected - folded <= 0.5 * max(expected - plain, 0.002)


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino"])
def test_a_real_resnet(backend):
    from ccnet_hf.recipes import get_recipe

    torch.manual_seed(0)
    model = ccnet_hf.CCNetForSemanticSegmentation(get_recipe("ccnet-r50-cityscapes").config())
    torch.nn.init.constant_(model.model.head.attention.gamma, 0.7)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 160, 160))  # running statistics that fit the weights
    model.eval()
    runtime = ccnet_hf.optimize(model, backend)
    for shape in ((1, 3, 512, 512), (2, 3, 257, 321)):
        pixel_values = torch.randn(shape)
        with torch.no_grad():
            expected = model(pixel_values).logits
        assert (runtime.logits(pixel_values) - expected).abs().max() <= 1e-3 * expected.abs().max()
