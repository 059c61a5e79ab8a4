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
"""The class of the largest resized logit at every pixel, on a CPU, without resizing the logits of every class at once.

A bilinear resize weighs rows and columns independently. So the logits of all classes are computed for a tile of the
image at a time, first along its columns and then along its rows, and compared while they are in the cache. Float32
numbers computed this way differ from PyTorch's in their last bits. They tell the class wherever the largest logit
leads by more than both can be off; the few other pixels are named, for PyTorch to decide.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


# A tile has up to so many columns, and the rows whose first tap is one of so many rows of the logits.
_TILE_COLUMNS, _TILE_TAPS = 512, 6

# Logits of a tile compared at a time: few enough that they stay in the cache.
_BLOCK_ELEMENTS = 2**17

# Relative error of one operation in float32.
_ROUNDING = 2.0**-24

# Bilinear resizes that enlarge logits, or shrink enlarged ones, need so many positions along an axis.
MAX_TAPS = 4

# By how many of these errors, times the largest logit around it, a logit may be off. PyTorch's are in each resize
# those of products with two weights and of up to three sums.
# In a tile they are 7 along each axis for every tap but the first: two logits differ by up to twice the largest one,
# which rounds their difference, its weight and the product of both by 2 each, and the sum by 1. 4 more: weights do not
# quite add up to 1. 64 is more than all of them and PyTorch's together.
_RESIZE_ERRORS, _TILE_ERRORS = 5, 64

# What rounding takes of the smallest numbers does not depend on their size.
_SMALLEST = 1e-36

# More pixels than this fraction of an image are left undecided by logits that are equal, not by rounding.
_UNDECIDED_FRACTION = 1 / 256

# Pixels decided in float64 at a time.
_PIXELS = 512


@dataclass(frozen=True)
class Taps:
    """Where the positions along one axis of a resized map come from.

    Args:
        first (`np.ndarray` of shape `(length,)`): int64 position along the axis that was resized, ascending.
        weights (`np.ndarray` of shape `(length, taps)`):
            float64 weights of that position and of those that follow it. Past the end of the axis they are 0.
        resizes (`int`): By how many resizes.
    """

    first: np.ndarray
    weights: np.ndarray
    resizes: int

    @classmethod
    def of_the_same(cls, length: int) -> "Taps":
        """Of an axis that is not resized."""
        return cls(np.arange(length), np.tile([1.0, 0.0], (length, 1)), 0)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Taps":
        """Of the weights `(length, length of the axis that was resized)` of one bilinear resize."""
        first = (matrix != 0).argmax(axis=1)
        second = np.minimum(first + 1, matrix.shape[1] - 1)
        weights = np.take_along_axis(matrix, np.stack([first, second], axis=1), axis=1).astype(np.float64)
        weights[second == first, 1] = 0
        return cls(first, weights, 1)

    def then(self, following: "Taps") -> "Taps":
        """Of this resize and another one of its result."""
        last = len(self.first) - 1
        inner = [np.minimum(following.first + tap, last) for tap in range(following.weights.shape[1])]
        first = self.first[inner[0]]
        offsets = [self.first[position] - first for position in inner]
        taps = self.weights.shape[1]
        weights = np.zeros((len(first), max(map(np.max, offsets)) + taps))
        for position, offset, outer in zip(inner, offsets, following.weights.T, strict=True):
            for tap in range(taps):
                weights[np.arange(len(first)), offset + tap] += outer * self.weights[position, tap]
        while weights.shape[1] > 2 and not weights[:, -1].any():
            weights = weights[:, :-1]
        return Taps(first, weights, self.resizes + following.resizes)

    def cut(self, length: int) -> "Taps":
        """Of the first positions alone."""
        return Taps(self.first[:length], self.weights[:length], self.resizes)

    def of_differences(self) -> np.ndarray:
        """Weights `(length, taps - 1)` of the differences between neighbours, which are to be added to the value at
        `first`; float32."""
        return np.cumsum(self.weights[:, :0:-1], axis=1)[:, ::-1].astype(np.float32)


def label_map(logits: torch.Tensor, rows: Taps, columns: Taps) -> tuple[np.ndarray, np.ndarray] | None:
    """The class with the largest resized logit at every pixel, and the pixels at which that is not certain.

    Args:
        logits (`torch.Tensor` of shape `(num_labels, height, width)`):
            On a CPU, finite, of any floating dtype, at least 2x2 pixels.
        rows ([`Taps`]), columns ([`Taps`]): Of the image in the logits.

    Returns:
        int64 labels `(len(rows.first), len(columns.first))` and a bool array of the same shape that is True where a
        label is not certain; `None` where too much of the image would be.
    """
    labels = np.empty((len(rows.first), len(columns.first)), dtype=np.int64)
    undecided = np.zeros(labels.shape, dtype=bool)
    row_weights, column_weights = rows.of_differences(), columns.of_differences()
    allowed, found = labels.size * _UNDECIDED_FRACTION, 0
    for inside_rows, tap_rows in _tiles(rows, logits.shape[1], len(labels), _TILE_TAPS):
        for inside_columns, tap_columns in _tiles(columns, logits.shape[2], _TILE_COLUMNS, logits.shape[2]):
            part = logits[:, tap_rows, tap_columns].float().numpy()
            classes, margin = _possible_classes(part)
            tile = (inside_rows, inside_columns)
            if len(classes) == 1:
                labels[tile] = classes[0]
                continue
            scores = part[classes].transpose(1, 0, 2)
            first = columns.first[inside_columns] - tap_columns.start
            scores = _along_columns(scores, first, column_weights[inside_columns])
            first = rows.first[inside_rows] - tap_rows.start
            _compare(scores, first, row_weights[inside_rows], margin, classes, labels[tile], undecided[tile])
            found += np.count_nonzero(undecided[tile])
        if found > allowed:
            return None
    return labels, undecided


def possible_classes_of_pixels(
    logits: torch.Tensor, rows: Taps, columns: Taps, pixels: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The classes that PyTorch may find the largest at single pixels, as narrow as its rounding allows.

    Args:
        logits, rows, columns: As of [`label_map`].
        pixels (`tuple[np.ndarray, np.ndarray]`): Rows and columns of the pixels.

    Returns:
        A bool array of shape `(num_labels, len(pixels[0]))` with one class or more at every pixel.
    """
    relative_error = max(rows.resizes, columns.resizes) * _RESIZE_ERRORS * _ROUNDING
    possible = np.empty((len(logits), len(pixels[0])), dtype=bool)
    for start in range(0, len(pixels[0]), _PIXELS):
        row, column = (positions[start : start + _PIXELS] for positions in pixels)
        value, magnitude = 0, 0
        for row_tap, column_tap in np.ndindex(rows.weights.shape[1], columns.weights.shape[1]):
            weight = rows.weights[row, row_tap] * columns.weights[column, column_tap]
            source_row = np.minimum(rows.first[row] + row_tap, logits.shape[1] - 1)
            source_column = np.minimum(columns.first[column] + column_tap, logits.shape[2] - 1)
            term = weight * logits[:, source_row, source_column].float().double().numpy()
            value, magnitude = value + term, magnitude + abs(term)
        error = relative_error * magnitude + _SMALLEST
        possible[:, start : start + _PIXELS] = value + error >= (value - error).max(axis=0)
    return possible


def _tiles(taps: Taps, length: int, most: int, most_taps: int) -> Iterator[tuple[slice, slice]]:
    """Cuts an axis into pieces of at most `most` positions, whose first taps lie among `most_taps` positions of the
    `length` that were resized.

    Yields:
        A slice of positions, and the slice, two positions or more, that all of their taps lie in.
    """
    start = 0
    while start < len(taps.first):
        begin = min(taps.first[start], length - 2)
        end = min(np.searchsorted(taps.first, begin + most_taps), start + most)
        yield slice(start, end), slice(begin, min(taps.first[end - 1] + taps.weights.shape[1], length))
        start = end


def _possible_classes(part: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """The classes that can be the largest anywhere between logits `(num_labels, rows, columns)`, and how far apart two
    of their resized logits have to be to be certain.

    A resized logit is a mean of those around it. So a class cannot win whose largest logit is below the smallest one
    of another class.
    """
    flat = part.reshape(len(part), -1)
    highest, lowest = flat.max(axis=1), flat.min(axis=1)
    error = np.maximum(highest, -lowest) * np.float32(_TILE_ERRORS * _ROUNDING) + np.float32(_SMALLEST)
    (classes,) = np.nonzero(highest + error >= (lowest - error).max())
    return classes, 2 * error[classes].max()


def _along_columns(scores: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logits `(rows, classes, columns)` resized along their last axis."""
    resized = np.take(scores, first, axis=2, mode="clip")
    differences = np.diff(scores, axis=2)
    for tap, weight in enumerate(weights.T):
        if weight.any():
            term = np.take(differences, first + tap, axis=2, mode="clip")
            term *= weight
            resized += term
    return resized


def _compare(
    scores: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    margin: np.float32,
    classes: np.ndarray,
    labels: np.ndarray,
    undecided: np.ndarray,
) -> None:
    """Resizes logits `(rows, classes, columns)` along their first axis, and writes the largest class of every pixel
    and whether another one comes within `margin` of it."""
    differences = np.diff(scores, axis=0, append=scores[-1:])
    _, count, width = scores.shape
    numbers = np.arange(count, dtype=np.min_scalar_type(count))[:, None]
    at_a_time = max(1, _BLOCK_ELEMENTS // (count * width))
    values = np.empty((at_a_time, count, width), dtype=np.float32)
    terms, is_near = np.empty_like(values), np.empty(values.shape, dtype=bool)
    start = 0
    while start < len(first):
        row = first[start]
        end = min(np.searchsorted(first, row, side="right"), start + at_a_time)
        block, value, term, near = slice(start, end), *(array[: end - start] for array in (values, terms, is_near))
        start = end
        nearest, *further = weights[block].T[:, :, None, None]
        np.multiply(differences[row], nearest, out=value)
        value += scores[row]
        for tap, weight in enumerate(further, start=1):
            if weight.any():
                value += np.multiply(differences[row + tap], weight, out=term)
        np.greater_equal(value, value.max(axis=1, keepdims=True) - margin, out=near)
        near = near.view(np.uint8)
        undecided[block] = np.add.reduce(near, axis=1, dtype=numbers.dtype) > 1
        # Where only one class is near, the sum of numbers is its own.
        number = np.add.reduce(near * numbers, axis=1, dtype=numbers.dtype)
        labels[block] = np.take(classes, number, mode="clip")


__all__ = ["MAX_TAPS", "Taps", "label_map", "possible_classes_of_pixels"]
