"""The ResNet-V1c backbone against timm's, as torchvision's ResNet, its options, and attention among its blocks."""

import pytest
import torch
import torchvision
from tiny_models import tiny_backbone_config, wake_attention
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from transformers import AutoBackbone

from ccnet_hf import CCNetResNetBackbone, CCNetResNetConfig


ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def enliven(network: nn.Module, generator: torch.Generator) -> None:
    """Give a network weights and statistics under which its feature maps neither vanish nor grow without bound."""
    for tensor in network.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(0.2, 0.6, generator=generator)


def load_in_order_of_layers(ours: nn.Module, theirs: nn.Module) -> None:
    """Both list their layers in the order of computation, but each its shortcuts at another place."""
    state = {}
    for is_shortcut in (False, True):
        our_keys = [key for key in ours.state_dict() if ("shortcut" in key) == is_shortcut]
        their_keys = [key for key in theirs.state_dict() if ("downsample" in key) == is_shortcut]
        state.update(zip(our_keys, (theirs.state_dict()[key] for key in their_keys), strict=True))
    ours.load_state_dict(state)


@pytest.mark.parametrize(("name", "depths"), [("resnet50c", [3, 4, 6, 3]), ("resnet101c", [3, 4, 23, 3])])
def test_equals_timm_bit_for_bit(name, depths):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        name, pretrained=False, output_stride=8, features_only=True, out_indices=(1, 2, 3, 4)
    ).eval()
    ours = CCNetResNetBackbone(CCNetResNetConfig(depths=depths, out_features=ALL_STAGES)).eval()
    generator = torch.Generator().manual_seed(0)
    enliven(theirs, generator)
    load_in_order_of_layers(ours, theirs)

    pixel_values = torch.randn(1, 3, 65, 97, generator=generator)
    with torch.inference_mode():
        expected, feature_maps = theirs(pixel_values), ours(pixel_values).feature_maps
    assert [tuple(feature_map.shape[-2:]) for feature_map in feature_maps] == [(17, 25), (9, 13), (9, 13), (9, 13)]
    for ours_map, their_map in zip(feature_maps, expected, strict=True):
        assert torch.isfinite(ours_map).all() and ours_map.std() > 0
        assert torch.equal(ours_map, their_map)


@pytest.mark.parametrize(("name", "depths"), [("resnet50", [3, 4, 6, 3]), ("resnet101", [3, 4, 23, 3])])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_torchvision_bit_for_bit(name, depths, frozen):
    norm_layer = torchvision.ops.FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    layers = {f"layer{index}": f"stage{index}" for index in range(1, 5)}
    network = torchvision.models.get_model(name, weights=None, norm_layer=norm_layer)
    theirs = IntermediateLayerGetter(network, layers).eval()
    ours = CCNetResNetBackbone(
        CCNetResNetConfig(
            depths=depths, stem_type="conv7", output_stride=32, frozen_batch_norm=frozen, out_features=ALL_STAGES
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    enliven(theirs, generator)
    load_in_order_of_layers(ours, theirs)
    pixel_values = torch.randn(1, 3, 65, 97, generator=generator)
    with torch.inference_mode():
        for our_map, their_map in zip(ours(pixel_values).feature_maps, theirs(pixel_values).values(), strict=True):
            assert torch.isfinite(our_map).all() and our_map.std() > 0
            assert torch.equal(our_map, their_map)


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


# --- batch norm ----------------------------------------------------------------------------------------------------


def test_frozen_batch_norms_stay_in_training():
    backbone = CCNetResNetBackbone(tiny_backbone_config(frozen_batch_norm=True))
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    pixel_values = torch.randn(2, 3, 32, 32)
    in_training = backbone.train()(pixel_values).feature_maps[-1]
    in_training.square().mean().backward()
    assert torch.equal(in_training, backbone.eval()(pixel_values).feature_maps[-1])
    assert before.keys() and all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    assert not any("normalization" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norms_are_frozen_and_thawed_by_loading(tmp_path, caplog, frozen):
    torch.manual_seed(0)
    saved = CCNetResNetBackbone(tiny_backbone_config(frozen_batch_norm=frozen)).eval()
    enliven(saved, torch.Generator().manual_seed(0))
    saved.save_pretrained(tmp_path)
    loaded = CCNetResNetBackbone.from_pretrained(tmp_path, frozen_batch_norm=not frozen)
    assert caplog.text == ""
    pixel_values = torch.randn(2, 3, 32, 32)
    expected = saved(pixel_values).feature_maps[-1]
    torch.testing.assert_close(loaded(pixel_values).feature_maps[-1], expected)


def test_batch_norm_eps():
    for frozen in (False, True):
        config = tiny_backbone_config(frozen_batch_norm=frozen, batch_norm_eps=0.5)
        layer = CCNetResNetBackbone(config).eval().stem.convolutions[0]
        hidden_state = torch.randn(1, 4, 3, 3)
        torch.testing.assert_close(layer.normalization(hidden_state), hidden_state / 1.5**0.5)


# --- attention among the blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "blocks_before"), [(6, 5), (23, 22)], ids=["R-50", "R-101"])
def test_attention_stands_before_the_last_block_of_the_third_stage(depth, blocks_before):
    with torch.device("meta"):
        fields = {"depths": [3, 4, depth, 3], "stem_type": "conv7", "output_stride": 32}
        plain = CCNetResNetBackbone(CCNetResNetConfig(**fields))
        attended = CCNetResNetBackbone(CCNetResNetConfig(**fields, attention_stage="stage3"))
    assert attended.num_parameters() - plain.num_parameters() == 1_312_001
    calls = []
    stage = attended.stages[2]
    for name, layer in (*enumerate(stage.blocks, start=1), ("attention", stage.attention)):
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    attended(torch.empty(1, 3, 64, 64, device="meta"))
    assert calls == [*range(1, blocks_before + 1), "attention", blocks_before + 1]
    assert stage.attention.recurrence == 2
    assert all(other.attention is None for other in (*attended.stages[:2], attended.stages[3], *plain.stages))


@pytest.mark.parametrize("position", ["before_last_block", "after"])
def test_attention_starts_as_the_identity_and_then_counts(position):
    torch.manual_seed(0)
    fields = {"attention_stage": "stage3", "attention_position": position, "out_features": ALL_STAGES}
    attended = CCNetResNetBackbone(tiny_backbone_config(**fields)).eval()
    plain = CCNetResNetBackbone(tiny_backbone_config(out_features=ALL_STAGES)).eval()
    left_over = plain.load_state_dict(attended.state_dict(), strict=False)
    assert left_over.missing_keys == [] and all("stages.2.attention." in key for key in left_over.unexpected_keys)
    pixel_values = torch.randn(1, 3, 65, 97)
    expected = plain(pixel_values).feature_maps
    assert all(map(torch.equal, attended(pixel_values).feature_maps, expected))

    attention = attended.stages[2].attention
    wake_attention(attention)
    changed = attended(pixel_values).feature_maps
    assert [torch.equal(*pair) for pair in zip(changed, expected, strict=True)] == [True, True, False, False]
    blocks = plain.stages[2].blocks
    hidden_state = blocks[0](expected[1])
    if position == "before_last_block":
        hidden_state = blocks[1](attention(hidden_state)[0])
    else:
        hidden_state = attention(blocks[1](hidden_state))[0]
    assert torch.equal(changed[2], hidden_state)


def test_attention_is_trained_with_and_without_gradient_checkpointing(tmp_path):
    torch.manual_seed(0)
    config = tiny_backbone_config(attention_stage="stage3", attention_recurrence=3, attention_query_key_size=5)
    backbone = CCNetResNetBackbone(config).train()
    attention = backbone.stages[2].attention
    assert attention.query.out_channels == 5 and attention.gamma.item() == 0
    wake_attention(attention)
    backbone.save_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model = CCNetResNetBackbone.from_pretrained(tmp_path).train()
        if enable:
            model.gradient_checkpointing_enable()
        model(pixel_values).feature_maps[-1].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0]["stages.2.attention.gamma"].item() != 0
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem_type": "conv3"}, "stem_type must be 'deep' or 'conv7', got 'conv3'"),
        ({"batch_norm_eps": -1e-5}, "batch_norm_eps must be a finite number, at least 0"),
        ({"batch_norm_eps": float("nan")}, "batch_norm_eps must be a finite number, at least 0"),
        ({"attention_stage": "stem"}, "attention_stage must be one of stage1, stage2, stage3, stage4 or None"),
        ({"attention_stage": "stage1"}, "needs two blocks, and stage1 has 1"),
        ({"attention_position": "before"}, "attention_position must be 'before_last_block' or 'after'"),
        ({"attention_recurrence": 0}, "attention_recurrence must be at least 1, got 0"),
        ({"attention_query_key_size": 0}, "attention_query_key_size must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_backbone_config(**fields)
    config = tiny_backbone_config()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        CCNetResNetBackbone(config)
