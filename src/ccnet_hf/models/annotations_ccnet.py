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
"""Objects of COCO's annotations as tensors: classes, boxes and masks."""

from numbers import Real
from typing import Any

import numpy as np
import torch

from .post_processing_ccnet import Size


def objects_of_annotations(annotations: list[dict[str, Any]], size: Size, with_masks: bool) -> dict[str, torch.Tensor]:
    """The objects of an image, without crowds and without boxes that have no area inside the image.

    Args:
        annotations (`list[dict]`):
            COCO's annotations of the image: `category_id`, `bbox` (left, top, width, height) in pixels, `area` and
            `iscrowd` where there are, and `segmentation`.
        size (`tuple[int, int]`): `(height, width)` of the image.
        with_masks (`bool`): Whether to return masks, too.

    Returns:
        `class_labels` (int64, `(n,)`), `boxes` (float32, `(n, 4)`; left, top, right, bottom in pixels, cut off at the
        border of the image), `area` (float32, `(n,)`), `iscrowd` (int64, `(n,)`) and `masks` (bool,
        `(n, height, width)`).

    Raises:
        ValueError: If an annotation lacks something or holds what it cannot; the message has its number.
    """
    if not isinstance(annotations, (list, tuple)):
        raise ValueError(f"`annotations` of an image must be a list, got {type(annotations).__name__}.")
    height, width = size
    kept, boxes, areas = [], [], []
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            raise ValueError(f"Annotation {index} must be a dictionary, got {annotation!r}.")
        left, top, box_width, box_height = _box(annotation, index)
        box = (max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height))
        if _is_crowd(annotation, index) or box[2] <= box[0] or box[3] <= box[1]:
            continue
        kept.append(index)
        boxes.append(box)
        area = _area(annotation, index)
        areas.append(box_width * box_height if area is None else area)
    objects = {
        "class_labels": torch.tensor([_label(annotations[index], index) for index in kept], dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "area": torch.tensor(areas, dtype=torch.float32),
        "iscrowd": torch.zeros(len(kept), dtype=torch.int64),
    }
    if with_masks:
        masks = [torch.from_numpy(_mask(annotations[index], size, index)) for index in kept]
        objects["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    return objects


def _box(annotation: dict[str, Any], index: int) -> list[float]:
    box = annotation.get("bbox")
    try:
        numbers = [float(number) for number in box]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all():
        raise ValueError(f"Annotation {index} must have a `bbox` (left, top, width, height), got {box!r}.")
    return numbers


def _is_crowd(annotation: dict[str, Any], index: int) -> bool:
    value = annotation.get("iscrowd", 0)
    if value not in (None, 0, 1):
        raise ValueError(f"Annotation {index} must have an `iscrowd` of 0 or 1, or none, got {value!r}.")
    return bool(value)


def _area(annotation: dict[str, Any], index: int) -> float | None:
    value = annotation.get("area")
    if value is None:
        return None
    if not isinstance(value, Real) or not np.isfinite(value) or value < 0:
        raise ValueError(f"Annotation {index} must have an `area` that is a number from 0, or none, got {value!r}.")
    return float(value)


def _label(annotation: dict[str, Any], index: int) -> int:
    label = annotation.get("category_id")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**63:
        raise ValueError(f"Annotation {index} must have a `category_id` that is an integer from 0, got {label!r}.")
    return label


def _mask(annotation: dict[str, Any], size: Size, index: int) -> np.ndarray:
    """The pixels of an object, bool `(height, width)`."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        raise ValueError(f"Annotation {index} has no `segmentation`. Pass `return_segmentation_masks=False` without.")
    try:
        return mask_of_segmentation(segmentation, size)
    except ValueError as error:
        raise ValueError(f"Annotation {index}: {error}") from error


def mask_of_segmentation(segmentation: list | dict[str, Any], size: Size) -> np.ndarray:
    """The pixels of a COCO segmentation.

    Args:
        segmentation (`list` or `dict`):
            Polygons, lists of x, y, x, y, ... in pixels, or a run-length encoding: `size` and `counts`, as numbers or
            compressed.
        size (`tuple[int, int]`): `(height, width)` of the image.

    Returns:
        A bool array `(height, width)`.

    Raises:
        ValueError: If it is none, or of an image of another size.
        ModuleNotFoundError: If pycocotools is not installed, which defines what pixels a polygon has.
    """
    try:  # so that transformers does not ask for it before it takes the code beside a checkpoint
        from pycocotools import mask as coco_mask
    except ModuleNotFoundError:
        raise

    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation.get("size") or ()) != [height, width]:
            raise ValueError(f"a run-length encoding of size {segmentation.get('size')} in an image of {size}.")
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            return _decode_counts(counts, size)
        if not isinstance(counts, (str, bytes)):
            raise ValueError(f"`counts` must be numbers or text, got {type(counts).__name__}.")
        try:
            return coco_mask.decode({"size": [height, width], "counts": counts}).astype(bool)
        except (ValueError, UnicodeEncodeError) as error:
            raise ValueError(f"`counts` is no run-length encoding ({error}).") from error
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("`segmentation` must be a list of polygons or a run-length encoding.")
    mask = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        numbers = np.asarray(polygon, dtype=np.float64)
        if numbers.ndim != 1 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise ValueError("a polygon must be a list of x, y, x, y, ...")
        if len(numbers) >= 6:  # three corners
            # Far outside, pycocotools' integers would overflow.
            numbers = numbers.clip(-2 * max(size), 3 * max(size))
            (encoded,) = coco_mask.frPyObjects([numbers.tolist()], height, width)
            mask |= coco_mask.decode(encoded).astype(bool)
    return mask


def _decode_counts(counts: list[int], size: Size) -> np.ndarray:
    """Runs of 0 and 1 in turn, down the columns."""
    height, width = size
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"`counts` must be numbers of pixels that make {height * width} together.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def run_length_encoding(mask: torch.Tensor) -> dict[str, list[int]]:
    """A mask `(height, width)` as COCO's uncompressed run-length encoding: `size`, and `counts` of pixels outside and
    inside in turn, down the columns."""
    pixels = mask.T.reshape(-1).to(torch.int8).cpu()
    ends = pixels.diff().nonzero()[:, 0] + 1
    borders = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(pixels))])
    counts = borders.diff().tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(pixels) and pixels[0] else counts}


__all__ = ["mask_of_segmentation", "objects_of_annotations", "run_length_encoding"]
