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
"""What image processors are given, made regular: their arguments checked, their images and segmentation maps as flat
lists."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import SizeDict

from .image_transforms_ccnet import Array


_FLAGS = (
    *("do_resize", "do_letterbox", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb", "do_reduce_labels"),
    "align_corners",
)
LETTERBOX_INVERSES = ("logits", "labels")

# An image is not enlarged beyond so many pixels: as float32 they are 3 GiB, before the network has begun.
MAX_PIXELS = 2**28


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse values of a processor's arguments that it cannot work with; `None` stands for the default.

    Args:
        arguments (`dict`): Values by name, with sizes as `SizeDict`.

    Raises:
        ValueError: The message names the argument, the value and what is allowed.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in _FLAGS:
        if name in given and not isinstance(given[name], (bool, np.bool_)):
            raise ValueError(f"`{name}` must be True or False, got {given[name]!r}.")
    if given.get("do_center_crop") or "crop_size" in given:
        raise ValueError("`do_center_crop` and `crop_size` have no effect: the image processors of CCNet do not crop.")
    if "size" in given:
        _check_sides("size", given["size"], ("height", "width"), ("shortest_edge", "longest_edge"))
        if given["size"].get("longest_edge") and given["size"]["shortest_edge"] > given["size"]["longest_edge"]:
            raise ValueError(
                f"`size` must not have a 'shortest_edge' above its 'longest_edge', got {dict(given['size'])}."
            )
        if given.get("do_letterbox") and not given["size"].get("height"):
            raise ValueError(f"`do_letterbox` needs a `size` of 'height' and 'width', got {dict(given['size'])}.")
    if given.get("letterbox_inverse", "logits") not in LETTERBOX_INVERSES:
        choices = " or ".join(map(repr, LETTERBOX_INVERSES))
        raise ValueError(f"`letterbox_inverse` must be {choices}, got {given['letterbox_inverse']!r}.")
    if "pad_size" in given:
        _check_sides("pad_size", given["pad_size"], ("height", "width"))
    resample = given.get("resample", "bilinear")
    if getattr(resample, "value", resample) not in (2, "bilinear"):
        raise ValueError(f"`resample` must be bilinear, the one way CCNet resizes images; got {resample}.")
    lengths = {len(_numbers(name, given[name])) for name in ("image_mean", "image_std") if name in given} - {1}
    if len(lengths) > 1:
        raise ValueError(
            "`image_mean` and `image_std` must hold one number per channel each, "
            f"got {given['image_mean']} and {given['image_std']}."
        )
    if "rescale_factor" in given:
        _numbers("rescale_factor", given["rescale_factor"], may_be_many=False)


def check_form(name: str, size: Any) -> None:
    """Refuse as a size what transformers would misread or not name: a switch, text, a list of one or three numbers."""
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if size is not None and not (is_pair or _is_integer(size) or isinstance(size, (dict, SizeDict))):
        raise ValueError(f"`{name}` must be an integer, a pair (height, width) or a dictionary, got {size!r}.")


def check_enlargement(name: str, size: Any, new: tuple[int, int], old: tuple[int, int]) -> None:
    """Refuse a size that would enlarge an image beyond what any memory holds.

    Args:
        name (`str`): The argument that asks for it.
        size: Its value.
        new (`tuple[int, int]`): `(height, width)` that the image would have.
        old (`tuple[int, int]`): Those that it has.

    Raises:
        ValueError: If it would have more than 268 megapixels and has fewer now.
    """
    if math.prod(new) > max(MAX_PIXELS, math.prod(old)):
        value = size if isinstance(size, int) else dict(size)
        raise ValueError(
            f"`{name}` {value} would make {new[0]}x{new[1]} (height x width) of an image of {old[0]}x{old[1]}; images "
            f"are enlarged to at most {MAX_PIXELS:,} pixels."
        )


def _check_sides(name: str, size: SizeDict, *allowed: tuple[str, str]) -> None:
    keys = {key for key, _ in size}
    if keys not in map(set, allowed):
        choices = ", or ".join(f"{first!r} and {second!r}" for first, second in allowed)
        raise ValueError(f"`{name}` must hold {choices}, got {', '.join(sorted(keys))}.")
    if any(not _is_integer(value) or value < 1 for _, value in size):
        raise ValueError(f"`{name}` must hold positive integers, got {dict(size)}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _numbers(name: str, value: Any, may_be_many: bool = True) -> list[float]:
    """A number, or numbers where there may be several, all finite; divisors are not 0."""
    numbers = list(value) if may_be_many and isinstance(value, (list, tuple, np.ndarray)) else [value]
    for number in numbers:
        is_number = isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
        if not numbers or not is_number or (name == "image_std" and number == 0):
            other = ", other than 0" if name == "image_std" else ""
            raise ValueError(f"`{name}` must be finite numbers{other}, got {value!r}.")
    return numbers


def check_palette(palette: Sequence[Sequence[int]]) -> list[list[int]]:
    """The colours of a palette as lists.

    Raises:
        ValueError: If it is no list of RGB colours.
    """
    if not isinstance(palette, (list, tuple, np.ndarray)):
        raise ValueError(f"`palette` must be a list of RGB colours, got {palette!r}.")
    colours = []
    for colour in palette:
        values = list(colour) if isinstance(colour, (list, tuple, np.ndarray)) else [colour]
        if len(values) != 3 or any(not _is_integer(value) or not 0 <= value <= 255 for value in values):
            raise ValueError(
                f"`palette` must be a list of RGB colours, each of three integers in 0..255, got {colour!r}."
            )
        colours.append([int(value) for value in values])
    return colours


def image_list(images: Any, fetch: Callable[[Any], PIL.Image.Image]) -> list[PIL.Image.Image | Array]:
    """Images as a flat list, whether one, a list, a list of lists, an array with a batch axis, or nested numbers.

    Args:
        images: What a processor was given as `images`.
        fetch (`Callable`): Gives the image for a path or an address.

    Raises:
        ValueError: If one of them is no image.
    """
    flat = []
    for image in _leaves(images, "image", fetch):
        if isinstance(image, PIL.Image.Image) or image.ndim in (2, 3):
            flat.append(image)
        elif image.ndim == 4:
            flat.extend(image)
        else:
            raise ValueError(f"An image of shape {tuple(image.shape)} has {image.ndim} axes, expected 3.")
    return flat


def segmentation_map_list(
    segmentation_maps: Any, sizes: Sequence[tuple[int, int]], fetch: Callable[[Any], PIL.Image.Image]
) -> list[PIL.Image.Image | Array]:
    """Segmentation maps as a flat list, likewise; an axis of one channel, in front or behind, is taken away.

    Args:
        segmentation_maps: What a processor was given.
        sizes (`list[tuple[int, int]]`): `(height, width)` of each image.
        fetch (`Callable`): As for [`image_list`].

    Raises:
        ValueError: If one is no segmentation map, or there are not as many as images.
    """
    flat = []
    for leaf in _leaves(segmentation_maps, "segmentation map", fetch):
        if isinstance(leaf, PIL.Image.Image):
            flat.append(leaf)
        else:
            flat.extend(_maps_of_array(leaf, len(sizes), sizes[min(len(flat), len(sizes) - 1)]))
    if len(flat) != len(sizes):
        raise ValueError(f"Got {len(flat)} segmentation maps for {len(sizes)} images.")
    return flat


def _maps_of_array(array: Array, count: int, size: tuple[int, int]) -> list[Array]:
    """The maps in an array that has a batch axis, a channel axis, both or neither; the next image has this size."""
    shape = tuple(array.shape)
    if array.ndim == 2:
        return [array]
    if array.ndim == 3:
        has_channel = shape[2] == 1 and (sorted(shape[:2]) == sorted(size) or shape[0] != count)
        if shape[1:] != size and has_channel:  # fits the image, or the image as it was stored, or nothing
            return [array[..., 0]]
        is_colour = 3 in (shape[0], shape[2])
        if shape[1:] == size or shape[0] == count or not (shape[:2] == size or is_colour):
            return list(array)
    if array.ndim == 4 and shape[1] == 1 and (shape[3] != 1 or shape[2:] == size):
        return list(array[:, 0])
    if array.ndim == 4 and shape[3] == 1:
        return list(array[..., 0])
    raise ValueError(
        f"A segmentation map has the shape (height, width) and holds class ids, got an array of shape {shape}."
    )


def _leaves(values: Any, what: str, fetch: Callable[[Any], PIL.Image.Image]) -> Iterator[PIL.Image.Image | Array]:
    """The images and arrays in nested lists. Lists of numbers are arrays, too."""
    for index, value in enumerate(_nested(values)):
        if isinstance(value, (str, os.PathLike)):
            yield fetch(value)
        elif isinstance(value, (PIL.Image.Image, np.ndarray, torch.Tensor)):
            yield value
        else:
            given = "None" if value is None else f"of type {type(value).__name__}"
            article = "An" if what.startswith("i") else "A"
            raise ValueError(
                f"{article} {what} is a PIL image, an array, a tensor or a path; number {index} is {given}."
            )


def _nested(values: Any) -> Iterator[Any]:
    if not isinstance(values, (list, tuple)):
        yield values
        return
    first = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, (Real, np.number)):
        try:
            array = np.array(values)
        except ValueError:  # of images of different sizes, whose own turn comes
            array = None
        if array is not None:
            yield array
            return
    for value in values:
        yield from _nested(value)


__all__ = [
    "check_arguments",
    "check_enlargement",
    "check_form",
    "check_palette",
    "image_list",
    "segmentation_map_list",
]
