"""The ResNet-V1c backbone against timm's, and its options."""

import pytest
import torch
from tiny_models import tiny_backbone_config
from transformers import AutoBackbone

from ccnet_hf import CCNetResNetBackbone, CCNetResNetConfig


ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize(("name", "depths"), [("resnet50c", [3, 4, 6, 3]), ("resnet101c", [3, 4, 23, 3])])
def test_equals_timm_bit_for_bit(name, depths):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        name, pretrained=False, output_stride=8, features_only=True, out_indices=(1, 2, 3, 4)
    ).eval()
    ours = CCNetResNetBackbone(CCNetResNetConfig(depths=depths, out_features=ALL_STAGES)).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(0.2, 0.6, generator=generator)
    # Both list their layers in the order of computation, but each its shortcuts at another place.
    state = {}
    for is_shortcut in (False, True):
        our_keys = [key for key in ours.state_dict() if ("shortcut" in key) == is_shortcut]
        their_keys = [key for key in theirs.state_dict() if ("downsample" in key) == is_shortcut]
        state.update(zip(our_keys, (theirs.state_dict()[key] for key in their_keys), strict=True))
    ours.load_state_dict(state)

    pixel_values = torch.randn(1, 3, 65, 97, generator=generator)
    with torch.inference_mode():
        expected, feature_maps = theirs(pixel_values), ours(pixel_values).feature_maps
    assert [tuple(feature_map.shape[-2:]) for feature_map in feature_maps] == [(17, 25), (9, 13), (9, 13), (9, 13)]
    for ours_map, their_map in zip(feature_maps, expected, strict=True):
        assert torch.isfinite(ours_map).all() and ours_map.std() > 0
        assert torch.equal(ours_map, their_map)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride(output_stride):
    backbone = CCNetResNetBackbone(tiny_backbone_config(output_stride=output_stride))
    feature_map = backbone(torch.randn(1, 3, 64, 128)).feature_maps[-1]
    assert feature_map.shape == (1, 64, 64 // output_stride, 128 // output_stride)


@pytest.mark.parametrize(("contract", "expected"), [(True, [1, 2, 2, 4]), (False, [2, 2, 4, 4])])
def test_contract_dilation(contract, expected):
    config = tiny_backbone_config(depths=[1, 1, 2, 2], contract_dilation=contract)
    stages = CCNetResNetBackbone(config).stages
    dilations = [block.conv2.convolution.dilation[0] for stage in stages[2:] for block in stage.blocks]
    assert dilations == expected


def test_ceil_mode_and_stem_size_of_the_authors():
    backbone = CCNetResNetBackbone(tiny_backbone_config(stem_size=128, pool_ceil_mode=True, out_features=["stem"]))
    # 64 pixels: 32 after the first convolution; pooling gives 16, or 17 when it rounds up.
    assert backbone(torch.randn(1, 3, 64, 64)).feature_maps[0].shape == (1, 128, 17, 17)


def test_gradient_checkpointing_gives_equal_gradients():
    torch.manual_seed(0)
    backbone = CCNetResNetBackbone(tiny_backbone_config()).train()
    pixel_values = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        if enable:
            backbone.gradient_checkpointing_enable()
        backbone.zero_grad()
        backbone(pixel_values).feature_maps[-1].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in backbone.parameters() if parameter.grad is not None])
    assert backbone.is_gradient_checkpointing
    assert all(map(torch.equal, *gradients))


def test_round_trip(tmp_path):
    backbone = CCNetResNetBackbone(tiny_backbone_config()).eval()
    backbone.save_pretrained(tmp_path)
    loaded = CCNetResNetBackbone.from_pretrained(tmp_path).eval()
    assert type(AutoBackbone.from_config(loaded.config)) is CCNetResNetBackbone
    assert loaded.channels == [64, 64]
    pixel_values = torch.randn(1, 3, 33, 47)
    outputs = loaded(pixel_values, output_hidden_states=True)
    assert torch.equal(outputs.feature_maps[-1], backbone(pixel_values).feature_maps[-1])
    assert len(outputs.hidden_states) == 5 and torch.equal(outputs.hidden_states[-1], outputs.feature_maps[-1])
