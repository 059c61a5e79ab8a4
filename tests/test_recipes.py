"""The recipe table against the resolved configs of mmsegmentation, field by field."""

import dataclasses
import json

import pytest
import torch

from ccnet_hf import CCNetConfig, CCNetParsingConfig, CCNetResNetConfig
from ccnet_hf.data.benchmarks import BENCHMARKS, flip_label_pairs, get_benchmark, prepared_benchmarks
from ccnet_hf.recipes import RECIPES, SHORT_NAMES, TrainingRecipe, get_recipe, zoo_recipes
from ccnet_hf.training.augmentation import training_transforms
from ccnet_hf.training.optimization import build_optimizer


ZOO_NAMES = [name for name, recipe in RECIPES.items() if recipe.mmseg_config]


@pytest.fixture(scope="session")
def zoo(shared_dir) -> dict:
    return json.loads((shared_dir / "reference" / "zoo.json").read_text())


@pytest.fixture
def variant(zoo, request) -> dict:
    """The entry of zoo.json that belongs to the recipe named by the parameter."""
    recipe = RECIPES[request.param]
    (entry,) = (entry for entry in zoo["variants"] if entry["mmseg_config"] == recipe.mmseg_config)
    return entry


def without(entry: dict, *keys: str) -> dict:
    """An entry without fields that only describe, in words or for mmsegmentation's files."""
    return {key: value for key, value in entry.items() if key not in keys}


def steps_of(pipeline: list[dict]) -> dict[str, dict]:
    """What every step of a pipeline is told, its class's defaults included."""
    return {step["type"]: step["defaults"] | step["params"] for step in pipeline}


def test_names(zoo):
    assert {RECIPES[name].mmseg_config for name in ZOO_NAMES} == {entry["mmseg_config"] for entry in zoo["variants"]}
    assert len(ZOO_NAMES) == 16
    assert set(RECIPES) - set(ZOO_NAMES) == {
        "ccnet-r101-cityscapes-paddleseg",
        "ccnet-r101-cityscapes-authors",
        "ccnet-r101-cityscapes-authors-ohem",
        "ccnet-r101-cityscapes-authors-ccl",
        "ccnet-r101-lip",
        "ce2p-r101-lip",
        "schp-lip",
        "schp-atr",
        "schp-pascal",
        "ce2p-lip",
        "ccnet-mobilenetv2-camvid",
        "ccnet-mobilenetv2-camvid-r0",
        "ccnet-efficientnet-camvid",
        "ccnet-mobilenetv2-camvid-video",
        "ccnet-r101-camvid-video",
        "ccnet-convnext-tiny-ade20k",
        "ccnet-dinov3-vits-ade20k",
        "ccnet-swin-tiny-cityscapes",
        "ccnet-r50-coco",
        "ccnet-r101-coco",
    }
    assert all(recipe.name == name for name, recipe in RECIPES.items())


NORM = {"type": "SyncBN", "requires_grad": True}


def head_entry(kind: str, channels: int, in_channels: int, in_index: int, config: CCNetConfig, **fields) -> dict:
    """A head of zoo.json as our config describes it; what no config can change stands here in full."""
    return {
        "type": kind,
        "in_channels": in_channels,
        "in_index": in_index,
        "channels": channels,
        "num_classes": config.num_labels,
        "out_channels": config.num_labels,
        "kernel_size": 3,
        "dilation": 1,
        "dropout_ratio": config.classifier_dropout_prob,
        "align_corners": config.align_corners,
        "ignore_index": config.semantic_loss_ignore_index,
        "norm_cfg": NORM,
        "act_cfg": {"type": {"relu": "ReLU"}[config.head_activation]},
        "conv_cfg": None,
        "input_transform": None,
        "sampler": None if config.ohem_threshold is None else "OHEM",
        "init": {
            "conv_seg": f"Normal(mean=0, std={config.initializer_range}), bias 0",
            "rest": "mmcv ConvModule: kaiming-normal conv, BN weight 1 / bias 0",
        },
    } | fields


def loss_entry(weight: float, config: CCNetConfig) -> dict:
    return {
        "type": "CrossEntropyLoss",
        "loss_weight": weight,
        "use_sigmoid": False,
        "reduction": "mean",
        "avg_non_ignore": config.loss_reduction == "valid",
        "class_weight": None,
        "ignore_index": config.semantic_loss_ignore_index,
    }


@pytest.mark.parametrize(("name", "variant"), [(name, name) for name in ZOO_NAMES], indirect=["variant"])
class TestZooRecipe:
    def test_no_part_is_overlooked(self, name, variant):
        assert set(variant) == {
            *("mmseg_config", "dataset", "backbone_depth", "crop_size_hw", "iterations", "checkpoint_file"),
            *("checkpoint_url", "reported", "backbone", "norm", "decode_head", "auxiliary_head", "test_cfg"),
            *("val_interval", "batch_size", "optimizer", "lr_schedule", "data_preprocessor", "train_pipeline"),
            *("test_pipeline", "tta", "evaluator", "train_data", "val_data"),
        }

    def test_name_and_source(self, name, variant):
        recipe = RECIPES[name]
        depth, (height, width) = variant["backbone_depth"], variant["crop_size_hw"]
        assert recipe.name == name
        assert name == (f"ccnet-r{depth}-{variant['dataset']}-{height}x{width}-{variant['iterations'] // 1000}k")
        assert recipe.benchmark == variant["dataset"]
        assert recipe.checkpoint_file == variant["checkpoint_file"]
        assert recipe.checkpoint_url == variant["checkpoint_url"]

    def test_reported_scores(self, name, variant):
        reported, expected = RECIPES[name].reported, variant["reported"]
        assert reported == {
            "mean_iou": expected["miou"],
            "mean_iou_multi_scale_flip": expected["miou_ms_flip"],
            "training_memory_gb": expected["mem_gb"],
            "frames_per_second_v100": expected["fps_v100"],
        }

    def test_backbone(self, name, variant):
        recipe = RECIPES[name]
        config = recipe.config().backbone_config
        assert type(config) is CCNetResNetConfig
        assert list(config.hidden_sizes) == [256, 512, 1024, 2048] and config.pool_ceil_mode is False
        # Of stage k's stride and dilation only the output stride is free: 8 means 1, 2, 1, 1 after a stem of 4.
        assert config.output_stride == 8
        assert without(variant["backbone"], "stem", "style", "with_cp") == {
            "type": "ResNetV1c",
            "depth": variant["backbone_depth"],
            "num_stages": len(config.depths),
            "stage_blocks": list(config.depths),
            "out_indices": [0, 1, 2, 3],
            "strides": [1, 2, 1, 1],
            "dilations": [1, 1, 2, 4],
            "contract_dilation": config.contract_dilation,
            "multi_grid": None,
            "deep_stem": True,
            "stem_channels": config.stem_size,
            "base_channels": config.hidden_sizes[0] // 4,
            "avg_down": False,
            "stride_in_3x3": True,
            "frozen_stages": -1,
            "norm_eval": False,
            "norm_cfg": NORM,
            "pretrained": f"open-mmlab://resnet{variant['backbone_depth']}_v1c",
        }
        assert recipe.backbone_checkpoint == f"timm/resnet{variant['backbone_depth']}c.gluon_in1k"
        assert variant["norm"] == NORM | {"eps": 1e-5, "momentum": 0.1}  # PyTorch's own

    def test_heads(self, name, variant):
        config = RECIPES[name].config()
        assert list(config.backbone_config.out_features) == ["stage3", "stage4"] and config.use_auxiliary_head
        assert variant["decode_head"] == head_entry(
            *("CCHead", config.hidden_size, config.backbone_config.hidden_sizes[3], 3, config),
            num_convs=2,
            concat_input=config.concat_input,
            loss=loss_entry(1.0, config),
            recurrence=config.recurrence,
            attention={
                "type": "CrissCrossAttention",
                "in_channels": config.hidden_size,
                "query_key_channels": config.query_key_size or config.hidden_size // 8,
                "gamma_init": 0.0,
            },
        )
        assert variant["auxiliary_head"] == head_entry(
            *("FCNHead", config.auxiliary_channels, config.backbone_config.hidden_sizes[2], 2, config),
            num_convs=1,
            concat_input=False,
            loss=loss_entry(config.auxiliary_loss_weight, config),
        )
        assert config.category_consistent_loss_weight == 0

    def test_inference(self, name, variant):
        inference = RECIPES[name].config().inference
        assert variant["test_cfg"] == {
            "mode": inference["mode"],
            "crop_size_hw": inference.get("crop_size"),
            "stride_hw": inference.get("stride"),
        }

    def test_class_names(self, name, variant, zoo):
        config = RECIPES[name].config()
        # mmsegmentation's list has a stray blank behind "bed"
        names = [label.strip() for label in zoo["datasets"][variant["dataset"]]["classes"]]
        assert [config.id2label[index] for index in range(config.num_labels)] == names
        assert config.label2id == {label: index for index, label in enumerate(names)}

    def test_image_processor(self, name, variant, zoo):
        recipe = RECIPES[name]
        processor = recipe.image_processor()
        resize = steps_of(variant["test_pipeline"])["Resize"]
        assert resize["keep_ratio"] and resize["interpolation"] == "bilinear"
        long, short = resize["scale"]
        assert dict(processor.size) == {"shortest_edge": short, "longest_edge": long}
        preprocessor = variant["data_preprocessor"]
        assert [255 * value for value in processor.image_mean] == pytest.approx(preprocessor["mean"], rel=1e-12)
        assert [255 * value for value in processor.image_std] == pytest.approx(preprocessor["std"], rel=1e-12)
        assert preprocessor["bgr_to_rgb"] and preprocessor["channel_order_of_mean_std"] == "RGB"
        assert processor.rescale_factor == 1 / 255
        assert processor.do_resize and processor.do_rescale and processor.do_normalize and not processor.do_pad
        dataset = zoo["datasets"][variant["dataset"]]
        assert processor.do_reduce_labels == dataset["reduce_zero_label"]
        assert processor.align_corners == variant["decode_head"]["align_corners"]
        assert [list(colour) for colour in processor.palette] == dataset["palette_rgb"]
        assert list(recipe.tta_ratios) == variant["tta"]["ratios"]
        assert variant["tta"]["num_views"] == 2 * len(recipe.tta_ratios) and variant["tta"]["flip"] == "horizontal"
        assert variant["evaluator"] == {"type": "IoUMetric", "iou_metrics": ["mIoU"]}

    def test_data(self, name, variant, zoo):
        """Splits; the images themselves are counted where they are prepared."""
        benchmark = get_benchmark(RECIPES[name].benchmark)
        dataset = zoo["datasets"][variant["dataset"]]
        assert benchmark.num_examples["train"] == dataset["num_images"]["train"]
        assert {data["type"] for data in (*variant["train_data"], variant["val_data"])} == {dataset["mmseg_class"]}
        assert benchmark.reduce_labels == bool(
            steps_of(variant["train_pipeline"])["LoadAnnotations"]["reduce_zero_label"]
        )

    def test_augmentation(self, name, variant):
        recipe = RECIPES[name]
        training = recipe.training
        steps = steps_of(variant["train_pipeline"])
        assert list(training.scale) == steps["RandomResize"]["scale"]
        assert list(training.ratio_range) == steps["RandomResize"]["ratio_range"] and training.ratio_step == 0
        assert steps["RandomResize"]["keep_ratio"] is True
        assert list(training.crop_size) == variant["crop_size_hw"] == steps["RandomCrop"]["crop_size"]
        assert training.cat_max_ratio == steps["RandomCrop"]["cat_max_ratio"]
        assert training.photometric_distortion
        # These ranges are constants of ours, tested with the transform.
        assert steps["PhotoMetricDistortion"] == {
            "brightness_delta": 32,
            "contrast_range": [0.5, 1.5],
            "saturation_range": [0.5, 1.5],
            "hue_delta": 18,
        }
        assert training.pad_before_normalization == ("Pad" in steps)
        if "Pad" in steps:
            assert steps["Pad"]["size"] == list(training.crop_size) and steps["Pad"]["pad_val"] == {
                "img": 0,
                "seg": 255,
            }
        preprocessor = variant["data_preprocessor"]
        assert preprocessor["size_hw"] == list(training.crop_size)
        assert (preprocessor["pad_val"], preprocessor["seg_pad_val"]) == (0, 255)

        chain = training_transforms(training, recipe.image_mean, recipe.image_std).transforms
        order = [type(step).__name__ for step in chain]
        theirs = [step["type"] for step in variant["train_pipeline"]]
        assert theirs == [
            *("LoadImageFromFile", "LoadAnnotations", "RandomResize", "RandomCrop", "RandomFlip"),
            *("PhotoMetricDistortion", *(["Pad"] if "Pad" in steps else []), "PackSegInputs"),
        ]
        assert order[:4] == ["RandomResize", "RandomCrop", "RandomHorizontalFlip", "PhotometricDistortion"]
        assert (order.index("PadToSize") < order.index("Normalize")) == ("Pad" in steps)
        assert chain[1].ignore_index == steps["RandomCrop"]["ignore_index"]
        assert chain[2].p == steps["RandomFlip"]["prob"] and steps["RandomFlip"]["direction"] == "horizontal"
        assert steps["RandomFlip"]["swap_seg_labels"] is None
        assert get_benchmark(recipe.benchmark).flip_label_pairs == ()

    def test_schedule(self, name, variant):
        training = RECIPES[name].training
        batch = variant["batch_size"]
        assert training.batch_size == batch["total"] == batch["gpus"] * batch["per_gpu"]
        assert training.max_train_steps == variant["iterations"]
        assert training.eval_steps == variant["val_interval"]
        optimizer = build_optimizer(torch.nn.Conv2d(1, 1, 1), training)
        (group,) = optimizer.param_groups
        assert without(variant["optimizer"], "note") == {
            "type": type(optimizer).__name__,
            "lr": group["lr"],
            "momentum": group["momentum"],
            "weight_decay": group["weight_decay"],
            "nesterov": group["nesterov"],
            "dampening": group["dampening"],
            "clip_grad": training.max_grad_norm or None,
            "paramwise_cfg": None,
        }
        assert training.backbone_learning_rate_factor == 1 and training.warmup_steps == 0
        assert without(variant["lr_schedule"], "formula") == {
            "type": "PolyLR",
            "power": training.power,
            "eta_min": training.min_learning_rate,
            "begin": 0,
            "end": training.max_train_steps,
            "by_epoch": False,
            "warmup": None,
        }


def test_authors_recipes():
    """Against the account of their repository in reference/official.md."""
    plain, ohem, ccl = (RECIPES[f"ccnet-r101-cityscapes-authors{suffix}"] for suffix in ("", "-ohem", "-ccl"))
    config = plain.config()
    backbone = config.backbone_config
    assert (backbone.stem_size, backbone.pool_ceil_mode, backbone.contract_dilation) == (128, True, False)
    assert backbone.depths == [3, 4, 23, 3] and backbone.output_stride == 8
    assert (config.head_activation, config.auxiliary_channels, config.recurrence) == ("leaky_relu", 512, 2)
    assert config.align_corners and config.loss_reduction == "valid" and config.auxiliary_loss_weight == 0.4
    assert config.inference == {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]}
    assert config.ohem_threshold is None and config.category_consistent_loss_weight == 0
    training = plain.training
    assert (training.learning_rate, training.momentum, training.weight_decay) == (0.01, 0.9, 1e-4)
    assert (training.power, training.min_learning_rate, training.warmup_steps) == (0.9, 0.0, 0)
    assert (training.batch_size, training.max_train_steps, training.crop_size) == (8, 60000, (769, 769))
    assert (training.scale, training.ratio_range, training.ratio_step) == ((2048, 1024), (0.7, 2.1), 0.1)
    assert training.cat_max_ratio == 1.0 and not training.photometric_distortion
    assert ohem.training == ccl.training == training
    assert ohem.model == plain.model | {"ohem_threshold": 0.7, "ohem_min_kept": 100000}
    assert ccl.model == plain.model | {"category_consistent_loss_weight": 1.0}
    assert ccl.config().category_consistent_channels == 16


def test_paddleseg_recipe():
    """Against the account of its configuration in reference/paddleseg.md."""
    recipe = RECIPES["ccnet-r101-cityscapes-paddleseg"]
    config, training, processor = recipe.config(), recipe.training, recipe.image_processor()
    backbone = config.backbone_config
    assert (backbone.stem_size, backbone.depths, backbone.output_stride) == (64, [3, 4, 23, 3], 8)
    assert backbone.pooled_shortcut and not backbone.contract_dilation and not backbone.pool_ceil_mode
    assert (config.head_activation, config.attention_activation) == ("relu", "leaky_relu")
    assert (config.hidden_size, config.auxiliary_channels, config.recurrence) == (512, 512, 2)
    assert (config.ohem_rule, config.ohem_threshold, config.ohem_min_kept) == ("paddleseg", 0.7, 10_000)
    assert not config.align_corners and config.loss_reduction == "valid" and config.auxiliary_loss_weight == 0.4
    assert config.inference == {"mode": "whole", "average": "logits"}
    assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]
    assert processor.do_pad and dict(processor.pad_size) == {"height": 1025, "width": 2049}
    assert (training.learning_rate, training.momentum, training.weight_decay) == (0.01, 0.9, 4e-5)
    assert (training.power, training.min_learning_rate, training.warmup_steps) == (0.9, 1e-4, 0)
    assert (training.batch_size, training.max_train_steps, training.crop_size) == (8, 60_000, (769, 769))
    assert (training.scale, training.ratio_range, training.ratio_step) == ((2048, 1024), (0.5, 2.0), 0.25)
    assert training.cat_max_ratio == 1.0 and training.photometric_distortion and not training.max_grad_norm
    best = max(zoo_recipes(), key=lambda recipe: recipe.reported["mean_iou"])
    assert best is recipe and recipe.name not in SHORT_NAMES.values()


def test_parsing_recipes():
    """CE2P's network and training (beyond the paper's own words), with RCCA or with its own pyramid pooling."""
    ours, control = RECIPES["ccnet-r101-lip"], RECIPES["ce2p-r101-lip"]
    for recipe in (ours, control):
        config, training = recipe.config(), recipe.training
        assert type(config) is CCNetParsingConfig and recipe.task == "parsing" and config.num_labels == 20
        backbone = config.backbone_config
        assert (backbone.stem_size, backbone.output_stride, backbone.contract_dilation) == (128, 16, False)
        assert not backbone.pool_ceil_mode and backbone.depths == [3, 4, 23, 3]
        assert config.align_corners and config.head_activation == "leaky_relu"
        assert (config.parsing_loss_weight, config.edge_loss_weight) == (1, 1)
        assert training.crop_size == (473, 473) and training.letterbox and training.ratio_range == (0.75, 1.25)
        assert (training.batch_size, training.learning_rate, training.weight_decay) == (40, 7e-3, 5e-4)
        assert (training.momentum, training.power, training.min_learning_rate) == (0.9, 0.9, 0.0)
        assert not training.photometric_distortion and training.warmup_steps == 0
        epochs = training.max_train_steps * training.batch_size / get_benchmark("lip").num_examples["train"]
        assert epochs == pytest.approx(150, abs=1)
        processor = recipe.image_processor()
        assert processor.do_letterbox and dict(processor.size) == {"height": 473, "width": 473}
    assert (ours.config().context_module, control.config().context_module) == ("rcca", "pyramid")
    assert (ours.config().recurrence, ours.config().category_consistent_loss_weight) == (2, 1)
    assert control.config().category_consistent_loss_weight == 0
    assert ours.training == control.training


def test_published_parsing_recipes():
    sides = {"schp-lip": 473, "schp-atr": 512, "schp-pascal": 512, "ce2p-lip": 384}
    classes = {"schp-lip": 20, "schp-atr": 18, "schp-pascal": 7, "ce2p-lip": 20}
    for name, side in sides.items():
        recipe = RECIPES[name]
        assert recipe.config().num_labels == classes[name] and recipe.config().context_module == "pyramid"
        assert recipe.training.crop_size == (side, side)
        assert dict(recipe.image_processor().size) == {"height": side, "width": side}
        normal = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        swapped = tuple(values[::-1] for values in normal)  # CE2P takes red's constants for blue
        assert (recipe.image_mean, recipe.image_std) == (swapped if name == "ce2p-lip" else normal)
    released = RECIPES["ce2p-lip"].training
    assert (released.batch_size, released.learning_rate) == (96, 1e-3)
    assert released.max_train_steps * 96 / 30462 == pytest.approx(150, abs=0.1)


@pytest.mark.parametrize("name", ["lip", "atr", "pascal-person-part"])
def test_left_and_right_change_places(name):
    benchmark = get_benchmark(name)
    pairs = {frozenset(pair) for pair in benchmark.flip_label_pairs}
    names = {label: index for index, label in enumerate(benchmark.class_names)}
    assert pairs == {
        frozenset((index, names[label.replace("Left", "Right")]))
        for label, index in names.items()
        if label.startswith("Left")
    }
    assert flip_label_pairs(benchmark.id2label) == benchmark.flip_label_pairs
    assert len(benchmark.palette) == benchmark.num_labels == len(set(benchmark.palette))


@pytest.mark.parametrize("name", [name for name in RECIPES if "mobilenet" not in name and "efficientnet" not in name])
def test_every_recipe_builds_its_config_processor_and_transforms(name):
    recipe = RECIPES[name]
    assert recipe.config().num_labels == get_benchmark(recipe.benchmark).num_labels
    if recipe.task == "instance":
        assert recipe.image_processor().size == {"shortest_edge": 800, "longest_edge": 1333}
    else:
        assert recipe.image_processor().align_corners == recipe.config().align_corners
        training_transforms(recipe.training, recipe.image_mean, recipe.image_std)
    if recipe.backbone_terms is None:
        assert recipe.backbone_checkpoint.startswith(f"timm/resnet{50 if '-r50-' in name else 101}")


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "voc12aug"])
def test_benchmark(name, zoo):
    benchmark, expected = get_benchmark(name), zoo["datasets"][name]
    assert benchmark.num_labels == expected["num_classes"]
    assert [list(colour) for colour in benchmark.palette] == expected["palette_rgb"]
    assert benchmark.ignore_index == expected["ignore_index"]
    assert benchmark.num_examples["train"] == expected["num_images"]["train"]
    assert benchmark.num_examples["validation"] == expected["num_images"]["val"]


def test_short_names_are_the_best_single_scale_variants():
    assert len(SHORT_NAMES) == 6
    for short_name, name in SHORT_NAMES.items():
        rivals = [RECIPES[rival] for rival in ZOO_NAMES if rival.startswith(f"{short_name}-")]
        assert name == max(rivals, key=lambda recipe: recipe.reported["mean_iou"]).name
        assert get_recipe(short_name) is RECIPES[name]


def test_demo_recipes_differ_in_the_recurrence_only():
    demo, control = (RECIPES[name] for name in ("ccnet-mobilenetv2-camvid", "ccnet-mobilenetv2-camvid-r0"))
    assert (demo.model["recurrence"], control.model["recurrence"]) == (2, 0)
    assert demo.model | {"recurrence": 0} == control.model
    assert demo.training == control.training
    assert demo.benchmark == control.benchmark == "camvid"


def test_modern_recipes():
    """Against mmsegmentation's configs of UperNet on these backbones (of MAE's ViT for DINOv3's)."""
    convnext, dinov3, swin = (
        RECIPES[f"ccnet-{name}"] for name in ("convnext-tiny-ade20k", "dinov3-vits-ade20k", "swin-tiny-cityscapes")
    )
    for recipe in (convnext, dinov3, swin):
        training = recipe.training
        assert (training.optimizer, training.decay_norms_and_biases) == ("adamw", False)
        assert (training.power, training.min_learning_rate, training.warmup_steps) == (1.0, 0.0, 1500)
        assert training.max_train_steps == 160_000
        assert training.batch_size * training.crop_size[0] * training.crop_size[1] == 16 * 512 * 512
        assert 0.999 < training.ema_decay < 1 and training.max_grad_norm > 0
    rates = [
        (r.training.learning_rate, r.training.weight_decay, r.training.layer_decay) for r in (convnext, dinov3, swin)
    ]
    assert rates == [(1e-4, 0.05, 0.9), (1e-4, 0.05, 0.65), (6e-5, 0.01, 1.0)]
    drop_paths = [recipe.config().backbone_config.drop_path_rate for recipe in (convnext, dinov3, swin)]
    assert drop_paths == [0.4, 0.1, 0.3]


def test_configs_of_one_recipe_are_independent():
    recipe = RECIPES[ZOO_NAMES[0]]
    first = recipe.config()
    first.backbone_config.depths[0] = 99
    assert recipe.config().backbone_config.depths[0] == 3


def test_a_wrong_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"ccnet-r50.*ccnet-r101-voc12aug-512x512-40k"):
        get_recipe("ccnet-r50")
    with pytest.raises(ValueError, match="camvid"):
        get_benchmark("coco-stuff")
    prepared = {"cityscapes", "ade20k", "voc12aug", "lip", "camvid"}
    assert set(BENCHMARKS) == prepared | {"atr", "pascal-person-part"}
    assert {benchmark.name for benchmark in prepared_benchmarks()} == prepared


def with_value(recipe: TrainingRecipe, name: str, value) -> TrainingRecipe:
    """A recipe with another value, a tuple for a list."""
    return dataclasses.replace(recipe, **{name: tuple(value) if isinstance(value, list) else value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_size", [769]),
        ("crop_size", [769, 0]),
        ("crop_size", [769.0, 769]),
        ("scale", [1024, 2048]),
        ("scale", 1024),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("max_train_steps", 0),
        ("eval_steps", -1),
        ("ratio_range", [2.0, 0.5]),
        ("ratio_range", [0, 1]),
        ("ratio_step", -0.1),
        ("cat_max_ratio", 0.0),
        ("cat_max_ratio", 1.1),
        ("letterbox", 1),
        ("photometric_distortion", "no"),
        ("pad_before_normalization", 1),
        ("optimizer", "lion"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "0.1"),
        ("min_learning_rate", -1e-4),
        ("power", -1),
        ("momentum", 1.0),
        ("weight_decay", float("inf")),
        ("warmup_steps", 1.5),
        ("warmup_start", 1.5),
        ("decay_steps", [0]),
        ("frozen_modules", [3]),
        ("group_by_shape", 1),
        ("max_grad_norm", -1),
        ("backbone_learning_rate_factor", -0.1),
        ("decay_norms_and_biases", 0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
    ],
)
def test_wrong_training_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .*, got "):
        with_value(RECIPES[ZOO_NAMES[0]].training, field, value)


def test_every_training_field_is_checked():
    cases = test_wrong_training_values_are_refused_by_name.pytestmark[0].args[1]
    assert {field for field, _ in cases} == {field.name for field in dataclasses.fields(TrainingRecipe)}
