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
"""What makes masks and boxes of the outputs of an instance segmentation model, at the size of the images."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from transformers.image_transforms import center_to_corners_format

from .annotations_ccnet import run_length_encoding
from .post_processing_ccnet import Size, check_sizes


class InstancePostProcessingMixin:
    """The part of an image processor that comes after the model."""

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Sequence[Size] | torch.Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        **kwargs,
    ) -> list[dict[str, Any]]:
        """Makes masks of the model's outputs, at the size of the images.

        Args:
            outputs ([`CCNetInstanceSegmenterOutput`]): Outputs of the model.
            threshold (`float`, *optional*, defaults to 0.5): Detections with a higher score are kept.
            mask_threshold (`float`, *optional*, defaults to 0.5):
                Pixels with a higher probability belong to an object.
            overlap_mask_area_threshold (`float`, *optional*, defaults to 0.0):
                Of a map of ids, detections are left out of whose mask at most this fraction is left by those with
                higher scores.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`): `(height, width)` of each image.
            return_coco_annotation (`bool`, *optional*, defaults to `False`):
                Whether to return a list of COCO's uncompressed run-length encodings instead of a map.
            return_binary_maps (`bool`, *optional*, defaults to `False`):
                Whether to return one mask per detection instead of a map.

        Returns:
            One dictionary per image. `segmentation` is an int32 tensor `(height, width)` with -1 for no object, a bool
            tensor `(n, height, width)`, or a list of n encodings. `segments_info` is a list of dictionaries with `id`
            in the map, counted from 1, `label_id` and `score`, by falling score. Masks and encodings are those of
            every detection above `threshold`: they may overlap or be empty.

        Raises:
            ValueError: If `target_sizes` are missing or not one for each image, both forms are asked for, or a
                threshold is no number.
        """
        check_threshold("mask_threshold", mask_threshold)
        check_threshold("overlap_mask_area_threshold", overlap_mask_area_threshold)
        if return_coco_annotation and return_binary_maps:
            raise ValueError("`return_coco_annotation` and `return_binary_maps` exclude each other.")
        if target_sizes is None:
            raise ValueError("`target_sizes`, the (height, width) of each image, are what masks are made for.")
        results = []
        for size, detections in self._detections(outputs, threshold, target_sizes):
            boxes, masks = detections["boxes"], detections["masks"]
            infos = [
                {"id": number, "label_id": label, "score": score}
                for number, (label, score) in enumerate(
                    zip(detections["labels"].tolist(), detections["scores"].tolist(), strict=True), start=1
                )
            ]
            pasted = (_paste(mask, box, size) > mask_threshold for mask, box in zip(masks, boxes, strict=True))
            if return_binary_maps:
                maps = list(pasted)
                segmentation = torch.stack(maps) if maps else torch.zeros(0, *size, dtype=torch.bool)
            elif return_coco_annotation:
                segmentation = [run_length_encoding(mask) for mask in pasted]
            else:
                segmentation, infos = _map_of_ids(pasted, infos, size, overlap_mask_area_threshold)
            results.append({"segmentation": segmentation, "segments_info": infos})
        return results

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Sequence[Size] | torch.Tensor | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Makes boxes of the model's outputs.

        Args:
            outputs ([`CCNetInstanceSegmenterOutput`]): Outputs of the model.
            threshold (`float`, *optional*, defaults to 0.5): Detections with a higher score are kept.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                `(height, width)` of each image. Without, boxes are fractions of it.

        Returns:
            For each image `scores` (n,), by falling score, `labels` (n,) and `boxes` (n, 4): left, top, right, bottom.

        Raises:
            ValueError: If `target_sizes` are not one for each image, or `threshold` is no number.
        """
        return [
            {name: detections[name] for name in ("scores", "labels", "boxes")}
            for _, detections in self._detections(outputs, threshold, target_sizes)
        ]

    def _detections(
        self, outputs: Any, threshold: float, target_sizes: Sequence[Size] | torch.Tensor | None
    ) -> list[tuple[Size | None, dict[str, torch.Tensor]]]:
        """For each image its size and its detections above the threshold, with boxes of corners in pixels."""
        check_threshold("threshold", threshold)
        if not isinstance(getattr(outputs, "scores", None), torch.Tensor):
            raise ValueError(
                "`outputs` must be what the model returns in inference, with `scores`, `class_labels`, `pred_boxes` "
                f"and `pred_masks`; got {type(outputs).__name__}."
            )
        sizes = check_sizes(target_sizes, len(outputs.scores), "target_sizes") or [None] * len(outputs.scores)
        results = []
        for index, (size, scores) in enumerate(zip(sizes, outputs.scores, strict=True)):
            keep = scores > max(threshold, 0.0)  # what is padding has the score 0
            boxes = center_to_corners_format(outputs.pred_boxes[index][keep])
            if size is not None:
                boxes = boxes * boxes.new_tensor([size[1], size[0]] * 2)
            detections = {
                "scores": scores[keep],
                "labels": outputs.class_labels[index][keep],
                "boxes": boxes,
                "masks": outputs.pred_masks[index][keep],
            }
            results.append((size, detections))
        return results


def check_threshold(name: str, value: float) -> None:
    """Raise ValueError if what a score, a probability or a fraction must exceed is no finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def _paste(mask: torch.Tensor, box: torch.Tensor, size: Size) -> torch.Tensor:
    """Probabilities of a detection's pixels, `(height, width)`, of those inside its box."""
    return paste_masks_in_image(mask[None, None].float(), box[None].float(), size)[0, 0]


def _map_of_ids(
    masks: Any, infos: list[dict[str, Any]], size: Size, overlap_mask_area_threshold: float
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Masks, by falling score, in one map: a pixel belongs to the first that has it."""
    segmentation = torch.full(size, -1, dtype=torch.int32)
    kept = []
    for mask, info in zip(masks, infos, strict=True):
        segmentation = segmentation.to(mask.device)
        free = mask & (segmentation == -1)
        if not free.any() or free.sum() <= overlap_mask_area_threshold * mask.sum():
            continue
        kept.append(info | {"id": len(kept) + 1})
        segmentation[free] = len(kept)
    return segmentation, kept


__all__ = ["InstancePostProcessingMixin", "check_threshold"]
