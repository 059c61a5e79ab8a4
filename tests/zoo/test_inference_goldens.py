"""Preprocessing, sliding windows and multi-scale with flip against mmsegmentation."""

import numpy as np
import pytest
import torch
from golden_files import assert_close, assert_same_statistics, load_golden
from torch import nn
from transformers import AutoImageProcessor

from ccnet_hf.inference import Predictor, predict_logits
from ccnet_hf.models.image_transforms_ccnet import rescale_output_size, resize_output_size


FORWARD_TOLERANCE = {50: 2e-5, 101: 2e-4}
# A probability changes as much as its logit, and the logits reach into the tens.
PROBABILITY_FACTOR = 20
SLIDES = [(50, "r50_c19_1x3x65x97_slide"), (101, "r101_c150_2x3x64x128_slide")]
TTAS = [(50, "r50_c19_60x88_tta_slide_ac1"), (50, "r50_c19_60x88_tta_whole"), (101, "r101_c150_56x75_tta_whole")]


def strided(golden: dict, prefix: str) -> tuple[int, np.ndarray]:
    """The one array whose name is `prefix` and a spatial stride."""
    ((stride, values),) = (
        (int(key.removeprefix(prefix)), value)
        for key, value in golden.items()
        if key.startswith(prefix) and key.removeprefix(prefix).isdigit()
    )
    return stride, values


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("depth", "name"), SLIDES)
def test_slide(depth, name, align_corners, load_model):
    golden, tolerance = load_golden(name), FORWARD_TOLERANCE[depth]
    windows = {key: tuple(golden[f"{key}_hw"].tolist()) for key in ("crop_size", "stride")}
    model = load_model(depth, align_corners=align_corners)
    logits = predict_logits(model, torch.from_numpy(golden["input"]), mode="slide", **windows)
    suffix = f"ac{int(align_corners)}"
    stride, expected = strided(golden, f"slide_logits_{suffix}_s")
    assert_close(logits[..., ::stride, ::stride], expected, tolerance, "logits")
    assert_same_statistics(logits, golden[f"slide_logits_{suffix}_stats"], tolerance, "logits")
    assert np.mean(logits.argmax(1).numpy() == golden[f"slide_argmax_{suffix}"]) >= 0.999


def settings(golden: dict) -> dict:
    """mode, crop size and stride of a multi-scale golden file."""
    windows = {key: tuple(golden[f"{key}_hw"].tolist()) for key in ("crop_size", "stride") if f"{key}_hw" in golden}
    return {"mode": str(golden["mode"]), **windows}


@pytest.mark.parametrize(("depth", "name"), TTAS)
def test_views(depth, name, load_model, converted_folder):
    """From mmsegmentation's own resized images: every view's logits and their mean probability to the digit."""
    golden, tolerance = load_golden(name), FORWARD_TOLERANCE[depth]
    align_corners = bool(golden["align_corners"])
    model = load_model(depth, align_corners=align_corners)
    processor = AutoImageProcessor.from_pretrained(converted_folder(depth), do_resize=False)
    size = golden["image_bgr_uint8"].shape[:2]
    probabilities = []
    for index, (ratio, flip) in enumerate(golden["views_ratio_flip"].tolist()):
        view = golden[f"view_ratio{ratio}_image_bgr_uint8"][..., ::-1]
        pixel_values = processor(
            np.ascontiguousarray(view[:, ::-1] if flip else view), return_tensors="pt"
        ).pixel_values
        logits = predict_logits(model, pixel_values, **settings(golden))
        logits = logits.flip(-1) if flip else logits
        logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
        expected = golden[f"view{index:02}_logits_s8"]
        assert_close(logits[0, :, ::8, ::8], expected, tolerance, f"view {index}")
        probabilities.append(logits.softmax(1)[0])
    mean = torch.stack(probabilities).mean(0)
    stride, expected = strided(golden, "mean_prob_s")
    assert_close(mean[..., ::stride, ::stride], expected, PROBABILITY_FACTOR * tolerance, "mean probability")
    assert np.mean(mean.argmax(0).numpy() == golden["pred"]) >= 0.999


@pytest.mark.parametrize(("depth", "name"), TTAS)
def test_predictor(depth, name, load_model, converted_folder):
    """From the raw image, as a user calls it."""
    golden, tolerance = load_golden(name), FORWARD_TOLERANCE[depth]
    model = load_model(depth, align_corners=bool(golden["align_corners"]))
    processor = AutoImageProcessor.from_pretrained(converted_folder(depth))
    ratios = tuple(dict.fromkeys(golden["views_ratio_flip"][:, 0].tolist()))
    predictor = Predictor(model, processor, scales=ratios, flip=True, **settings(golden))
    image = np.ascontiguousarray(golden["image_bgr_uint8"][..., ::-1])
    scores = predictor.scores(image)
    stride, expected = strided(golden, "mean_prob_s")
    assert_close(scores[..., ::stride, ::stride], expected, PROBABILITY_FACTOR * tolerance, "mean probability")
    assert_same_statistics(scores, golden["mean_prob_stats"], PROBABILITY_FACTOR * tolerance, "mean probability")
    assert np.mean(scores.argmax(0).numpy() == golden["pred"]) >= 0.999


class TestPreprocessing:
    @pytest.mark.parametrize("backend", ["torchvision", "pil"])
    def test_pixel_values(self, backend, converted_folder):
        golden = load_golden("preprocess")
        cases = [key.removesuffix("/input") for key in golden if key.endswith("/input")]
        assert len(cases) == 9
        for case in cases:
            name, scale = case.split("/scale")
            long, short = map(int, scale.split("x"))
            processor = AutoImageProcessor.from_pretrained(
                converted_folder(50), size={"longest_edge": long, "shortest_edge": short}, backend=backend
            )
            image = np.ascontiguousarray(golden[f"{name}/image_bgr_uint8"][..., ::-1])
            labels = golden[f"{name}/label_uint8"]
            inputs = processor(image, segmentation_maps=labels, return_tensors="pt")
            # Equal but for the last bit: mmsegmentation normalises 0..255 in one step, transformers in two.
            assert_close(inputs.pixel_values, golden[f"{case}/input"], 1e-6, case)
            unresized = processor(image, segmentation_maps=labels, do_resize=False, return_tensors="pt")
            assert np.array_equal(unresized.labels[0].numpy(), labels)

    def test_sizes(self):
        golden = load_golden("preprocess")
        for height, width, long, short, *expected in golden["sizes_scale_h_w_long_short_newh_neww"].tolist():
            assert list(resize_output_size(height, width, longest=long, shortest=short)) == expected
        for height, width, ratio, *expected in golden["sizes_ratio_h_w_r_newh_neww"].tolist():
            assert list(rescale_output_size(int(height), int(width), ratio)) == expected
