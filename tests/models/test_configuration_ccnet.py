"""Configurations: defaults, round trips, and what they refuse."""

import pytest
from transformers import AutoConfig, ConvNextConfig

from ccnet_hf import CCNetConfig, CCNetResNetConfig


def test_defaults_are_mmsegmentations_r101():
    config = CCNetConfig()
    assert config.backbone_config.depths == [3, 4, 23, 3]
    assert config.backbone_config.output_stride == 8
    assert config.backbone_config.out_features == ["stage3", "stage4"]
    assert (config.hidden_size, config.recurrence, config.auxiliary_channels) == (512, 2, 256)
    assert config.inference == {"mode": "whole"}
    assert config.ohem_threshold is None and config.category_consistent_loss_weight == 0


def test_round_trip_keeps_every_field(tmp_path):
    config = CCNetConfig(
        backbone_config=CCNetResNetConfig(depths=[1, 1, 1, 1], stem_size=128, contract_dilation=False),
        use_auxiliary_head=False,
        recurrence=3,
        head_activation="leaky_relu",
        ohem_threshold=0.7,
        ohem_min_kept=5000,
        category_consistent_loss_weight=1.0,
        category_consistent_channels=8,
        category_consistent_per_image=True,
        inference={"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]},
        id2label={0: "road", 1: "sky", 2: "tree"},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CCNetConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_labels == 3


def test_backbone_may_be_a_dictionary_or_any_configuration():
    from_dictionary = CCNetConfig(backbone_config={"model_type": "ccnet_resnet", "output_stride": 16})
    assert isinstance(from_dictionary.backbone_config, CCNetResNetConfig)
    assert from_dictionary.backbone_config.output_stride == 16
    convnext = ConvNextConfig(out_features=["stage3", "stage4"])
    assert CCNetConfig(backbone_config=convnext.to_dict()).backbone_config.out_features == ["stage3", "stage4"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recurrence", -1),
        ("recurrence", 10**9),
        ("num_labels", 10**9),
        ("hidden_size", 0),
        ("query_key_size", 0),
        ("auxiliary_channels", 0),
        ("head_activation", "gelu"),
        ("loss_reduction", "mean"),
        ("classifier_dropout_prob", 1.0),
        ("auxiliary_loss_weight", -0.1),
        ("auxiliary_loss_weight", float("nan")),
        ("ohem_threshold", 0.0),
        ("ohem_threshold", 1.1),
        ("ohem_threshold", float("nan")),
        ("ohem_min_kept", -1),
        ("category_consistent_loss_weight", -1.0),
        ("category_consistent_loss_weight", float("inf")),
        ("category_consistent_channels", 0),
        ("semantic_loss_ignore_index", 0),
        ("backbone_config", {"model_type": "no such backbone"}),
        ("inference", {"mode": "crop"}),
        ("inference", {"mode": "slide"}),
        ("inference", {"mode": "slide", "crop_size": [64], "stride": [32, 32]}),
        ("inference", {"mode": "slide", "crop_size": [64, 64], "stride": [65, 32]}),
        ("inference", {"mode": "slide", "crop_size": [64, 64], "stride": [0, 32]}),
        ("inference", {"mode": "whole", "stride": [32, 32]}),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CCNetConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_stride", 4),
        ("num_channels", 0),
        ("stem_size", 7),
        ("depths", [1, 0, 1, 1]),
        ("depths", [1, 1]),
        ("hidden_sizes", [16, 32, 64, 65]),
    ],
)
def test_wrong_backbone_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CCNetResNetConfig(**{field: value})


def test_wrong_types_are_refused_by_name():
    with pytest.raises(Exception, match="hidden_size"):
        CCNetConfig(hidden_size="512")
