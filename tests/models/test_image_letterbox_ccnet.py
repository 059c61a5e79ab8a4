"""The letterbox: OpenCV's warp to the bit, its map by its definition, and the ways back."""

import numpy as np
import pytest
import torch
from golden_files import load_golden

from ccnet_hf.models.image_letterbox_ccnet import (
    inverse_letterbox_map,
    letterbox_map,
    undo_letterbox_of_labels,
    undo_letterbox_of_logits,
    warp_bilinear,
    warp_nearest,
)


CASES = ("enlarged", "reduced", "same", "shifted", "nearer", "turned", "turned_back")


@pytest.fixture(scope="module")
def golden():
    return load_golden("letterbox")


def bilinear(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float64, pixel by pixel; what lies outside is 0."""
    padded = np.pad(image.astype(np.float64), [(0, 0)] * (image.ndim - 2) + [(1, 1)] * 2)
    result = np.zeros((*image.shape[:-2], *size))
    for row, column in np.ndindex(*size):
        x, y = matrix @ [column, row, 1] + 1
        if 0 <= x <= padded.shape[-1] - 1 and 0 <= y <= padded.shape[-2] - 1:
            left, top = min(int(x), padded.shape[-1] - 2), min(int(y), padded.shape[-2] - 2)
            x, y = x - left, y - top
            square = padded[..., top : top + 2, left : left + 2]
            result[..., row, column] = np.array([1 - y, y]) @ square @ np.array([1 - x, x])
    return result


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrap", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_the_warp_is_opencvs(golden, name, wrap):
    image, labels = golden[f"{name}/image"].transpose(2, 0, 1), golden[f"{name}/labels"]
    expected, expected_labels = golden[f"{name}/warped"].transpose(2, 0, 1), golden[f"{name}/warped_labels"]
    matrix = letterbox_map(*labels.shape, expected_labels.shape, *golden[f"{name}/extent_angle"])
    warped = warp_bilinear(wrap(image), matrix, expected_labels.shape)
    assert type(warped) is type(wrap(image)) and np.array_equal(warped, expected)
    warped_labels = warp_nearest(wrap(labels), matrix, expected_labels.shape, fill=255)
    assert type(warped_labels) is type(wrap(labels)) and np.array_equal(warped_labels, expected_labels)


@pytest.mark.parametrize("name", CASES)
def test_the_warp_is_bilinear_up_to_opencvs_steps(golden, name):
    image = golden[f"{name}/image"].transpose(2, 0, 1)
    matrix = letterbox_map(*image.shape[1:], (48, 48), *golden[f"{name}/extent_angle"])
    expected = bilinear(image, matrix, (48, 48))
    assert np.abs(warp_bilinear(image, matrix, (48, 48)) - expected).mean() < 1
    floats = warp_bilinear(image.astype(np.float32), matrix, (48, 48))
    assert floats.dtype == np.float32 and np.abs(floats - expected).mean() < 1
    as_torch = warp_bilinear(torch.tensor(image, dtype=torch.float32), matrix, (48, 48))
    np.testing.assert_allclose(as_torch, floats, rtol=0, atol=1e-4)


def test_the_map_fits_the_image_into_the_middle():
    matrix, inverse = letterbox_map(61, 31, (121, 121)), inverse_letterbox_map(61, 31, (121, 121))
    assert (matrix @ [60, 60, 1]).tolist() == [15, 30]  # the centres
    assert (inverse @ [0, 0, 1]).tolist() == [30, 0] and (inverse @ [30, 60, 1]).tolist() == [90, 120]  # the corners
    np.testing.assert_allclose(np.vstack([matrix, [0, 0, 1]]) @ np.vstack([inverse, [0, 0, 1]]), np.eye(3), atol=1e-12)
    wide = inverse_letterbox_map(10, 100, (50, 60))
    np.testing.assert_allclose([(wide @ [0, 0, 1])[0], (wide @ [99, 9, 1])[0]], [0, 59], atol=1e-12)


def test_extent_and_angle():
    matrix = letterbox_map(101, 101, (101, 101), extent=1.25)
    assert (matrix @ [50, 50, 1]).tolist() == [50, 50] and (matrix @ [100, 50, 1]).tolist() == [112.5, 50]
    turned = letterbox_map(101, 101, (101, 101), angle=90)  # counterclockwise: what was on the right is above
    np.testing.assert_allclose(turned @ [50, 0, 1], [100, 50], atol=1e-12)


def test_one_line_and_one_pixel():
    for height, width in ((1, 1), (1, 7), (7, 1)):
        image = np.full((3, height, width), 200, np.uint8)
        warped = warp_bilinear(image, letterbox_map(height, width, (9, 9)), (9, 9))
        assert warped[:, 4, 4].tolist() == [200] * 3
        labels = warp_nearest(image[0], letterbox_map(height, width, (9, 9)), (9, 9), fill=255)
        assert (undo_letterbox_of_labels(labels, (height, width)) == 200).all()


@pytest.mark.parametrize("side", [2, 3, 48, 49])
def test_labels_that_keep_their_scale_come_back_whole(side):
    """Every shape that fills one side, in the middle of the other: also where that middle is between two pixels."""
    random = np.random.default_rng(0)
    for other in range(1, side + 1):
        for shape in ((side, other), (other, side)):
            labels = random.integers(0, 20, shape)
            warped = warp_nearest(labels, letterbox_map(*shape, (side, side)), (side, side), fill=255)
            assert (warped != 255).sum() == labels.size
            assert np.array_equal(undo_letterbox_of_labels(warped, shape), labels)
            assert np.array_equal(undo_letterbox_of_labels(torch.tensor(warped), shape), labels)


@pytest.mark.parametrize("name", ["enlarged", "reduced", "same"])
def test_labels_come_back_as_with_opencv(golden, name):
    prediction, expected = golden[f"{name}/prediction"], golden[f"{name}/restored"]
    restored = undo_letterbox_of_labels(prediction, expected.shape)
    places = inverse_letterbox_map(*expected.shape, prediction.shape)
    fractions = [
        (places[0, 0] * np.arange(expected.shape[1]) + places[0, 2]) % 1,
        (places[1, 1] * np.arange(expected.shape[0]) + places[1, 2])[:, None] % 1,
    ]
    decided = np.all(np.broadcast_arrays(*(np.abs(fraction - 0.5) > 1e-3 for fraction in fractions)), axis=0)
    assert decided.mean() > 0.4
    assert np.array_equal(restored[decided], expected[decided])


def test_opencv_shifts_labels_by_a_pixel_where_two_are_equally_near(golden):
    """Why the way back breaks ties the other way round."""
    labels = golden["shifted/labels"]
    warped = warp_nearest(labels, letterbox_map(*labels.shape, (48, 48)), (48, 48), fill=255)
    prediction, expected = golden["shifted/prediction"], golden["shifted/restored"]
    assert np.array_equal(undo_letterbox_of_labels(prediction, labels.shape)[:, 1:], expected[:, :-1])
    assert np.array_equal(undo_letterbox_of_labels(warped, labels.shape), labels)


@pytest.mark.parametrize("target_size", [(23, 35), (90, 61), (33, 33), (1, 5), (33, 1)])
def test_logits_come_back_bilinearly(target_size):
    logits = np.random.default_rng(0).normal(size=(4, 33, 33))
    expected = bilinear(logits, inverse_letterbox_map(*target_size, (33, 33)), target_size)
    np.testing.assert_allclose(undo_letterbox_of_logits(torch.tensor(logits), target_size), expected, atol=1e-12)
    single = undo_letterbox_of_logits(torch.tensor(logits, dtype=torch.float32), target_size)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)
