"""What a training leaves to look at: lines where the numbers are, cells where the images are."""

import numpy as np
import pytest
from PIL import Image

from ccnet_hf.training.report import _COLORS, _ticks, draw_curves, draw_predictions


def columns_of(image: Image.Image, color) -> np.ndarray:
    """For every column of pixels, the mean row of this colour, NaN without."""
    near = np.abs(np.asarray(image, dtype=int) - color).max(-1) < 40
    rows = np.arange(near.shape[0])[:, None]
    with np.errstate(invalid="ignore"):
        return (near * rows).sum(0) / near.sum(0)


def test_a_curve_goes_where_its_numbers_go():
    rows = [{"step": step, "gamma": 0.2 + (0.6 if step > 50 else 0.0)} for step in range(1, 101)]
    image = draw_curves(rows)
    assert image.size == (640, 400)
    path = columns_of(image, _COLORS[0])
    first, second = path[120:320], path[370:600]  # 84..616 are steps 0..100
    assert np.nanstd(first) < 0.5 and np.nanstd(second) < 0.5
    # From 0.2 to 0.8 on an axis of the same range, 300 pixels high.
    assert np.nanmean(first) - np.nanmean(second) == pytest.approx(300, abs=2)


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_panels_are_those_the_log_has_numbers_for(steps):
    rows = [{"step": step, "loss": 1 / step, "decode_loss": 0.5, "lr": 0.01} for step in range(1, steps + 1)]
    assert draw_curves(rows).size == (1280, 400)
    rows += [{"step": steps, "eval_mean_iou": 0.5, "eval_mean_accuracy": float("nan")}]
    assert draw_curves(rows).size == (1280, 800)


@pytest.mark.parametrize("low, high", [(0, 1), (-0.3, 0.2), (5, 5), (0, 0), (1e-6, 3e-6), (3, 80000)])
def test_ticks_are_round_and_enclose(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12 and 4 <= len(ticks) <= 9
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-6


def test_images_stand_beside_truth_and_prediction():
    palette = [(200, 0, 0), (0, 200, 0)]
    examples, predictions = [], []
    for size in ((40, 80), (60, 30)):
        truth = np.zeros(size, np.uint8)
        truth[: size[0] // 2] = 255
        examples.append((Image.new("RGB", size[::-1], (9, 9, 200)), truth, "name"))
        predictions.append(np.ones(size, np.uint8))
    image = draw_predictions(examples, predictions, palette, ["road", "sky"])
    assert image.width == 3 * 440 + 4 * 16
    for top, height in ((40, 220), (40 + 220 + 16, 880)):
        upper, lower = top + height // 4, top + 3 * height // 4
        assert image.getpixel((200, upper)) == image.getpixel((200, lower)) == (9, 9, 200)
        assert image.getpixel((656, upper)) == (0, 0, 0) and image.getpixel((656, lower)) == (200, 0, 0)
        assert image.getpixel((1112, upper)) == image.getpixel((1112, lower)) == (0, 200, 0)
    legend = np.asarray(image)[40 + 220 + 880 + 32 :]
    for color in palette:
        assert (legend == color).all(-1).any()
