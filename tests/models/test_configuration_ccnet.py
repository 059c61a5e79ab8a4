"""Configurations: defaults, round trips, and what they refuse."""

import copy

import pytest
from transformers import AutoConfig, ConvNextConfig, SwinConfig, TimmBackboneConfig, ViTConfig

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetResNetConfig
from ccnet_hf.models.configuration_ccnet import MAX_NUM_LABELS
from ccnet_hf.models.configuration_ccnet_resnet import MAX_CHANNELS


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
        backbone_config=CCNetResNetConfig(
            depths=[1, 1, 1, 1], stem_size=128, contract_dilation=False, pooled_shortcut=True
        ),
        use_auxiliary_head=False,
        recurrence=3,
        head_activation="leaky_relu",
        attention_activation="relu",
        ohem_threshold=0.7,
        ohem_min_kept=5000,
        ohem_rule="paddleseg",
        category_consistent_loss_weight=1.0,
        category_consistent_channels=8,
        category_consistent_per_image=True,
        inference={"mode": "slide", "crop_size": [769, 769], "stride": [513, 513], "average": "logits"},
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
        ("attention_activation", "gelu"),
        ("loss_reduction", "mean"),
        ("classifier_dropout_prob", 1.0),
        ("auxiliary_loss_weight", -0.1),
        ("auxiliary_loss_weight", float("nan")),
        ("ohem_threshold", 0.0),
        ("ohem_threshold", 1.1),
        ("ohem_threshold", float("nan")),
        ("ohem_min_kept", -1),
        ("ohem_rule", "mmsegmentation"),
        ("category_consistent_loss_weight", -1.0),
        ("category_consistent_loss_weight", float("inf")),
        ("category_consistent_channels", 0),
        ("semantic_loss_ignore_index", 0),
        ("semantic_loss_ignore_index", 2**63),
        ("semantic_loss_ignore_index", -(10**30)),
        ("num_labels", 0),
        ("num_labels", 1),
        ("num_labels", "19"),
        ("num_labels", MAX_NUM_LABELS + 1),
        ("num_labels", 10**9),
        ("id2label", {0: "road", 2: "sky"}),
        ("id2label", {"road": "0", "sky": "1"}),
        ("label2id", {"road": 5, "sky": 7}),
        ("hidden_size", MAX_CHANNELS + 1),
        ("query_key_size", 10**9),
        ("auxiliary_channels", 10**9),
        ("category_consistent_channels", 10**9),
        ("recurrence", 10**9),
        ("backbone_config", {"model_type": "no such backbone"}),
        ("backbone_config", {"model_type": ["ccnet_resnet"]}),
        ("backbone_config", "resnet50"),
        ("backbone_config", ViTConfig()),
        ("backbone_config", {"model_type": "vit"}),
        ("inference", {"mode": "crop"}),
        ("inference", {"mode": "slide"}),
        ("inference", {"mode": "slide", "crop_size": [64], "stride": [32, 32]}),
        ("inference", {"mode": "slide", "crop_size": [64, 64], "stride": [65, 32]}),
        ("inference", {"mode": "slide", "crop_size": [64, 64], "stride": [0, 32]}),
        ("inference", {"mode": "whole", "stride": [32, 32]}),
        ("inference", {"mode": "whole", "average": "votes"}),
        ("inference", {"average": "logits"}),
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
        ("num_channels", 10**9),
        ("stem_size", 2 * 10**9),
        ("depths", [3, 4, 10**9, 3]),
        ("hidden_sizes", [256, 512, 1024, 2**17]),
    ],
)
def test_wrong_backbone_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        CCNetResNetConfig(**{field: value})


def test_wrong_types_are_refused_by_name():
    with pytest.raises(Exception, match="hidden_size"):
        CCNetConfig(hidden_size="512")


def test_one_class_is_refused_with_what_to_do():
    for values in ({"num_labels": 1}, {"id2label": {0: "crack"}}):
        with pytest.raises(ValueError, match=r"num_labels must be at least 2, got 1: .* background are two"):
            CCNetConfig(**values)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("backbone", "resnet50", "backbone_config"),
        ("use_pretrained_backbone", True, "backbone_config"),
        ("use_timm_backbone", True, "backbone_config"),
        ("backbone_kwargs", {"out_indices": [3, 4]}, "backbone_config"),
        ("output_stride", 16, "backbone_config"),
        ("out_features", ["stage4"], "backbone_config"),
        ("num_channels", 4, "backbone_config"),
        ("num_classes", 19, "num_labels"),
        ("num_label", 19, "num_labels"),
        ("id2labels", {0: "road"}, "id2label"),
        ("ignore_index", 0, "semantic_loss_ignore_index"),
        ("reccurence", 1, "recurrence"),
        ("align_corner", True, "align_corners"),
        ("auxiliary_in_channels", 256, "auxiliary_channels"),
        ("use_auxiliary_heads", False, "use_auxiliary_head"),
        ("concat_inputs", False, "concat_input"),
        ("auxiliary_head", False, "use_auxiliary_head"),
        ("num_class", 19, "num_labels"),
        ("n_classes", 19, "num_labels"),
        ("nclass", 19, "num_labels"),
        ("classes", 19, "num_labels"),
        ("ignore_label", 0, "semantic_loss_ignore_index"),
        ("dropout_ratio", 0.5, "classifier_dropout_prob"),
        ("pretrained", True, "backbone_config"),
        ("layers", [3, 4, 6, 3], "backbone_config"),
        ("num_frames", 5, "CCNetVideoConfig"),
    ],
)
def test_names_that_look_like_a_field_are_refused_with_it(name, value, meant):
    """They would be kept and have no effect: an R-101 with two classes."""
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetConfig(**{name: value})
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetConfig.from_dict(CCNetConfig().to_dict(), **{name: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("output_strides", "output_stride"),
        ("depth", "depths"),
        ("layers", "depths"),
        ("in_channels", "num_channels"),
        ("contract_dilations", "contract_dilation"),
        ("recurrence", "attention_recurrence"),
    ],
)
@pytest.mark.parametrize("value", [16, False])
def test_names_that_look_like_a_backbones_field_are_refused_with_it(name, meant, value):
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetResNetConfig(**{name: value})


def test_names_of_transformers_and_of_nobody_are_taken():
    config = CCNetConfig(num_labels=19, output_hidden_states=True, torch_dtype="float16", name_or_path="here")
    assert config.num_labels == 19 and config.output_hidden_states and config.name_or_path == "here"
    off = {"use_pretrained_backbone": False, "use_timm_backbone": False}
    assert CCNetConfig(num_labels=None, backbone=None, **off).num_labels == 2
    assert CCNetConfig(project="mine").project == "mine"


def test_files_of_other_versions_load():
    """Whatever a field of theirs is called, and it is not lost when they are saved again."""
    later = CCNetConfig(num_labels=5).to_dict() | {"num_axes": 3, "recurrences": [2, 3], "output_stride": 16}
    later["backbone_config"]["output_strides"] = [8, 8]
    config = CCNetConfig.from_dict(later)
    assert (config.num_labels, config.recurrence, config.recurrences, config.num_axes) == (5, 2, [2, 3], 3)
    again = CCNetConfig.from_dict(copy.deepcopy(config).to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.backbone_config.output_strides == [8, 8]


def test_what_is_given_while_loading_is_checked():
    saved = CCNetConfig(num_labels=5).to_dict()
    assert CCNetConfig.from_dict(saved, num_labels=7, recurrence=1, project="mine").num_labels == 7
    assert CCNetConfig.from_dict(saved, id2label={"0": "road", "1": "sky"}).id2label == {0: "road", 1: "sky"}
    for field, value in (("num_labels", 1), ("num_labels", 10**9), ("recurrence", -1), ("loss_reduction", "mean")):
        with pytest.raises(ValueError, match=field):
            CCNetConfig.from_dict(saved, **{field: value})
    _, unused = CCNetConfig.from_dict(saved, project="mine", return_unused_kwargs=True)
    assert unused == {"project": "mine"}


def test_names_of_classes_given_while_loading_replace_the_files():
    saved = CCNetConfig(num_labels=5).to_dict()
    loaded = CCNetConfig.from_dict(saved, id2label={"0": "road", "1": "sky"})
    assert loaded.label2id == {"road": 0, "sky": 1}
    stale = loaded.to_dict() | {"label2id": saved["label2id"]}  # as it was saved before
    assert CCNetConfig.from_dict(stale).to_dict() == loaded.to_dict()


BACKBONES = {
    "ccnet_resnet by a negative index": lambda: CCNetResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], stem_size=8, out_indices=[-1]
    ),
    "ccnet_resnet": lambda: CCNetResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], stem_size=8),
    "convnext": lambda: ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8]),
    "swin": lambda: SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], image_size=64),
    "timm": lambda: TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False),
    "timm by an index": lambda: TimmBackboneConfig(
        backbone="resnet18", use_pretrained_backbone=False, out_indices=[4]
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_that_names_no_feature_map_gives_its_last_two(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone_config = BACKBONES[name]()
    before = copy.deepcopy(backbone_config)
    config = CCNetConfig(backbone_config=backbone_config, hidden_size=8, auxiliary_channels=8)
    assert backbone_config == before
    model = CCNetForSemanticSegmentation(config)
    assert len(model.model.backbone.channels) == 2
    assert model.model.backbone.out_features == model.model.backbone.stage_names[-2:]
    assert CCNetConfig.from_dict(config.to_dict()).backbone_config.out_indices == config.backbone_config.out_indices


def test_a_backbone_that_names_its_feature_maps_keeps_them():
    for kept in (CCNetResNetConfig(out_features=["stage2"]), CCNetResNetConfig(out_features=["stage2", "stage4"])):
        assert CCNetConfig(backbone_config=kept).backbone_config is kept
    alone = CCNetResNetConfig()
    assert CCNetConfig(backbone_config=alone, use_auxiliary_head=False).backbone_config is alone
