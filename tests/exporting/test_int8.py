"""Which convolutions int8 leaves in float32: those whose quantization changes the labels, and no others."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from ccnet_hf.deployment.programs import load_program, make_program
from ccnet_hf.deployment.runtimes import rewrite
from ccnet_hf.exporting.calibration import make_quantizer


def wide_ranged(model: nn.Module) -> nn.Module:
    """The same function, but the stem's first map holds one channel in values a thousand times the others'."""
    model = copy.deepcopy(model)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight[0] *= 1000
        norms[0].bias[0] *= 1000
        convolutions[1].weight[:, 0] /= 1000
    return model


def changed_labels(model: nn.Module, program_format: str, keeps_labels: bool) -> float:
    """The fraction of labels at output stride that int8 changes."""
    pictures = [
        {"pixel_values": torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))} for seed in range(4)
    ]

    def network(pixel_values):
        return model(pixel_values=pixel_values).logits

    quantizer = make_quantizer(pictures, network if keeps_labels else None)
    run = load_program(make_program(rewrite(model, torch.float32), program_format, quantizer))
    with torch.no_grad():
        changed = [
            (run(inputs["pixel_values"]).argmax(1) != network(**inputs).argmax(1)).float().mean()
            for inputs in pictures
        ]
    return float(torch.stack(changed).mean())


@pytest.mark.parametrize(
    ("program_format", "package"),
    [("onnx", "onnxruntime"), pytest.param("openvino", "openvino", marks=pytest.mark.nightly)],
)
def test_what_changes_the_labels_stays_in_float32(program_format, package):
    for name in (package, "nncf", "onnxscript"):
        pytest.importorskip(name)
    plain = tiny_model(num_labels=3).eval()
    model = wide_ranged(plain)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, plain(pixel_values).logits, atol=1e-4, rtol=1e-4)
    assert changed_labels(model, program_format, keeps_labels=False) > 0.1
    assert changed_labels(model, program_format, keeps_labels=True) <= 0.02
