"""The examples do what they say."""

import importlib.util
from pathlib import Path

import torch


def load(name: str):
    file = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_unet_3d():
    example = load("unet_3d")
    torch.manual_seed(0)
    model = example.UNet3D(channels=4).double().eval()
    torch.nn.init.constant_(model.attention.gamma, 0.5)
    volumes, labels = example.synthetic_volumes(2, 16, torch.Generator().manual_seed(0))
    assert labels.shape == (2, 16, 16, 16) and set(labels.unique().tolist()) == {0, 1, 2}
    with torch.no_grad():
        logits = model(volumes.double())
        assert logits.shape == (2, 3, 16, 16, 16)
        everywhere = torch.ones(2, 16, 16, 16, dtype=torch.bool)
        torch.testing.assert_close(model(volumes.double(), everywhere), logits)
        some = everywhere.clone()
        some[:, 8:] = False
        assert not torch.allclose(model(volumes.double(), some), logits)
    example.main(steps=2, side=8)
