"""The configuration of human parsing: defaults, round trip, and what it refuses."""

import pytest
from transformers import AutoConfig, ConvNextConfig

from ccnet_hf import CCNetParsingConfig, CCNetResNetConfig


def test_defaults_are_ce2ps_network_with_attention():
    config = CCNetParsingConfig()
    backbone = config.backbone_config
    assert (backbone.depths, backbone.stem_size, backbone.output_stride) == ([3, 4, 23, 3], 128, 16)
    assert (backbone.contract_dilation, backbone.pool_ceil_mode) == (False, False)
    assert backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert (config.context_module, config.recurrence, config.hidden_size) == ("rcca", 2, 512)
    assert (config.head_activation, config.align_corners, config.inference) == ("leaky_relu", True, {"mode": "whole"})
    assert (config.parsing_loss_weight, config.edge_loss_weight, config.category_consistent_loss_weight) == (1, 1, 0)


def test_round_trip_keeps_every_field(tmp_path):
    config = CCNetParsingConfig(
        backbone_config=CCNetResNetConfig(depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]),
        hidden_size=64,
        query_key_size=4,
        recurrence=1,
        concat_input=False,
        head_activation="relu",
        decoder_channels=32,
        shortcut_channels=16,
        edge_channels=24,
        classifier_dropout_prob=0,
        parsing_loss_weight=0.5,
        edge_loss_weight=2,
        category_consistent_loss_weight=1.0,
        category_consistent_channels=8,
        category_consistent_per_image=True,
        align_corners=False,
        inference={"mode": "slide", "crop_size": [473, 473], "stride": [300, 300]},
        id2label={0: "background", 1: "left arm", 2: "right arm"},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CCNetParsingConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_labels == 3


def test_backbone_may_be_any_configuration():
    convnext = ConvNextConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    assert isinstance(CCNetParsingConfig(backbone_config=convnext.to_dict()).backbone_config, ConvNextConfig)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_module", "ocr"),
        ("head_activation", "gelu"),
        ("recurrence", -1),
        ("hidden_size", 0),
        ("query_key_size", 0),
        ("decoder_channels", 0),
        ("shortcut_channels", 0),
        ("edge_channels", 0),
        ("category_consistent_channels", 0),
        ("classifier_dropout_prob", 1.0),
        ("parsing_loss_weight", -1.0),
        ("edge_loss_weight", float("nan")),
        ("category_consistent_loss_weight", float("inf")),
        ("semantic_loss_ignore_index", 1),
        ("backbone_config", {"model_type": "no such backbone"}),
        ("inference", {"mode": "slide"}),
        ("inference", {}),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CCNetParsingConfig(**{field: value})


def test_the_category_consistent_loss_needs_attention():
    with pytest.raises(ValueError, match=r"category_consistent_loss_weight must be 0 .* context_module='pyramid'"):
        CCNetParsingConfig(context_module="pyramid", category_consistent_loss_weight=1.0)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("align_corner", False, "align_corners"),
        ("ohem_threshold", 0.7, r"CCNetConfig\(ohem_threshold=...\)"),
        ("n_classes", 20, "num_labels"),
        ("layers", [3, 4, 6, 3], "backbone_config"),
    ],
)
def test_names_that_look_like_a_field_are_refused_with_it(name, value, meant):
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetParsingConfig(**{name: value})


def test_wrong_types_are_refused_by_name():
    with pytest.raises(Exception, match="edge_channels"):
        CCNetParsingConfig(edge_channels="256")
