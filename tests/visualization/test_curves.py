"""Curves: lines where the numbers are."""

import numpy as np
import pytest
from PIL import Image

from ccnet_hf.visualization.curves import draw_curves


BLUE = (31, 119, 180)  # of the first line


def rows_of(image: Image.Image, color) -> np.ndarray:
    """For every column of pixels, the mean row of this colour, NaN without."""
    near = np.abs(np.asarray(image, dtype=int) - color).max(-1) < 40
    rows = np.arange(near.shape[0])[:, None]
    with np.errstate(invalid="ignore"):
        return (near * rows).sum(0) / near.sum(0)


@pytest.mark.parametrize("low, high", [(0.2, 0.8), (-3e-6, 1e-6), (0, 80_000)])
def test_a_curve_goes_where_its_numbers_go(low, high):
    points = [(step, low if step <= 50 else high) for step in range(1, 101)]
    image = draw_curves({"gamma": {"gamma": points}})
    assert image.size == (640, 400) and image.mode == "RGB"
    rows = rows_of(image, BLUE)
    drawn = np.flatnonzero(~np.isnan(rows))
    # The two halves are level, and the range takes most of the diagram's height.
    first, second = drawn[drawn < drawn.mean() - 20], drawn[drawn > drawn.mean() + 20]
    assert len(first) > 200 and len(second) > 200
    assert np.ptp(rows[first]) < 2 and np.ptp(rows[second]) < 2
    assert 200 < rows[first].mean() - rows[second].mean() < 400


def test_a_noisy_curve_is_pale_under_its_running_mean():
    values = np.random.default_rng(0).normal(1, 0.2, 1000)
    panels = {"losses": {"loss": list(enumerate(values))}}
    smoothed, plain = (rows_of(draw_curves(panels, smoothed=titles), BLUE) for titles in (("losses",), ()))
    assert np.nanstd(smoothed) < np.nanstd(plain) / 2 or np.nanstd(smoothed) < 12
    assert np.nanmean(smoothed) == pytest.approx(np.nanmean(plain), abs=15)


@pytest.mark.parametrize("count, size", [(1, (640, 400)), (2, (1280, 400)), (3, (1280, 800)), (4, (1280, 800))])
def test_panels_stand_two_in_a_row(count, size):
    panels = {f"panel {index}": {"one": [(1, 1.0)], "two": [(1, 2.0), (1000, 3.0)]} for index in range(count)}
    image = draw_curves(panels)
    assert image.size == size
    blue = np.abs(np.asarray(image, dtype=int) - BLUE).max(-1) < 40
    for index in range(count):
        row, column = divmod(index, 2)
        assert blue[400 * row : 400 * (row + 1), 640 * column : 640 * (column + 1)].any()
