"""Mask R-CNN the way transformers' users meet it; its numbers against torchvision are in tests/zoo."""

import copy

import pytest
import torch
from model_cases import ModelTests
from tiny_models import tiny_backbone_config, tiny_instance_config, tiny_instance_model
from torch import nn
from transformers import (
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    ConvNextConfig,
    Trainer,
    TrainingArguments,
)

from ccnet_hf import CCNetBackboneConfig, CCNetForInstanceSegmentation, CCNetInstanceConfig, CCNetResNetConfig


HEIGHT, WIDTH = 96, 160
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def objects(*boxes: tuple[float, float, float, float], height: int = HEIGHT, width: int = WIDTH) -> dict:
    """Labels of one picture: rectangles (left, top, right, bottom) in pixels, of class 1, 2, ..."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scale = torch.tensor([width, height, width, height])
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, corners.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return {
        "class_labels": torch.arange(1, len(boxes) + 1),
        "boxes": torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1) / scale,
        "masks": masks,
    }


@pytest.fixture
def labels():
    return [objects((8, 8, 40, 72), (64, 16, 144, 80)), objects((16, 32, 120, 90))]


# --- outputs -------------------------------------------------------------------------------------------------------


def test_detections_are_sorted_and_padded(pixel_values):
    model = tiny_instance_model(box_detections_per_img=40)
    with torch.no_grad():
        threshold = model(pixel_values).scores[:, 20].min().item()
        model.roi_heads.score_thresh = threshold
        outputs = model(pixel_values)
    assert set(outputs.keys()) == {"scores", "class_labels", "pred_boxes", "pred_masks"}
    assert outputs.scores.shape == outputs.class_labels.shape == (2, 40)
    assert outputs.pred_boxes.shape == (2, 40, 4) and outputs.pred_masks.shape == (2, 40, 28, 28)
    numbers = (outputs.scores > 0).sum(dim=1)
    assert 0 < numbers.min() < 40
    for index, number in enumerate(numbers):
        scores, padding = outputs.scores[index, :number], outputs.scores[index, number:]
        assert (scores.diff() <= 0).all() and scores.min() > threshold and (padding == 0).all()
        assert (outputs.class_labels[index, :number] >= 1).all() and (outputs.class_labels[index, number:] == 0).all()
        assert (outputs.pred_boxes[index, number:] == 0).all() and (outputs.pred_masks[index, number:] == 0).all()
        center, size = outputs.pred_boxes[index, :number].split(2, dim=1)
        assert (center - size / 2 > -1e-6).all() and (center + size / 2 < 1 + 1e-6).all() and (size > 0).all()
    assert 0 <= outputs.pred_masks.min() and outputs.pred_masks.max() <= 1
    as_tuple = model(pixel_values, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.scores)


def test_training_gives_losses_and_reaches_every_weight(pixel_values, labels):
    model = tiny_instance_model().train()
    outputs = model(pixel_values, labels=labels)
    assert set(outputs.keys()) == {"loss", "loss_dict"} and set(outputs.loss_dict) == LOSSES
    assert all(loss > 0 for loss in outputs.loss_dict.values())
    torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_a_training_lowers_the_loss(pixel_values, labels):
    torch.manual_seed(0)
    model = CCNetForInstanceSegmentation(tiny_instance_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-3:]) < min(losses[:3])


def test_evaluation_with_labels_gives_both_and_disturbs_no_random_numbers(pixel_values, labels):
    model = tiny_instance_model()
    expected = model(pixel_values)
    state = torch.get_rng_state()
    first, second = (model(pixel_values, labels=labels) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(first.keys()) == {"loss", "loss_dict", *expected.keys()} and set(first.loss_dict) == LOSSES
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    assert not model.rpn.training and not model.roi_heads.training


def test_training_mode_without_labels_gives_detections(pixel_values):
    model = tiny_instance_model(backbone_config=frozen_backbone())
    expected = model(pixel_values)
    outputs = model.train()(pixel_values)
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)
    assert model.rpn.training and model.roi_heads.training


def frozen_backbone(**kwargs):
    return tiny_backbone_config(
        stem_type="conv7",
        output_stride=32,
        attention_stage="stage3",
        frozen_batch_norm=True,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **kwargs,
    )


class TestCCNetForInstanceSegmentation(ModelTests):
    model_class = CCNetForInstanceSegmentation
    auto_class = AutoModelForInstanceSegmentation

    def build(self, **options):
        return tiny_instance_model(**options)

    def inputs(self):
        pixel_values = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
        return {
            "pixel_values": pixel_values,
            "labels": [objects((8, 8, 40, 72), (64, 16, 144, 80)), objects((16, 32, 120, 90))],
        }


# --- padding -------------------------------------------------------------------------------------------------------


def test_an_image_of_any_size_and_its_padded_form_are_the_same():
    torch.manual_seed(2)
    model = tiny_instance_model()
    image = torch.randn(1, 3, 75, 130)
    padded = nn.functional.pad(image, (0, 160 - 130, 0, 96 - 75))
    mask = torch.zeros(1, 96, 160, dtype=torch.int64)
    mask[:, :75, :130] = 1
    with torch.no_grad():
        expected, found = model(image), model(padded, pixel_mask=mask)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_boxes_are_fractions_of_the_image_without_its_padding():
    model = tiny_instance_model()
    image = torch.zeros(1, 3, 96, 160)
    mask = torch.zeros(1, 96, 160, dtype=torch.int64)
    mask[:, :64, :96] = 1
    with torch.no_grad():
        boxes = model(image, pixel_mask=mask).pred_boxes[0]
    assert (boxes[:, :2] + boxes[:, 2:] / 2).max() == pytest.approx(1, abs=1e-6)


def test_earlier_images_and_padding_do_not_change_what_regions_are_seen_at():
    """torchvision guesses the strides once, from the first images and their sizes without padding."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    canvas = torch.zeros(1, 3, 256, 256)
    canvas[..., :64, :64] = image
    mask = torch.zeros(1, 256, 256, dtype=torch.int64)
    mask[:, :64, :64] = 1
    model = tiny_instance_model()
    with torch.no_grad():
        expected = model(image)
        first = tiny_instance_model()(canvas, pixel_mask=mask)
        model(canvas, pixel_mask=mask)
        later = model(image)
    assert all(torch.equal(later[name], expected[name]) for name in expected)
    assert tiny_instance_model().roi_heads.box_roi_pool.scales is None
    fresh = tiny_instance_model()
    fresh(canvas, pixel_mask=mask)
    assert (
        fresh.roi_heads.box_roi_pool.scales == fresh.roi_heads.mask_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    )
    assert (first.scores > 0).any()


def test_a_mask_that_does_not_fit_is_refused(pixel_values):
    model = tiny_instance_model()
    with pytest.raises(ValueError, match=r"pixel_mask must be of shape \(2, 96, 160\)"):
        model(pixel_values, pixel_mask=torch.ones(1, 96, 160))
    with pytest.raises(ValueError, match="an image without pixels"):
        model(pixel_values, pixel_mask=torch.zeros(2, 96, 160))


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"head_batch_norm": True, "rpn_num_convolutions": 2, "box_num_convolutions": 2}]
)
def test_no_object_trains_the_background_only(pixel_values, fields):
    model = tiny_instance_model(**fields).train()
    outputs = model(pixel_values, labels=[objects(), objects()])
    for name in ("loss_rpn_box_reg", "loss_box_reg", "loss_mask"):
        assert outputs.loss_dict[name] == 0
    assert outputs.loss_dict["loss_objectness"] > 0 and outputs.loss_dict["loss_classifier"] > 0
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.roi_heads.mask_head.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    assert all(
        loss.isfinite() for loss in model(pixel_values, labels=[objects((8, 8, 60, 60)), objects()]).loss_dict.values()
    )


def test_crowds_and_boxes_without_area_do_not_count(pixel_values, labels):
    model = tiny_instance_model()
    expected = model(pixel_values, labels=labels).loss_dict
    first, second = copy.deepcopy(labels)
    extra = objects((0, 0, 160, 96), (50, 20, 50, 60), (200, 20, 230, 60))
    for name, values in extra.items():
        first[name] = torch.cat([values[:2], first[name], values[2:]])
    first["iscrowd"] = torch.tensor([1, 0, 0, 0, 0])
    second["iscrowd"] = torch.tensor([0])
    found = model(pixel_values, labels=[first, second]).loss_dict
    assert all(torch.equal(found[name], expected[name]) for name in LOSSES)


def test_boxes_are_fractions_of_the_size_that_the_labels_state():
    """As of the image they are without one; DETR's image processor pads, and states the padded size."""
    model = tiny_instance_model()
    images = torch.randn(2, 3, 128, 256, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 128, 256, dtype=torch.int64)
    mask[:, :64, :128] = 1
    boxes = ((8, 8, 40, 56), (60, 16, 116, 60))
    unpadded, padded = objects(*boxes, height=64, width=128), objects(*boxes, height=128, width=256)
    expected = model(images, pixel_mask=mask, labels=[unpadded, unpadded]).loss_dict
    stated = [unpadded | {"size": torch.tensor([64, 128])}, padded | {"size": torch.tensor([128, 256])}]
    found = model(images, pixel_mask=mask, labels=stated).loss_dict
    assert all(torch.equal(found[name], expected[name]) for name in LOSSES)
    wrong = model(images, pixel_mask=mask, labels=[padded, padded]).loss_dict
    assert not torch.equal(wrong["loss_box_reg"], expected["loss_box_reg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": torch.tensor([0, 1])}, "class_labels must be from 1 to 4, 0 is the background; got 0"),
        ({"class_labels": torch.tensor([1, 5])}, "class_labels must be from 1 to 4, 0 is the background; got 5"),
        ({"class_labels": torch.tensor([1])}, "as many class_labels, boxes and masks, got 1, 2, 2"),
        ({"masks": torch.zeros(2, 50, 60)}, r"masks must be of size \(96, 160\), .* got \(50, 60\)"),
        ({"masks": None}, "labels must have class_labels, boxes and masks; masks is missing"),
        ({"masks": [1, 2]}, "masks of labels must be a tensor, got list"),
        ({"class_labels": torch.tensor([1, 1.9])}, "class_labels must be whole numbers, got 1.9"),
        ({"boxes": torch.full((2, 4), float("nan"))}, r"boxes must be .* as fractions .*, got \[nan, nan, nan, nan\]"),
        ({"boxes": torch.full((2, 4), 20.0)}, r"boxes must be .* as fractions .* not in pixels, got \[20.0"),
        ({"boxes": torch.full((2, 5), 0.5)}, r"boxes must be of shape \(n, 4\), got \(2, 5\)"),
    ],
)
def test_labels_that_make_no_sense_are_refused(pixel_values, labels, change, message):
    labels[0] = {name: value for name, value in (labels[0] | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tiny_instance_model()(pixel_values, labels=labels)


@pytest.mark.parametrize("masks", [torch.uint8, torch.float32])
def test_masks_of_0_and_255_are_those_of_0_and_1(pixel_values, labels, masks):
    model = tiny_instance_model()
    expected = model(pixel_values, labels=labels).loss_dict
    large = [label | {"masks": label["masks"].to(masks) * 255} for label in labels]
    found = model(pixel_values, labels=large).loss_dict
    assert all(torch.equal(found[name], expected[name]) for name in LOSSES)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"pixel_values must be \(batch, .* got shape \(3, 64, 64\)"),
        ({"pixel_values": torch.zeros(1, 1, 3, 64, 64)}, r"pixel_values must be .* got shape \(1, 1, 3, 64, 64\)"),
        ({"pixel_values": torch.zeros(0, 3, 64, 64)}, "pixel_values must be .* with pixels"),
        ({"pixel_mask": [1]}, r"pixel_mask must be of shape \(1, 64, 64\), .* got list"),
        ({"labels": [None]}, "labels must be a list of one dictionary per image, got NoneType"),
        ({"labels": torch.zeros(1)}, "labels must be a list of one dictionary per image, got Tensor"),
    ],
)
def test_inputs_of_other_shapes_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_instance_model()(**{"pixel_values": torch.zeros(1, 3, 64, 64), **inputs})


def test_labels_of_another_number_of_images_are_refused(pixel_values, labels):
    with pytest.raises(ValueError, match="one dictionary per image, got 1 for 2"):
        tiny_instance_model()(pixel_values, labels=labels[:1])


# --- precision -----------------------------------------------------------------------------------------------------


def boxes_and_outputs(model, run) -> tuple[set, dict]:
    """dtypes of the anchors and the proposals while `run` runs, and what it returns."""
    dtypes = set()
    handles = [
        model.rpn.anchor_generator.register_forward_hook(
            lambda module, arguments, output: dtypes.update(anchors.dtype for anchors in output)
        ),
        model.rpn.register_forward_hook(
            lambda module, arguments, output: dtypes.update(proposals.dtype for proposals in output[0])
        ),
    ]
    outputs = run()
    for handle in handles:
        handle.remove()
    return dtypes, outputs


def test_autocast_keeps_boxes_and_losses_in_full_precision(pixel_values, labels):
    model = tiny_instance_model()
    expected = model(pixel_values, labels=labels)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(pixel_values, labels=labels)

    dtypes, outputs = boxes_and_outputs(model, run)
    assert dtypes == {torch.float32}
    assert outputs.loss.dtype == outputs.scores.dtype == outputs.pred_boxes.dtype == torch.float32
    assert model.rpn.head(list(model.fpn(features(model, pixel_values)).values()))[0][0].dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.1, atol=0)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(pixel_values, labels=labels).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def features(model, pixel_values):
    return {str(level): feature for level, feature in enumerate(model.backbone(pixel_values).feature_maps)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_precision(pixel_values, labels, dtype):
    model = tiny_instance_model().to(dtype)
    dtypes, outputs = boxes_and_outputs(model, lambda: model(pixel_values.to(dtype), labels=labels))
    assert dtypes == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert all(loss.isfinite() for loss in outputs.loss_dict.values())
    outputs.loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {dtype}


# --- transformers' conventions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auto_class", [AutoModelForInstanceSegmentation, AutoModelForImageSegmentation, AutoModelForObjectDetection]
)
def test_auto_classes(tmp_path, auto_class, pixel_values):
    model = tiny_instance_model()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is CCNetForInstanceSegmentation
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    assert loaded.config.backbone_config.attention_stage == "stage3" and loaded.config.anchor_sizes[-1] == 512
    with torch.no_grad():
        expected, found = model(pixel_values), loaded(pixel_values)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loading_freezes_batch_norms_without_a_word(tmp_path, caplog):
    tiny_instance_model().save_pretrained(tmp_path)
    loaded = CCNetForInstanceSegmentation.from_pretrained(tmp_path, backbone_config=frozen_backbone(), label2id=None)
    assert caplog.text == ""
    assert not any("num_batches_tracked" in name for name, _ in loaded.named_buffers())


def test_a_fresh_head_on_saved_weights(tmp_path):
    """Other classes: what the predictors had is not taken, and they start as a new model's do."""
    tiny_instance_model().save_pretrained(tmp_path)
    loaded = CCNetForInstanceSegmentation.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    predictor = loaded.roi_heads.box_predictor
    assert predictor.cls_score.weight.shape == (3, 32) and predictor.cls_score.weight.std() < 0.2
    assert (predictor.cls_score.bias == 0).all() and loaded.roi_heads.mask_predictor.mask_fcn_logits.bias.shape == (3,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_any_backbone(pixel_values, labels, wrapped):
    config = ConvNextConfig(hidden_sizes=[8, 16, 24], depths=[1] * 3, out_features=["stage2", "stage3"], num_stages=3)
    if wrapped:
        config = CCNetBackboneConfig(backbone_config=config, attention_stage="stage3")
    model = CCNetForInstanceSegmentation(
        tiny_instance_config(backbone_config=config, anchor_sizes=[16, 32, 64], box_score_thresh=0.0)
    )
    model.train()(pixel_values, labels=labels).loss.backward()
    if wrapped:
        assert model.backbone.attention.gamma.grad.item() != 0
    assert model.roi_heads.box_roi_pool.scales == [1 / 8, 1 / 16]
    assert (model.eval()(pixel_values).scores > 0).any()


def test_transformers_trainer_trains_and_evaluates(tmp_path, pixel_values, labels):
    def collate(examples):
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": [example["labels"] for example in examples],
        }

    examples = [
        dict(zip(("pixel_values", "labels"), pair, strict=True)) for pair in zip(pixel_values, labels, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
    )
    trainer = Trainer(
        model=tiny_instance_model(),
        args=arguments,
        data_collator=collate,
        train_dataset=examples,
        eval_dataset=examples,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


# --- configuration -------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers():
    config = CCNetInstanceConfig(num_labels=91)
    backbone = config.backbone_config
    backbone.frozen_batch_norm = True
    assert (backbone.depths, backbone.stem_type, backbone.output_stride) == ([3, 4, 6, 3], "conv7", 32)
    assert (backbone.attention_stage, backbone.attention_position) == ("stage3", "before_last_block")
    with torch.device("meta"):
        attended = CCNetForInstanceSegmentation(config)
        plain_config = copy.deepcopy(config)
        plain_config.backbone_config.attention_stage = None
        plain = CCNetForInstanceSegmentation(plain_config)
    assert plain.num_parameters() == 44_401_393  # as torchvision states it
    assert attended.num_parameters() - plain.num_parameters() == 1_312_001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 1}, "num_labels must be at least 2, the background and a class, got 1"),
        ({"num_labels": 10**9}, "num_labels must be at most 65,536"),
        ({"num_labels": None, "id2label": {1: "person", 3: "car"}}, r"id2label must name the labels 0 to 1"),
        ({"box_score_thresh": 1.5}, r"box_score_thresh must be in \[0, 1\], got 1.5"),
        ({"rpn_positive_fraction": float("nan")}, "rpn_positive_fraction must be in"),
        ({"box_detections_per_img": 0}, "box_detections_per_img must be at least 1, got 0"),
        ({"fpn_channels": 10**9}, "fpn_channels must be at most 8,192, got 1000000000"),
        ({"box_num_convolutions": -1}, "box_num_convolutions must be at least 0, got -1"),
        ({"anchor_sizes": []}, "anchor_sizes must be positive numbers, at least one"),
        ({"anchor_aspect_ratios": [0.5, 0.0]}, "anchor_aspect_ratios must be positive numbers"),
        ({"anchor_aspect_ratios": [float("nan")]}, r"anchor_aspect_ratios must be positive numbers, .* got \[nan\]"),
        ({"anchor_aspect_ratios": [1.0] * 10**6}, "anchor_aspect_ratios must be .* at least one and at most 100"),
        ({"anchor_sizes": [10**9]}, r"anchor_sizes must be .* of at most 65,536, got \[1000000000\]"),
        ({"rpn_num_convolutions": 10**9}, "rpn_num_convolutions must be at most 100, got 1000000000"),
        ({"box_num_convolutions": 10**9}, "box_num_convolutions must be at most 100, got 1000000000"),
        ({"mask_num_convolutions": 10**9}, "mask_num_convolutions must be at most 100, got 1000000000"),
        ({"mask_pool_size": 10**5}, "mask_pool_size must be at most 256, got 100000"),
        ({"box_detections_per_img": 10**9}, "box_detections_per_img must be at most 10,000, got 1000000000"),
        ({"rpn_pre_nms_top_n_test": 10**30}, "rpn_pre_nms_top_n_test must be at most 1,000,000, got 10"),
        ({"box_batch_size_per_image": 10**30}, "box_batch_size_per_image must be at most 1,000,000, got 10"),
        ({"rpn_bg_iou_thresh": 0.8}, "rpn_bg_iou_thresh must not exceed rpn_fg_iou_thresh, got 0.8 and 0.7"),
        ({"backbone_config": {"model_type": "mine"}}, "got 'mine'"),
    ],
)
def test_wrong_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_instance_config(**fields)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("fpn_chanels", 128, "fpn_channels"),
        ("box_nms_tresh", 0.3, "box_nms_thresh"),
        ("anchor_size", [8], "anchor_sizes"),
        ("num_classes", 91, "num_labels"),
        ("backbone", "resnet50", "backbone_config"),
        ("attention_stage", "stage4", "backbone_config"),
        ("recurrence", 0, "backbone_config"),
        ("reccurence", 1, "backbone_config"),
    ],
)
def test_names_that_look_like_a_field_are_refused_with_it(name, value, meant):
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetInstanceConfig(**{name: value})
    with pytest.raises(ValueError, match=f"no argument '{name}'; did you mean {meant}"):
        CCNetInstanceConfig.from_dict(tiny_instance_config().to_dict(), **{name: value})


def test_files_of_other_versions_load():
    later = tiny_instance_config().to_dict() | {"fpn_chanels": "many", "box_kind": "rotated", "project": "mine"}
    config = CCNetInstanceConfig.from_dict(later)
    assert (config.fpn_chanels, config.box_kind, config.project) == ("many", "rotated", "mine")
    assert CCNetInstanceConfig.from_dict(copy.deepcopy(config).to_dict()).to_dict() == config.to_dict()
    assert CCNetInstanceConfig(ignore_index=255).ignore_index == 255  # means nothing here, and looks like nothing


def test_a_backbone_that_names_no_feature_map_gives_as_many_as_there_are_anchors():
    for sizes, first in (([8, 16, 32, 64, 128], 1), ([8, 16, 32], 3)):
        config = CCNetInstanceConfig(backbone_config=CCNetResNetConfig(depths=[3, 4, 6, 3]), anchor_sizes=sizes)
        assert config.backbone_config.out_features == [f"stage{index}" for index in range(first, 5)]


def test_what_is_set_later_is_refused_with_the_model():
    config = tiny_instance_config()
    config.num_labels = 1
    with pytest.raises(ValueError, match="num_labels must be at least 2, the background and a class"):
        CCNetForInstanceSegmentation(config)


def test_what_is_given_while_loading_is_checked(tmp_path):
    tiny_instance_config().save_pretrained(tmp_path)
    config = CCNetInstanceConfig.from_pretrained(tmp_path, box_nms_thresh=0.3, num_labels=7)
    assert (config.box_nms_thresh, config.num_labels) == (0.3, 7)
    assert CCNetInstanceConfig.from_pretrained(tmp_path, id2label={"0": "none", "1": "car"}).id2label[1] == "car"
    for name, value in (("box_nms_thresh", 7), ("num_labels", 10**9), ("num_labels", 1), ("fpn_channels", 0)):
        with pytest.raises(ValueError, match=name):
            CCNetInstanceConfig.from_pretrained(tmp_path, **{name: value})
    with pytest.raises(ValueError, match=r"id2label must name the labels 0 to 1, got \[1, 3\]"):
        CCNetInstanceConfig.from_pretrained(tmp_path, id2label={1: "person", 3: "car"})


def test_anchors_that_do_not_go_with_the_backbone_are_refused():
    with pytest.raises(ValueError, match=r"anchor_sizes must be 5, .* got \[32, 64\]"):
        CCNetForInstanceSegmentation(tiny_instance_config(anchor_sizes=[32, 64]))
