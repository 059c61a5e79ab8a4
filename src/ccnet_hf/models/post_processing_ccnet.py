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

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F

from .image_letterbox_ccnet import undo_letterbox_of_labels, undo_letterbox_of_logits


Size = tuple[int, int]  # (height, width)

# Classes are resized a few at a time: on a CPU about as many float32 values as an allocator hands out again without
# asking the system for them (8 MiB, measured), on other devices enough to fill them (64 MiB).
MAX_CPU_CHUNK_ELEMENTS = 2**21
MAX_CHUNK_ELEMENTS = 2**24

# Up to this sum of height and width, PyTorch resizes with a kernel whose rounding depends on the number of classes
# unless that is a multiple of 8.
_SMALL_SIZE, _CHUNK_MULTIPLE = 128, 8

# Pixels compared at a time: what a running maximum holds of them stays in the cache.
_BLOCK_PIXELS = 2**15

_STRIDES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)  # of backbones' last feature maps


def check_sizes(sizes: Sequence[Size] | torch.Tensor | None, count: int, name: str) -> list[Size] | None:
    """The sizes of `count` images as pairs of `int`.

    Raises:
        ValueError: If there are not as many sizes as images, or one is not two positive integers.
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
    return [(int(height), int(width)) for height, width in sizes]


def _is_whole(value) -> bool:
    return isinstance(value, (Integral, float)) and not isinstance(value, bool) and value % 1 == 0


def may_come_from(logits_size: Size, input_size: Size) -> bool:
    """Whether logits of one size can be of a network input of another: whether a stride of the usual backbones leads
    there along both axes, up to how a network rounds."""
    (height, width), (input_height, input_width) = logits_size, input_size
    return any(
        input_height // stride <= height <= input_height // stride + 2
        and input_width // stride <= width <= input_width // stride + 2
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
    """`resize_logits(...).argmax(dim=0)`, int64 of shape `(height, width)`, to the bit, in less time and memory:
    classes that can be the largest nowhere are left out, and of the others a few at a time are resized.

    With `letterbox="labels"` the classes are chosen at the size of the network's input, and their map is brought to
    the image by nearest neighbour.
    """
    if letterbox == "labels" and target_size is not None:
        segmentation = argmax_of_resized_logits(logits, align_corners, input_size, padded_size=padded_size)
        return undo_letterbox_of_labels(segmentation, target_size)
    logits = logits.detach()
    sizes = {"input_size": input_size, "target_size": target_size, "padded_size": padded_size}
    given = [size for size in sizes.values() if size is not None]
    largest = max((height * width for height, width in given), default=1)
    most = MAX_CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else MAX_CHUNK_ELEMENTS
    length = max(most // largest, 1)
    may_win = None
    if letterbox is not None or any(sum(size) <= _SMALL_SIZE for size in given):
        classes = list(range(len(logits)))
        length = -(-length // _CHUNK_MULTIPLE) * _CHUNK_MULTIPLE
        starts = range(0, max(len(classes) - _CHUNK_MULTIPLE, 0) + 1, length)  # a short rest belongs to the last chunk
    else:
        may_win = _may_win(logits, padded_size or input_size or target_size)
        classes = may_win.flatten(1).any(dim=1).nonzero().flatten().tolist()
        starts = range(0, len(classes), length)
    best, segmentation = None, None
    for start, end in pairwise([*starts, len(classes)]):
        chunk = classes[start:end]
        scores = resize_logits(logits[chunk], align_corners, **sizes, letterbox=letterbox)
        if best is None:
            best = torch.full_like(scores[0], -torch.inf)
            segmentation = torch.zeros_like(best, dtype=torch.int64 if len(logits) > 256 else torch.uint8)
            blocks = _row_blocks(may_win, best.shape, input_size, padded_size)
        if best.device.type == "cpu":
            _update_on_cpu(best, segmentation, scores, chunk, blocks)
        else:
            _update(best, segmentation, scores, chunk)
    return segmentation.long()


def _may_win(logits: torch.Tensor, size: Size | None) -> torch.Tensor:
    """Where a class can have the largest logit, once (num_labels, height, width) logits are enlarged to `size`.

    An enlarged value is a mean of the logits around it, and so is a value resized from enlarged ones: all of them in
    3x3 pixels. A class cannot win where the largest of its 9 is below the smallest 9 of another.

    Returns:
        (num_labels, height, width) bool, by the pixel in the middle.
    """
    if size is None or size[0] < logits.shape[-2] or size[1] < logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    floor = None
    for score in logits:
        lowest = -_largest_of_neighbours(-score.float())
        floor = lowest if floor is None else torch.maximum(floor, lowest)
    floor = floor - 1e-5 * logits.abs().amax()  # far more than rounding moves a value
    may_win = torch.empty_like(logits, dtype=torch.bool)
    for score, result in zip(logits, may_win, strict=True):
        torch.logical_not(_largest_of_neighbours(score.float()) < floor, out=result)
    return may_win


def _row_blocks(
    may_win: torch.Tensor | None, size: Size, input_size: Size | None, padded_size: Size | None
) -> list[tuple[slice, list[bool] | None]]:
    """Rows of a segmentation map to compare at a time, with the classes that can win there."""
    height, width = size
    rows = max(1, _BLOCK_PIXELS // width)
    blocks = [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
    if may_win is None:
        return [(block, None) for block in blocks]
    in_row = may_win.any(dim=2)  # (num_labels, height of the logits)
    shown = in_row.shape[1]  # of them without padding
    if padded_size is not None:
        shown *= input_size[0] / padded_size[0]
    found = []
    for block in blocks:
        first, last = int(block.start * shown / height), int(block.stop * shown / height)
        # Each resize reaches one row further.
        found.append((block, in_row[:, max(0, first - 2) : last + 3].any(dim=1).tolist()))
    return found


def _largest_of_neighbours(score: torch.Tensor) -> torch.Tensor:
    """The largest value of 3x3 pixels, for every pixel of (height, width)."""
    for axis in (0, 1):
        length = score.shape[axis]
        largest = score.clone()
        for kept, other in ((slice(1, None), slice(0, length - 1)), (slice(0, length - 1), slice(1, None))):
            kept, other = (side if axis == 0 else (slice(None), side) for side in (kept, other))
            largest[kept] = torch.maximum(largest[kept], score[other])
        score = largest
    return score


def _update(best: torch.Tensor, segmentation: torch.Tensor, scores: torch.Tensor, classes: Sequence[int]) -> None:
    """Bring the largest logit so far (height, width) and its class up to date with those of some more classes, in
    ascending order. Of equal logits, the first class wins, as in `argmax`."""
    found, index = scores.max(dim=0)
    numbers = torch.tensor(classes, dtype=segmentation.dtype, device=segmentation.device)
    segmentation.copy_(torch.where(found > best, numbers[index], segmentation))
    torch.maximum(best, found, out=best)


def _update_on_cpu(
    best: torch.Tensor,
    segmentation: torch.Tensor,
    scores: torch.Tensor,
    classes: Sequence[int],
    blocks: Sequence[tuple[slice, list[bool] | None]],
) -> None:
    """As [`_update`], by NumPy, whose comparisons are several times as fast, and a block of rows at a time in the
    cache. As classes ascend, the last that was larger than all before it has the largest number."""
    best, segmentation, scores = best.numpy(), segmentation.numpy(), scores.numpy()
    for rows, can_win in blocks:
        for number, score in zip(classes, scores[:, rows], strict=True):
            if can_win is None or can_win[number]:
                larger = np.greater(score, best[rows]).view(np.uint8)
                np.maximum(segmentation[rows], larger * segmentation.dtype.type(number), out=segmentation[rows])
                np.maximum(best[rows], score, out=best[rows])


__all__ = ["argmax_of_resized_logits", "check_sizes", "may_come_from", "resize_logits"]
