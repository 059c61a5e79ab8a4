"""The trained checkpoints and a real ResNet in every form: logits, labels, and what bfloat16 costs."""

import pytest
import torch
from camvid_scores import LARGE, SMALL, score

import ccnet_hf
from ccnet_hf.deployment.machine import has_bfloat16
from ccnet_hf.inference.loading import load_checkpoint


pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def camvid(shared_dir) -> str:
    return str(shared_dir / "camvid")


@pytest.mark.parametrize("checkpoint", [SMALL, LARGE], ids=["small", "large"])
def test_float32_forms_give_the_same_labels(checkpoint, camvid):
    datasets = pytest.importorskip("datasets")
    model, processor = load_checkpoint(checkpoint, "float32", "cpu")
    split = datasets.load_dataset(camvid, split="test").select(range(0, 230, 23))
    images = [processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in split["image"]]
    for backend in ("eager", "onnx", "openvino"):
        assert ccnet_hf.optimize(model, backend).check(images) <= 1e-4


def test_bfloat16_loses_at_most_half_of_what_the_model_in_bfloat16_loses(camvid, tmp_path):
    def scored(*options: str) -> float:
        return score(SMALL, camvid, tmp_path, "--name_prefix", "0001TP", *options)

    expected = scored()
    bound = 0.5 * max(expected - scored("--dtype", "bfloat16"), 0.002)
    for runtime in ("eager", "openvino"):
        if runtime == "openvino" and not has_bfloat16(torch.device("cpu")):
            continue  # it computes in bfloat16 nowhere else
        assert expected - scored("--dtype", "bfloat16", "--runtime", runtime) <= bound


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
