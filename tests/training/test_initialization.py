"""Starting points: pretrained tensors under other names, frozen modules, and dilated depthwise convolutions."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ccnet_hf.training.depthwise import speed_up_dilated_depthwise
from ccnet_hf.training.initialization import freeze, load_backbone_checkpoint


def network() -> nn.Module:
    """Twelve layers, so that text order of their numbers differs from natural order."""
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(12)))


def randomized(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: torch.rand_like(value.float()) for key, value in module.state_dict().items()}


def stored(tensors: dict[str, torch.Tensor], file) -> str:
    save_file({key: value for key, value in tensors.items() if "num_batches" not in key}, file)
    return str(file)


def assert_filled(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, tensors[key])


def test_loads_by_name(tmp_path):
    module = nn.ModuleDict({"_backbone": network()})
    tensors = randomized(module)
    bare = {key.removeprefix("_backbone."): value for key, value in tensors.items()} | {"fc.weight": torch.rand(2)}
    load_backbone_checkpoint(module, stored(bare, tmp_path / "file.safetensors"))
    assert_filled(module, tensors)


def test_loads_by_place_and_leaves_the_classifier_out(tmp_path):
    module = network()
    tensors = randomized(module)
    renamed = {f"features.{key}": value.half() if value.dim() > 1 else value for key, value in tensors.items()}
    renamed |= {"classifier.1.weight": torch.rand(3, 4), "classifier.1.bias": torch.rand(3)}
    load_backbone_checkpoint(module, stored(renamed, tmp_path / "file.safetensors"))
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, renamed[f"features.{key}"].float())


def test_names_the_first_layer_that_does_not_fit(tmp_path):
    module = network()
    tensors = {f"features.{key}": value for key, value in randomized(module).items()}
    tensors["features.9.0.weight"] = torch.rand(4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"9\.0\.weight \(4, 4, 1, 1\) \(layer 19 of 24\)"):
        load_backbone_checkpoint(module, stored(tensors, tmp_path / "file.safetensors"))
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_backbone_checkpoint(module, tmp_path / "text")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_backbone_checkpoint(module, tmp_path / "missing.safetensors")


def test_freeze(tmp_path):
    module = network()
    frozen = freeze(module, ["0", "3.1"])
    assert frozen == [module[0], module[3][1]]
    learning = {name.rpartition(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert {"0.0", "0.1", "3.1"}.isdisjoint(learning) and "3.0" in learning
    with pytest.raises(ValueError, match="no module 'stem'"):
        freeze(module, ["stem"])


@pytest.mark.parametrize("size", [(12, 16), (11, 9), (1, 7), (3, 2)])
@pytest.mark.parametrize("kernel, dilation", [(3, 2), (3, 4), (5, 3)])
def test_depthwise_on_subgrids_is_exact(size, kernel, dilation):
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6).double()
    fast = nn.Sequential(copy.deepcopy(convolution))
    speed_up_dilated_depthwise(fast)
    assert type(fast[0]) is not nn.Conv2d
    results = []
    for module in (convolution, fast):
        hidden_state = torch.randn(2, 6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        hidden_state = hidden_state.to(memory_format=torch.channels_last).requires_grad_()
        output = module(hidden_state)
        output.square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([output, hidden_state.grad, *gradients])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_other_convolutions_are_left_alone():
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, padding_mode="reflect"),
    )
    speed_up_dilated_depthwise(others)
    assert all(type(module) is nn.Conv2d for module in others)
