"""The recipe table against the resolved configs of mmsegmentation, field by field."""

import json

import pytest

from ccnet_hf.data import BENCHMARKS, get_benchmark
from ccnet_hf.recipes import RECIPES, SHORT_NAMES, get_recipe


ZOO_NAMES = [name for name, recipe in RECIPES.items() if recipe.checkpoint_file]


@pytest.fixture(scope="session")
def zoo(shared_dir) -> dict:
    return json.loads((shared_dir / "reference" / "zoo.json").read_text())


@pytest.fixture
def variant(zoo, request) -> dict:
    """The entry of zoo.json that belongs to the recipe named by the parameter."""
    recipe = RECIPES[request.param]
    (entry,) = (entry for entry in zoo["variants"] if entry["mmseg_config"] == recipe.mmseg_config)
    return entry


def transforms(pipeline: list[dict]) -> dict[str, dict]:
    return {step["type"]: step["params"] for step in pipeline}


def test_there_are_16_zoo_variants_and_two_demo_recipes(zoo):
    assert {RECIPES[name].mmseg_config for name in ZOO_NAMES} == {entry["mmseg_config"] for entry in zoo["variants"]}
    assert len(ZOO_NAMES) == 16
    assert set(RECIPES) - set(ZOO_NAMES) == {"ccnet-mobilenetv2-camvid", "ccnet-mobilenetv2-camvid-r0"}


@pytest.mark.parametrize(("name", "variant"), [(name, name) for name in ZOO_NAMES], indirect=["variant"])
class TestZooRecipe:
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

    def test_model(self, name, variant):
        config = RECIPES[name].config()
        backbone, head, auxiliary = variant["backbone"], variant["decode_head"], variant["auxiliary_head"]
        assert list(config.backbone_config.depths) == backbone["stage_blocks"]
        assert config.backbone_config.stem_size == backbone["stem_channels"]
        assert list(config.backbone_config.hidden_sizes) == [256, 512, 1024, head["in_channels"]]
        # strides (1, 2, 1, 1) after a stem of stride 4
        assert config.backbone_config.output_stride == 8
        assert config.backbone_config.contract_dilation == backbone["contract_dilation"]
        assert config.backbone_config.pool_ceil_mode is False
        assert list(config.backbone_config.out_features) == ["stage3", "stage4"]
        assert (auxiliary["in_index"], head["in_index"]) == (2, 3)

        assert config.num_labels == head["num_classes"] == auxiliary["num_classes"]
        assert config.hidden_size == head["channels"]
        assert config.query_key_size in (None, head["attention"]["query_key_channels"])
        assert config.recurrence == head["recurrence"]
        assert config.head_activation == head["act_cfg"]["type"].lower()
        assert config.concat_input == head["concat_input"]
        assert config.classifier_dropout_prob == head["dropout_ratio"] == auxiliary["dropout_ratio"]
        assert config.use_auxiliary_head
        assert config.auxiliary_channels == auxiliary["channels"]
        assert config.auxiliary_loss_weight == auxiliary["loss"]["loss_weight"]
        assert config.align_corners == head["align_corners"] == auxiliary["align_corners"]
        assert config.semantic_loss_ignore_index == head["ignore_index"]
        assert (config.loss_reduction == "valid") == head["loss"]["avg_non_ignore"]
        assert head["sampler"] is None and auxiliary["sampler"] is None  # plain cross entropy
        assert config.initializer_range == 0.01 and head["init"]["conv_seg"] == "Normal(mean=0, std=0.01), bias 0"

        test = variant["test_cfg"]
        expected = {"mode": test["mode"]}
        if test["mode"] == "slide":
            expected |= {"crop_size": test["crop_size_hw"], "stride": test["stride_hw"]}
        assert config.inference == expected

    def test_class_names(self, name, variant, zoo):
        config = RECIPES[name].config()
        # mmsegmentation's list has a stray blank behind "bed"
        names = [label.strip() for label in zoo["datasets"][variant["dataset"]]["classes"]]
        assert [config.id2label[index] for index in range(config.num_labels)] == names
        assert config.label2id == {label: index for index, label in enumerate(names)}

    def test_image_processor(self, name, variant, zoo):
        recipe = RECIPES[name]
        processor = recipe.image_processor()
        long, short = transforms(variant["test_pipeline"])["Resize"]["scale"]
        assert dict(processor.size) == {"shortest_edge": short, "longest_edge": long}
        preprocessor = variant["data_preprocessor"]
        assert [255 * value for value in processor.image_mean] == pytest.approx(preprocessor["mean"], rel=1e-12)
        assert [255 * value for value in processor.image_std] == pytest.approx(preprocessor["std"], rel=1e-12)
        assert processor.rescale_factor == 1 / 255
        assert processor.do_resize and processor.do_rescale and processor.do_normalize
        assert processor.do_reduce_labels == zoo["datasets"][variant["dataset"]]["reduce_zero_label"]
        assert processor.align_corners == variant["decode_head"]["align_corners"]
        assert [list(colour) for colour in processor.palette] == zoo["datasets"][variant["dataset"]]["palette_rgb"]
        assert list(recipe.tta_ratios) == variant["tta"]["ratios"]

    def test_training(self, name, variant):
        training = RECIPES[name].training
        steps = transforms(variant["train_pipeline"])
        assert list(training.crop_size) == variant["crop_size_hw"] == steps["RandomCrop"]["crop_size"]
        assert training.cat_max_ratio == steps["RandomCrop"]["cat_max_ratio"]
        assert list(training.scale) == steps["RandomResize"]["scale"]
        assert list(training.ratio_range) == steps["RandomResize"]["ratio_range"]
        assert training.photometric_distortion == ("PhotoMetricDistortion" in steps)
        assert training.pad_before_normalization == ("Pad" in steps)
        assert training.batch_size == variant["batch_size"]["total"]
        assert training.max_train_steps == variant["iterations"] == variant["lr_schedule"]["end"]
        assert training.eval_steps == variant["val_interval"]
        optimizer, schedule = variant["optimizer"], variant["lr_schedule"]
        assert training.optimizer == optimizer["type"].lower()
        assert training.learning_rate == optimizer["lr"]
        assert training.momentum == optimizer["momentum"]
        assert training.weight_decay == optimizer["weight_decay"]
        assert training.max_grad_norm is optimizer["clip_grad"] is None
        assert training.backbone_learning_rate_factor == 1 and optimizer["paramwise_cfg"] is None
        assert training.min_learning_rate == schedule["eta_min"]
        assert training.power == schedule["power"]
        assert training.warmup_steps == 0 and schedule["warmup"] is None


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
    assert set(BENCHMARKS) == {"cityscapes", "ade20k", "voc12aug", "camvid"}
