"""Criss-cross attention on other backbones, alone and inside transformers' own models."""

import pytest
import torch
from tiny_models import tiny_backbone_config, wake_attention
from transformers import (
    AutoBackbone,
    AutoConfig,
    ConvNextConfig,
    DetrConfig,
    DetrForObjectDetection,
    DINOv3ViTConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
)

from ccnet_hf import CCNetBackbone, CCNetBackboneConfig


STAGES = ["stage1", "stage2", "stage3", "stage4"]

BACKBONES = {
    "CCNet's ResNet": (tiny_backbone_config(output_stride=32), "stage3"),
    "ResNet": (
        ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 32, 48], depths=[1] * 4, out_features=STAGES),
        "stage4",
    ),
    "Swin": (
        SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[2] * 4, window_size=4, out_features=STAGES[1:]),
        "stage2",
    ),
    "ConvNeXt": (ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=STAGES), "stage1"),
    "DINOv3": (
        DINOv3ViTConfig(
            hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=3, out_features=STAGES[1:3]
        ),
        "stage3",
    ),
    "timm": (TimmBackboneConfig(backbone="resnet10t", out_indices=[2, 3]), "layer2"),
}


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone(name, pixel_values, tmp_path):
    backbone_config, stage = BACKBONES[name]
    if name == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    config = CCNetBackboneConfig(backbone_config=backbone_config, attention_stage=stage, query_key_size=4)
    attended = AutoBackbone.from_config(config).eval()
    assert type(attended) is CCNetBackbone and attended.attention.query.out_channels == 4
    plain = attended.backbone
    with torch.no_grad():
        expected = plain(pixel_values).feature_maps
        found = attended(pixel_values).feature_maps
    assert attended.out_features == list(plain.out_features) and attended.channels == [
        feature_map.shape[1] for feature_map in expected
    ]
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))

    wake_attention(attended.attention)
    index = attended.out_features.index(stage)
    with torch.no_grad():
        found = attended(pixel_values).feature_maps
        torch.testing.assert_close(found[index], attended.attention(expected[index])[0])
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [
        position != index for position in range(len(expected))
    ]

    attended.save_pretrained(tmp_path)
    assert type(AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path))) is CCNetBackbone
    loaded = CCNetBackbone.from_pretrained(tmp_path).eval()
    assert type(loaded.backbone) is type(plain)
    assert all(map(torch.equal, loaded.state_dict().values(), attended.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).feature_maps, found)


def test_feature_maps_and_indices_are_the_backbones():
    config = CCNetBackboneConfig(
        backbone_config=BACKBONES["ResNet"][0], attention_stage="stage2", out_indices=[1, 2, 4]
    )
    assert config.out_features == config.backbone_config.out_features == ["stage1", "stage2", "stage4"]
    assert BACKBONES["ResNet"][0].out_features == STAGES  # it is not changed by being wrapped
    config.out_features = ["stage2", "stage3"]
    assert config.out_indices == [2, 3] and CCNetBackbone(config).channels == [32, 32]
    assert "out_features" not in config.to_diff_dict()
    assert CCNetBackboneConfig.from_dict(config.to_dict()).out_features == ["stage2", "stage3"]
    alone = tiny_backbone_config(out_features=None)
    assert CCNetBackboneConfig(backbone_config=alone, attention_stage="stage3").out_features == STAGES[2:]
    assert CCNetBackboneConfig(backbone_config=alone).backbone_config is alone
    default = CCNetBackboneConfig()
    assert default.backbone_config.model_type == "ccnet_resnet" and default.out_features == STAGES


def test_hidden_states_are_the_backbones(pixel_values):
    attended = CCNetBackbone(
        CCNetBackboneConfig(backbone_config=BACKBONES["Swin"][0], attention_stage="stage2")
    ).eval()
    wake_attention(attended.attention)
    outputs = attended(pixel_values, output_hidden_states=True)
    expected = attended.backbone(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == 5
    assert all(map(torch.equal, outputs.hidden_states, expected.hidden_states))
    assert set(attended(pixel_values).keys()) == {"feature_maps"}
    assert isinstance(attended(pixel_values, return_dict=False), tuple)


def test_gradient_checkpointing_gives_equal_gradients(pixel_values):
    torch.manual_seed(0)
    attended = CCNetBackbone(CCNetBackboneConfig(backbone_config=BACKBONES["ResNet"][0])).train()
    wake_attention(attended.attention)
    gradients = []
    for enable in (False, True):
        if enable:
            attended.gradient_checkpointing_enable()
            assert attended.attention.gradient_checkpointing
        attended.zero_grad()
        attended(pixel_values).feature_maps[-1].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in attended.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attention_stage": "stage5"},
            ".* stage1, stage2, stage3, stage4, got 'stage5'",
        ),
        ({"out_features": ["stage1", "stage2"]}, "attention_stage must be one of .* stage1, stage2, got 'stage4'"),
        ({"attention_recurrence": 0}, "attention_recurrence must be at least 1"),
        ({"attention_recurrence": 101}, "attention_recurrence must be at most 100"),
        ({"query_key_size": 0}, "query_key_size must be at least 1"),
        ({"query_key_size": 10**6}, "query_key_size must be at most 8,192"),
        ({"backbone_config": {"model_type": "mine"}}, "model_type that transformers knows, .*got 'mine'"),
        ({"backbone_config": {}}, "got None"),
        ({"backbone_config": DetrConfig()}, "DetrConfig is none"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CCNetBackboneConfig(**fields)


def test_names_that_look_like_a_field_and_values_given_while_loading():
    with pytest.raises(ValueError, match="no argument 'attention_recurence'; did you mean attention_recurrence"):
        CCNetBackboneConfig(attention_recurence=3)
    foreign = {"depths": "backbone_config", "recurrence": "attention_recurrence", "backbone": "backbone_config"}
    foreign["attention_query_key_size"] = "query_key_size"
    for name, meant in foreign.items():
        with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
            CCNetBackboneConfig(**{name: 1})
    saved = CCNetBackboneConfig(backbone_config=tiny_backbone_config(), attention_stage="stage3").to_dict()
    with pytest.raises(ValueError, match="no argument 'attention_stages'"):
        CCNetBackboneConfig.from_dict(saved, attention_stages="stage4")
    for name, value in (("attention_recurrence", 0), ("attention_stage", "stage7")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            CCNetBackboneConfig.from_dict(saved, **{name: value})
    later = CCNetBackboneConfig.from_dict(saved | {"attention_stages": ["stage3"]})
    assert later.attention_stages == ["stage3"] and later.attention_stage == "stage3"
    assert CCNetBackboneConfig.from_dict(later.to_dict()).to_dict() == later.to_dict()
    assert CCNetBackboneConfig.from_dict(saved, attention_stage="stage4").attention_stage == "stage4"


def test_what_is_found_out_with_the_model_is_refused_then(pixel_values):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"attention_stage must be one of .* layer2, layer3, got 'layer1'"):
        CCNetBackbone(CCNetBackboneConfig(backbone_config=BACKBONES["timm"][0], attention_stage="layer1"))
    vit = ViTConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    with pytest.raises(ValueError, match="must be a backbone's configuration"):
        CCNetBackboneConfig(backbone_config=vit)


def test_what_is_set_later_is_refused_with_the_model():
    config = CCNetBackboneConfig(backbone_config=tiny_backbone_config())
    config.attention_recurrence = 10**9
    with pytest.raises(ValueError, match="attention_recurrence must be at most 100"):
        CCNetBackbone(config)


@pytest.mark.parametrize("name", ["CCNet's ResNet", "Swin"])
def test_other_than_images_are_refused(name):
    backbone_config, stage = BACKBONES[name]
    model = CCNetBackbone(CCNetBackboneConfig(backbone_config=backbone_config, attention_stage=stage))
    with pytest.raises(ValueError, match=r"pixel_values must be .* num_channels=3, .* got shape \(1, 64, 64, 3\)"):
        model(torch.randn(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"pixel_values must be a tensor .*, got NoneType"):
        model(None)


# --- inside transformers' models -----------------------------------------------------------------------------------

NUM_LABELS = 3


def mask2former(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    config = Mask2FormerConfig(
        backbone_config=backbone_config,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=4,
        train_num_points=64,
        num_labels=NUM_LABELS,
    )
    return Mask2FormerForUniversalSegmentation(config)


def small_detr(**kwargs) -> DetrConfig:
    return DetrConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=4,
        num_labels=NUM_LABELS,
        **kwargs,
    )


def maskformer(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    config = MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=backbone_config,
        decoder_config=small_detr(),
        num_labels=NUM_LABELS,
    )
    return MaskFormerForInstanceSegmentation(config)


def upernet(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    config = UperNetConfig(
        backbone_config=backbone_config, hidden_size=32, auxiliary_channels=32, num_labels=NUM_LABELS
    )
    return UperNetForSemanticSegmentation(config)


def detr(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return DetrForObjectDetection(small_detr(backbone_config=backbone_config, use_timm_backbone=False))


def labels_of(build) -> dict:
    """Two squares in the first picture and one in the second, as each model wants to be told of them."""
    masks = torch.zeros(3, 64, 96)
    masks[0, 8:40, 8:40] = masks[1, 16:48, 56:88] = masks[2, 24:56, 32:64] = 1
    classes = torch.tensor([0, 1, 2])
    if build in (mask2former, maskformer):
        return {"mask_labels": [masks[:2], masks[2:]], "class_labels": [classes[:2], classes[2:]]}
    if build is upernet:
        maps = torch.stack([masks[0] + 2 * masks[1], 2 * masks[2]]).long()
        return {"labels": maps}
    boxes = torch.tensor([[0.25, 0.375, 0.3, 0.5], [0.75, 0.5, 0.3, 0.5], [0.5, 0.625, 0.3, 0.5]])
    return {"labels": [{"class_labels": classes[part], "boxes": boxes[part]} for part in (slice(2), slice(2, 3))]}


def outputs_of(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = model.eval()(pixel_values)
    return outputs.logits if "logits" in outputs else outputs.masks_queries_logits


@pytest.mark.parametrize("build", [mask2former, maskformer, upernet, detr])
def test_transformers_models_take_it_train_it_and_save_it(build, pixel_values, tmp_path):
    if build is not upernet:
        pytest.importorskip("scipy")  # assigns queries to objects
    torch.manual_seed(0)
    model = build(CCNetBackboneConfig(backbone_config=BACKBONES["ResNet"][0], attention_stage="stage4"))
    ((name, attended),) = [(name, part) for name, part in model.named_modules() if isinstance(part, CCNetBackbone)]
    attention = attended.attention
    before = outputs_of(model, pixel_values)
    model.set_submodule(name, attended.backbone)
    assert torch.equal(outputs_of(model, pixel_values), before)
    model.set_submodule(name, attended)

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = model.train()(pixel_values, **labels_of(build)).loss
    loss.backward()
    assert torch.isfinite(loss) and attention.gamma.grad.item() != 0
    optimizer.step()
    assert attention.gamma.item() != 0
    wake_attention(attention)
    trained = outputs_of(model, pixel_values)
    assert not torch.equal(trained, before)

    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).backbone_config.model_type == "ccnet_backbone"
    loaded, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    torch.testing.assert_close(outputs_of(loaded, pixel_values), trained)
