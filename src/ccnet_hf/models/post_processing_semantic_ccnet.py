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
"""What makes segmentation maps of a model's outputs, by the sizes that an image processor works with."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import SizeDict

from .image_transforms_ccnet import output_size
from .post_processing_ccnet import Size, argmax_of_resized_logits, check_sizes, may_come_from, resize_logits


class SemanticPostProcessingMixin:
    """The part of a CCNet image processor that comes after the model."""

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | torch.Tensor | None = None,
        input_sizes: Sequence[Size] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        *,
        do_resize: bool | None = None,
        size: dict[str, int] | SizeDict | int | Size | None = None,
        do_letterbox: bool | None = None,
        do_pad: bool | None = None,
        pad_size: dict[str, int] | SizeDict | int | Size | None = None,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Makes segmentation maps of the model's outputs as mmsegmentation does: the logits are resized to the size of
        the network's input, padding is cut off, the rest is resized to the size of the image, both times bilinearly
        with the processor's `align_corners`; each pixel gets the class with the largest logit. Classes are worked
        through in chunks, so that many classes of a large image need little memory. A letterbox is undone in the place
        of the second resize: bilinearly, or with `letterbox_inverse="labels"` after the classes were chosen.

        Args:
            outputs ([`CCNetSemanticSegmenterOutput`]):
                Outputs of the model, with `logits` of shape `(batch, num_labels, height, width)`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                `(height, width)` of each image before preprocessing. Without it, maps have the size of the network's
                input where `input_sizes` are given, and of the logits otherwise.
            input_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                `(height, width)` of each image after preprocessing, without padding. By default they are computed
                from `target_sizes` as the images' sizes were.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the resized logits, too. All of them are held in memory at once then.
            do_resize, size, do_letterbox, do_pad, pad_size (*optional*):
                What the call that made the batch was given, if that differs from the processor's own. Where the sizes
                of the images differ after resizing, their batch has been padded in any case: to `pad_size` if there
                is one, to the largest height and width otherwise. A `do_letterbox` of the call shows in no size: it
                is noticed in none of the checks below.

        Returns:
            A list of int64 tensors `(height, width)` with class ids, or of [`SemanticSegmentationPostProcessorOutput`]
            with these as `segmentation` and the logits `(num_labels, height, width)` as `segmentation_scores`.

        Raises:
            ValueError: If there are not as many sizes as images, a size is not two positive integers, or the outputs
                are not of a batch of images of these sizes: of CCNet's models it is known how large they were, of
                other outputs what the size of the logits tells. If logits on a CPU hold NaN.
        """
        logits = getattr(outputs, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 4:
            raise ValueError(
                "`outputs` must be what the model returns, with `logits` (batch, classes, height, width), "
                f"got {type(outputs).__name__}."
            )
        # Asked on a CPU alone: the answer of another device would have to be waited for.
        if logits.device.type == "cpu" and logits.isnan().any():
            raise ValueError("`outputs` has NaN among its `logits`: the model's weights or its images are not finite.")
        target_sizes = check_sizes(target_sizes, len(logits), "target_sizes")
        input_sizes = check_sizes(input_sizes, len(logits), "input_sizes")
        how = self._as_in_the_call(
            do_resize=do_resize, size=size, do_letterbox=do_letterbox, do_pad=do_pad, pad_size=pad_size
        )
        inverse = self.letterbox_inverse if how["do_resize"] and how["do_letterbox"] else None
        are_given = input_sizes is not None
        if not are_given and target_sizes is not None:
            input_sizes = [
                output_size(*target, how["size"]) if how["do_resize"] else target for target in target_sizes
            ]
        padded_size = None
        if input_sizes is not None:
            padded_size = tuple(map(max, zip(*input_sizes, strict=True)))
            if how["do_pad"] and how["pad_size"] is not None:
                padded_size = how["pad_size"]["height"], how["pad_size"]["width"]
            known_size = getattr(outputs, "input_size", None)
            if are_given:  # then the user knows better how the network rounds
                padded_size, may_be = known_size or padded_size, True
            elif known_size is not None:
                may_be = padded_size == known_size
            else:
                may_be = may_come_from(tuple(logits.shape[-2:]), padded_size)
            if not may_be or any(sides[0] > padded_size[0] or sides[1] > padded_size[1] for sides in input_sizes):
                raise ValueError(_other_sizes(known_size, logits, input_sizes, padded_size))

        results = []
        for index, image_logits in enumerate(logits):
            sizes = {"letterbox": inverse}
            if input_sizes is not None:
                sizes["input_size"] = input_sizes[index]
                sizes["target_size"] = target_sizes[index] if target_sizes is not None else None
                sizes["padded_size"] = padded_size
            if return_segmentation_scores:
                scores = resize_logits(image_logits, self.align_corners, **sizes)
                segmentation = scores.argmax(dim=0)
                if inverse == "labels":
                    segmentation = argmax_of_resized_logits(image_logits, self.align_corners, **sizes)
                data = {"segmentation": segmentation, "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(argmax_of_resized_logits(image_logits, self.align_corners, **sizes))
        return results

    def _as_in_the_call(self, **given) -> dict[str, Any]:
        """The values that a call given these keywords works with."""
        values = {name: getattr(self, name) if value is None else value for name, value in given.items()}
        return self._standardize_kwargs(**values, default_to_square=self.default_to_square)


def _other_sizes(known_size: Size | None, logits: torch.Tensor, input_sizes: list[Size], padded_size: Size) -> str:
    """Says that outputs cannot be of a batch of images of these sizes, padded to that one, and what to do."""
    images = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(input_sizes))
    height, width = logits.shape[-2:]
    of_batch = "" if known_size is None else f" of a batch of {known_size[0]}x{known_size[1]}"
    return (
        f"Logits of {height}x{width} (height x width){of_batch} cannot be of images that are {images} after resizing, "
        f"in a batch of {padded_size[0]}x{padded_size[1]}. Pass what the call of the processor was given (`size`, "
        "`do_resize`, `do_pad`, `pad_size`) to `post_process_semantic_segmentation` as well, or the `input_sizes`."
    )


__all__ = ["SemanticPostProcessingMixin"]
