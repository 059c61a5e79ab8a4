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
"""From logits to segmentation maps, by the rules of mmsegmentation: to the size of the network's input, without its
padding, and from there to the size of the image, or out of the letterbox that it was put into."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F

from .image_letterbox_ccnet import undo_letterbox_of_labels, undo_letterbox_of_logits
from .label_maps_ccnet import MAX_TAPS, Taps, label_map, possible_classes_of_pixels


Size = tuple[int, int]  # (height, width)

# Where logits are resized class by class, about as many classes at a time as fit in this many float32 values: on a CPU
# what an allocator hands out again without asking the system for it (8 MiB, measured), on other devices enough to fill
# them (64 MiB).
MAX_CPU_CHUNK_ELEMENTS = 2**21
MAX_CHUNK_ELEMENTS = 2**24

# Up to this sum of height and width, PyTorch resizes with a kernel whose rounding depends on the number of classes
# unless that is a multiple of 8. Above, it has one for images of 3 channels that rounds otherwise than the others.
_SMALL_SIZE, _CHUNK_MULTIPLE, _IMAGE_CHANNELS = 128, 8, 3

# Up to here, sums and products of logits and weights are far from float32's largest number.
_LARGEST_LOGIT = 1e37

_STRIDES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)  # of backbones' last feature maps

MAX_TARGET_PIXELS = 2**30  # of one segmentation map, 8 GiB of int64


def check_sizes(sizes: Sequence[Size] | torch.Tensor | None, count: int, name: str) -> list[Size] | None:
    """The sizes of `count` images as pairs of `int`.

    Raises:
        ValueError: If there are not as many sizes as images, or one is not two positive integers, or more pixels than
            a gigapixel.
    """
    if sizes is None:
        return None
    if isinstance(sizes, (torch.Tensor, np.ndarray)):
        sizes = sizes.tolist()
    if not isinstance(sizes, (list, tuple)) or not all(isinstance(size, (list, tuple, torch.Size)) for size in sizes):
        raise ValueError(
            f"`{name}` must hold a pair (height, width) for every image, such as [(480, 640)]; got {sizes}."
        )
    sizes = [tuple(side.item() if isinstance(side, torch.Tensor) else side for side in size) for size in sizes]
    if len(sizes) != count:
        raise ValueError(f"`{name}` must hold one size per image: got {len(sizes)} for {count} images.")
    for size in sizes:
        if len(size) != 2 or not all(_is_whole(side) and side >= 1 for side in size):
            raise ValueError(f"`{name}` must hold pairs (height, width) of positive integers, got {size}.")
        if math.prod(size) > MAX_TARGET_PIXELS:
            raise ValueError(f"`{name}` must hold sizes of at most {MAX_TARGET_PIXELS:,} pixels each, got {size}.")
    return [(int(height), int(width)) for height, width in sizes]


def _is_whole(value) -> bool:
    return isinstance(value, (Integral, float)) and not isinstance(value, bool) and value % 1 == 0


def may_come_from(logits_size: Size, input_size: Size) -> bool:
    """Whether logits of one size can be of a network input of another: whether a stride of the usual backbones leads
    there along both axes. A network rounds down or up, and one that pools up to the border adds a pixel more."""
    return any(
        all(
            side // stride <= length <= -(-side // stride) + 1
            for length, side in zip(logits_size, input_size, strict=True)
        )
        for stride in _STRIDES
    )


def resize_logits(
    logits: torch.Tensor,
    align_corners: bool,
    input_size: Size | None = None,
    target_size: Size | None = None,
    padded_size: Size | None = None,
    letterbox: str | None = None,
) -> torch.Tensor:
    """Resizes the logits of one image bilinearly, first to the network's input and then to the image.

    Args:
        logits (`torch.Tensor` of shape `(num_labels, height, width)`): Any floating dtype.
        align_corners (`bool`): Of both resizes.
        input_size (`tuple[int, int]`, *optional*): `(height, width)` of the network's input, without padding.
        target_size (`tuple[int, int]`, *optional*): `(height, width)` of the image.
        padded_size (`tuple[int, int]`, *optional*, defaults to `input_size`):
            `(height, width)` of the network's input with its padding at the right and below, which is cut off.
        letterbox (`str`, *optional*):
            Set, to anything, where the image was put into the network's input by a letterbox.

    Returns:
        float32 logits of the last size given.
    """
    logits = _interpolate(logits[None].float(), padded_size or input_size, align_corners)
    if padded_size is not None:
        logits = logits[..., : input_size[0], : input_size[1]]
    if letterbox is not None and target_size is not None:
        return undo_letterbox_of_logits(logits, target_size)[0]
    return _interpolate(logits, target_size, align_corners)[0]


def _interpolate(logits: torch.Tensor, size: Size | None, align_corners: bool) -> torch.Tensor:
    if size is None or logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits.contiguous(), size=tuple(size), mode="bilinear", align_corners=align_corners)


def argmax_of_resized_logits(
    logits: torch.Tensor,
    align_corners: bool,
    input_size: Size | None = None,
    target_size: Size | None = None,
    padded_size: Size | None = None,
    letterbox: str | None = None,
) -> torch.Tensor:
    """`resize_logits(...).argmax(dim=0)`, int64 of shape `(height, width)`, to the bit, in less time and memory: on a
    CPU by [`label_map`] where it can be, otherwise with a few classes resized at a time.

    With `letterbox="labels"` the classes are chosen at the size of the network's input, and their map is brought to
    the image by nearest neighbour.
    """
    if letterbox == "labels" and target_size is not None:
        segmentation = argmax_of_resized_logits(logits, align_corners, input_size, padded_size=padded_size)
        return undo_letterbox_of_labels(segmentation, target_size)
    logits = logits.detach()
    sizes = {"input_size": input_size, "target_size": target_size, "padded_size": padded_size}
    if all(size is None or size == logits.shape[1:] for size in sizes.values()):
        return logits.float().argmax(dim=0)
    # Asked on a CPU alone: the answer of another device would have to be waited for.
    is_moderate = logits.device.type == "cpu" and all(abs(float(end)) <= _LARGEST_LOGIT for end in logits.aminmax())
    if is_moderate and letterbox is None:
        segmentation = _argmax_by_tiles(logits, align_corners, **sizes)
        if segmentation is not None:
            return segmentation
    best, segmentation = None, None
    for classes in _chunks(logits, list(range(len(logits))), letterbox=letterbox, **sizes):
        scores = resize_logits(logits[classes], align_corners, **sizes, letterbox=letterbox)
        if not is_moderate:  # NaN is the largest, as in `argmax`
            scores = scores.nan_to_num(nan=torch.inf, posinf=torch.finfo(scores.dtype).max, neginf=-torch.inf)
        if best is None:
            best = torch.full_like(scores[0], -torch.inf)
            segmentation = torch.zeros_like(best, dtype=torch.int64 if len(logits) > 256 else torch.uint8)
        _update(best, segmentation, scores, classes)
    return segmentation.long()


def _argmax_by_tiles(
    logits: torch.Tensor,
    align_corners: bool,
    input_size: Size | None,
    target_size: Size | None,
    padded_size: Size | None,
) -> torch.Tensor | None:
    """`argmax_of_resized_logits` of moderate logits on a CPU by [`label_map`], and the few pixels that this leaves
    undecided by resizing the classes that are largest there; `None` where too many are, or the sizes are not fit."""
    sizes = {"input_size": input_size, "target_size": target_size, "padded_size": padded_size}
    if len(logits) <= _IMAGE_CHANNELS or min(logits.shape[1:]) < 2 or _has_small_size(**sizes):
        return None
    rows, columns = (
        _taps(logits.shape[axis + 1], align_corners, **{name: size and size[axis] for name, size in sizes.items()})
        for axis in (0, 1)
    )
    if max(rows.weights.shape[1], columns.weights.shape[1]) > MAX_TAPS:
        return None
    found = label_map(logits, rows, columns)
    if found is None:
        return None
    labels, undecided = found
    pixels = np.nonzero(undecided)
    possible = possible_classes_of_pixels(logits, rows, columns, pixels)
    labels[pixels] = possible.argmax(axis=0)
    segmentation = torch.from_numpy(labels)
    is_open = possible.sum(axis=0) > 1
    if is_open.any():
        classes = possible[:, is_open].any(axis=1).nonzero()[0].tolist()
        row, column = (torch.from_numpy(positions[is_open]) for positions in pixels)
        scores = [
            resize_logits(logits[chunk], align_corners, **sizes)[:, row, column]
            for chunk in _chunks(logits, classes, **sizes)
        ]
        segmentation[row, column] = torch.tensor(classes)[torch.cat(scores).argmax(dim=0)]
    return segmentation


def _taps(
    length: int, align_corners: bool, input_size: int | None, target_size: int | None, padded_size: int | None
) -> Taps:
    """Where the positions along an axis come from in logits of `length`, by PyTorch's own weights."""
    taps = Taps.of_the_same(length)
    for size, shown in ((padded_size or input_size, input_size), (target_size, target_size)):
        length = len(taps.first)
        if size is None:
            continue
        if size != length:
            unit_vectors = torch.eye(length, max(length, _SMALL_SIZE))  # not small, whatever the size
            resized = _interpolate(unit_vectors[None, None], (size, unit_vectors.shape[1]), align_corners)
            taps = taps.then(Taps.from_matrix(resized[0, 0, :, :length].numpy()))
        taps = taps.cut(shown)
    return taps


def _has_small_size(**sizes: Size | None) -> bool:
    return any(size is not None and sum(size) <= _SMALL_SIZE for size in sizes.values())


def _chunks(
    logits: torch.Tensor, classes: list[int], letterbox: str | None = None, **sizes: Size | None
) -> list[list[int]]:
    """Cuts a list of classes into those that are resized at a time, so that each is resized as among all of
    `logits`."""
    largest = max((math.prod(size) for size in sizes.values() if size is not None), default=1)
    most = MAX_CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else MAX_CHUNK_ELEMENTS
    length = max(most // largest, 1)
    if len(logits) == _IMAGE_CHANNELS:
        return [classes]
    if letterbox is not None or max(logits.shape[1:]) == 1 or _has_small_size(**sizes):
        length = -(-length // _CHUNK_MULTIPLE) * _CHUNK_MULTIPLE
        starts = range(0, max(len(classes) - _CHUNK_MULTIPLE, 0) + 1, length)  # a short rest belongs to the last chunk
        return [classes[start:end] for start, end in pairwise([*starts, len(classes)])]
    chunks = []
    while classes:
        chunk = classes[: length - 1 if length == _IMAGE_CHANNELS else length]
        if len(chunk) == _IMAGE_CHANNELS:  # a rest
            chunk = chunk[:-1]
        chunks.append(chunk)
        classes = classes[len(chunk) :]
    return chunks


def _update(best: torch.Tensor, segmentation: torch.Tensor, scores: torch.Tensor, classes: Sequence[int]) -> None:
    """Bring the largest logit so far (height, width) and its class up to date with those of some more classes, in
    ascending order. Of equal logits, the first class wins, as in `argmax`."""
    if best.device.type == "cpu":
        # As classes ascend, the last that was larger than all before it has the largest number.
        for number, score in zip(classes, scores, strict=True):
            torch.maximum(segmentation, (score > best).to(segmentation.dtype).mul_(number), out=segmentation)
            torch.maximum(best, score, out=best)
        return
    found, index = scores.max(dim=0)
    numbers = torch.tensor(classes, dtype=segmentation.dtype, device=segmentation.device)
    segmentation.copy_(torch.where(found > best, numbers[index], segmentation))
    torch.maximum(best, found, out=best)


__all__ = ["argmax_of_resized_logits", "check_sizes", "may_come_from", "resize_logits"]
