# Copyright 2026 The authors of CCNet for Hugging Face. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The letterbox of human parsing: one affine map that fits a whole image into the middle of the network's input, and
the ways back from there.

Source: CE2P (Liu et al., AAAI 2019) and SCHP, which warp with OpenCV. Everything here works on NumPy arrays and on
torch tensors alike, so that both image processors give the same pixels.
"""

import math

import numpy as np
import torch

from .image_transforms_ccnet import Array, cast, in_kind_of


Size = tuple[int, int]  # (height, width)

# OpenCV's warp finds positions in steps of 1/1024 pixel, and interpolates between 32 of them per pixel.
_STEPS, _FRACTIONS = 1024, 32


def letterbox(image: Array, size: Size) -> Array:
    """An image of shape `(..., height, width)`, uint8 or floating, as large as fits into the middle of `size`, with
    black around it: [`warp_bilinear`] by the [`letterbox_map`].

    Raises:
        ValueError: If a side of `size` is a single pixel.
    """
    return warp_bilinear(image, letterbox_map(*image.shape[-2:], size), size)


def letterbox_labels(labels: Array, size: Size, fill: int) -> Array:
    """A label map that goes with such an image, `fill` around it; raises as [`letterbox`]."""
    return warp_nearest(labels, letterbox_map(*labels.shape[-2:], size), size, fill)


def letterbox_map(height: int, width: int, size: Size, extent: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Where the pixels of the network's input come from: its centre from the image's, neighbours from as far apart as
    lets the image fit.

    Args:
        height (`int`), width (`int`): Of the image.
        size (`tuple[int, int]`): `(height, width)` of the network's input, at least 2 pixels each.
        extent (`float`, *optional*, defaults to 1.0): How much of the image's plane is seen; above 1 it gets smaller.
        angle (`float`, *optional*, defaults to 0.0): In degrees, by which the image is turned counterclockwise.

    Returns:
        float64 matrix of shape `(2, 3)` that takes `(column, row, 1)` in the input to `(column, row)` in the image.
        Both are counted from the centre of the first pixel.

    Raises:
        ValueError: If a side of `size` is a single pixel.
    """
    if min(size) < 2:
        raise ValueError(f"A letterbox is at least 2x2 pixels, got {size[0]}x{size[1]} (height x width).")
    step = extent / _factor(height, width, size)
    sine, cosine = step * math.sin(math.radians(angle)), step * math.cos(math.radians(angle))
    turned = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([turned, _centre(height, width) - turned @ _centre(*size)])


def inverse_letterbox_map(height: int, width: int, size: Size) -> np.ndarray:
    """The way back: takes `(column, row, 1)` in the image to `(column, row)` in the network's input. Arguments and
    result as of [`letterbox_map`], without extent and angle."""
    factor = _factor(height, width, size)
    return np.column_stack([factor * np.eye(2), _centre(*size) - factor * _centre(height, width)])


def _factor(height: int, width: int, size: Size) -> float:
    """Pixels of the network's input per pixel of the image."""
    return min((size[0] - 1) / max(height - 1, 1), (size[1] - 1) / max(width - 1, 1))


def _centre(height: int, width: int) -> np.ndarray:
    return np.array([(width - 1) / 2, (height - 1) / 2])


def warp_bilinear(image: Array, matrix: np.ndarray, size: Size) -> Array:
    """An image through an affine map as OpenCV's `warpAffine` with `INTER_LINEAR` gives it, black outside.

    A uint8 image comes out equal to that of OpenCV 4, bit for bit.

    Args:
        image (`np.ndarray` or `torch.Tensor` of shape `(..., height, width)`): uint8 or floating.
        matrix (`np.ndarray` of shape `(2, 3)`): Takes pixels of the result to pixels of the image.
        size (`tuple[int, int]`): `(height, width)` of the result.

    Returns:
        An array of the same kind and dtype, of shape `(..., *size)`.
    """
    columns, rows = (places >> 5 for places in _positions(matrix, size, _STEPS // _FRACTIONS // 2))
    left, top, x, y = columns >> 5, rows >> 5, columns & 31, rows & 31
    is_integer = image.dtype in (np.uint8, torch.uint8)
    total = 0
    for row, row_weight in ((top, _FRACTIONS - y), (top + 1, y)):
        for column, column_weight in ((left, _FRACTIONS - x), (left + 1, x)):
            weight = np.where(_is_inside(image, row, column), row_weight * column_weight, 0)
            weight = weight.astype(np.int32) if is_integer else (weight / _STEPS).astype(np.float32)
            taps = _take(image, row, column)
            total = total + (cast(taps, "int32") if is_integer else taps) * in_kind_of(weight, image)
    return cast((total + _STEPS // 2) >> 10, "uint8") if is_integer else total


def warp_nearest(labels: Array, matrix: np.ndarray, size: Size, fill: int) -> Array:
    """Label maps of shape `(..., height, width)` through an affine map as OpenCV's `warpAffine` with `INTER_NEAREST`
    gives them, `fill` outside. Of two pixels equally near, the right or lower one counts."""
    columns, rows = (places >> 10 for places in _positions(matrix, size, _STEPS // 2))
    inside = in_kind_of(_is_inside(labels, rows, columns), labels)
    taken = _take(labels, rows, columns)
    return taken.where(inside, fill) if isinstance(taken, torch.Tensor) else np.where(inside, taken, fill)


def undo_letterbox_of_labels(labels: Array, target_size: Size) -> Array:
    """Label maps of the network's input at the size of the image, by nearest neighbour: the inverse warp of CE2P.

    Of two pixels equally near, the left or upper one counts, because [`warp_nearest`] takes the other one: so an image
    that was neither enlarged nor reduced gets its very labels back, where OpenCV's warp shifts them by a pixel.

    Args:
        labels (`np.ndarray` or `torch.Tensor` of shape `(..., height, width)`): Of the network's input.
        target_size (`tuple[int, int]`): `(height, width)` of the image.

    Returns:
        An array of the same kind and dtype, of shape `(..., *target_size)`.
    """
    matrix = inverse_letterbox_map(*target_size, tuple(labels.shape[-2:]))
    columns, rows = (places >> 10 for places in _positions(matrix, target_size, _STEPS // 2 - 1))
    return _take(labels, rows, columns)


def undo_letterbox_of_logits(logits: torch.Tensor, target_size: Size) -> torch.Tensor:
    """Logits `(..., height, width)` at the size of the network's input, bilinearly at the size of the image."""
    matrix = inverse_letterbox_map(*target_size, tuple(logits.shape[-2:]))
    for axis, (factor, offset) in ((-1, matrix[0, [0, 2]]), (-2, matrix[1, [1, 2]])):
        last = logits.shape[axis] - 1
        places = (factor * np.arange(target_size[axis]) + offset).clip(0, last)
        before = np.floor(places).astype(np.int64)
        weight = torch.from_numpy(places - before).to(logits)
        before, after = (torch.from_numpy(index).to(logits.device) for index in (before, (before + 1).clip(max=last)))
        weight = weight if axis == -1 else weight[:, None]
        logits = logits.index_select(axis, before) * (1 - weight) + logits.index_select(axis, after) * weight
    return logits


def _positions(matrix: np.ndarray, size: Size, rounding: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of an image, in 1/1024 pixels, for every pixel of the result: OpenCV's sums of two rounded
    terms, plus what turns the cutting off of the last bits into rounding."""
    height, width = size
    row_terms = (matrix[:, 1, None] * np.arange(height) + matrix[:, 2, None]) * _STEPS
    column_terms = matrix[:, 0, None] * np.arange(width) * _STEPS
    row_terms, column_terms = (np.rint(terms).astype(np.int64) for terms in (row_terms, column_terms))
    columns, rows = row_terms[:, :, None] + column_terms[:, None, :] + rounding
    return columns, rows


def _is_inside(image: Array, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    height, width = image.shape[-2:]
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _take(image: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """The pixels of `image` at these positions, at the border's for those outside."""
    height, width = image.shape[-2:]
    rows, columns = (in_kind_of(index, image) for index in (rows.clip(0, height - 1), columns.clip(0, width - 1)))
    return image[..., rows, columns]


__all__ = [
    "inverse_letterbox_map",
    "letterbox",
    "letterbox_labels",
    "letterbox_map",
    "undo_letterbox_of_labels",
    "undo_letterbox_of_logits",
    "warp_bilinear",
    "warp_nearest",
]
