# Copyright 2026 The ccnet_hf authors. All rights reserved.
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
padding, and from there to the size of the image."""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F


Size = tuple[int, int]  # (height, width)

# Post-processing resizes about as many classes at a time as fit in this many float32 values (64 MiB). Always a
# multiple of 8: with chunks of another length, vectorized CPU kernels round single values differently than on all.
MAX_CHUNK_ELEMENTS = 2**24
CHUNK_MULTIPLE = 8

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
) -> torch.Tensor:
    """Resizes the logits of one image bilinearly, first to the network's input and then to the image.

    Args:
        logits (`torch.Tensor` of shape `(num_labels, height, width)`): Any floating dtype.
        align_corners (`bool`): Of both resizes.
        input_size (`tuple[int, int]`, *optional*): `(height, width)` of the network's input, without padding.
        target_size (`tuple[int, int]`, *optional*): `(height, width)` of the image.
        padded_size (`tuple[int, int]`, *optional*, defaults to `input_size`):
            `(height, width)` of the network's input with its padding at the right and below, which is cut off.

    Returns:
        float32 logits of the last size given.
    """
    logits = _interpolate(logits[None].float(), padded_size or input_size, align_corners)
    if padded_size is not None:
        logits = logits[..., : input_size[0], : input_size[1]]
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
) -> torch.Tensor:
    """`resize_logits(...).argmax(dim=0)`, int64 of shape `(height, width)`, with a few classes at a time in memory."""
    sizes = {"input_size": input_size, "target_size": target_size, "padded_size": padded_size}
    largest = max((height * width for height, width in filter(None, sizes.values())), default=1)
    length = max(MAX_CHUNK_ELEMENTS // largest // CHUNK_MULTIPLE, 1) * CHUNK_MULTIPLE
    starts = range(0, max(len(logits) - CHUNK_MULTIPLE, 0) + 1, length)  # a short rest belongs to the last chunk
    best, segmentation = None, None
    for start, end in pairwise([*starts, len(logits)]):
        scores, classes = resize_logits(logits[start:end], align_corners, **sizes).max(dim=0)
        if best is None:
            best, segmentation = scores, classes
        else:  # of equal logits, the first class wins, as in `argmax`
            segmentation = torch.where(scores > best, classes + start, segmentation)
            best = torch.maximum(scores, best)
    return segmentation


__all__ = ["argmax_of_resized_logits", "check_sizes", "may_come_from", "resize_logits"]
