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
"""The losses CCNet is trained with, and their table `LOSSES`: cross entropy, its hard pixels only (OHEM), the
category-consistent loss, and those of regions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from .loss_categories_ccnet import category_consistent_loss
from .loss_labels_ccnet import Targets, checked_class_ids, class_ids, resized
from .loss_ohem_ccnet import ohem_loss, paddleseg_ohem_loss
from .loss_regions_ccnet import dice_loss, focal_loss, lovasz_softmax_loss


# mmsegmentation adds the machine epsilon of fp32 to the number of pixels it divides by.
_EPSILON = torch.finfo(torch.float32).eps


def ccnet_losses(
    config: PreTrainedConfig,
    labels: torch.Tensor,
    logits: torch.Tensor,
    auxiliary_logits: torch.Tensor | None = None,
    category_embeddings: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
    valid_pixels: torch.Tensor | float | None = None,
) -> dict[str, torch.Tensor]:
    """The losses of a model's outputs, each with its weight, so that their sum is what is minimised.

    Args:
        config: a `CCNetConfig`; says which losses there are and how they count.
        labels: (B, H, W), integers in 0..num_labels - 1 or `config.semantic_loss_ignore_index`.
        logits: (B, num_labels, h, w) of the classifier.
        auxiliary_logits: likewise of the auxiliary head; its loss is always plain cross entropy.
        category_embeddings: (B, C, h, w), what the category-consistent loss looks at.
        class_weights: as in `semantic_segmentation_loss`, for both heads.
        valid_pixels: as in `semantic_segmentation_loss`. OHEM and the category-consistent loss are means over what
            they keep of this batch, whatever it is.

    Returns:
        Scalars by name, those of [`LOSSES`] whose output is given.

    Raises:
        ValueError: labels of another rank, batch size or dtype, or, on a CPU, an id that is neither a class nor
            ignored. On CUDA, where looking would wait for the device, that ends the process with a message that says
            what is allowed.
    """
    labels = checked_class_ids(config, labels)
    targets = Targets(labels, class_weights, valid_pixels)
    outputs = {
        "logits": logits,
        "auxiliary_logits": auxiliary_logits,
        "category_embeddings": category_embeddings,
    }
    losses = {}
    for name, (function, of, weight) in LOSSES.items():
        factor = 1.0 if weight is None else getattr(config, weight)
        # What has a head of its own is computed for a weight of 0, too, so that every parameter gets a gradient.
        if outputs[of] is not None and (factor or of != "logits"):
            loss = function(config, outputs[of], targets)
            losses[name] = loss if weight is None else factor * loss
    return losses


def ccnet_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    auxiliary_logits: torch.Tensor | None = None,
    category_embeddings: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    """The `loss_function` of [`CCNetForSemanticSegmentation`]: the sum of [`ccnet_losses`].

    Args:
        logits: (B, num_labels, h, w) of the classifier.
        labels: (B, H, W), integers in 0..num_labels - 1 or `config.semantic_loss_ignore_index`.
        config: a `CCNetConfig`.
        auxiliary_logits: likewise of the auxiliary head.
        category_embeddings: (B, C, h, w), what the category-consistent loss looks at.
        kwargs: what transformers hands to other loss functions as well.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: as [`ccnet_losses`].
    """
    return sum(ccnet_losses(config, labels, logits, auxiliary_logits, category_embeddings).values())


_OHEM_RULES = {"authors": ohem_loss, "paddleseg": paddleseg_ohem_loss}


def _decode_loss(config: PreTrainedConfig, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Cross entropy of all pixels, or of the hard ones."""
    if config.ohem_threshold is None:
        return _cross_entropy(config, logits, targets)
    return _OHEM_RULES[config.ohem_rule](
        logits,
        targets.labels,
        config.ohem_threshold,
        config.ohem_min_kept,
        ignore_index=config.semantic_loss_ignore_index,
        align_corners=config.align_corners,
        class_weights=targets.class_weights,
    )


def _cross_entropy(config: PreTrainedConfig, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    return semantic_segmentation_loss(
        logits,
        targets.labels,
        ignore_index=config.semantic_loss_ignore_index,
        reduction=config.loss_reduction,
        align_corners=config.align_corners,
        class_weights=targets.class_weights,
        valid_pixels=targets.valid_pixels,
    )


def _category_loss(config: PreTrainedConfig, embeddings: torch.Tensor, targets: Targets) -> torch.Tensor:
    return category_consistent_loss(
        embeddings,
        targets.labels,
        config.num_labels,
        ignore_index=config.semantic_loss_ignore_index,
        align_corners=config.align_corners,
        per_image=config.category_consistent_per_image,
    )


def _lovasz_loss(config: PreTrainedConfig, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    logits = resized(logits, targets.labels, config.align_corners)
    return lovasz_softmax_loss(logits, targets.labels, config.semantic_loss_ignore_index)


def _dice_loss(config: PreTrainedConfig, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    logits = resized(logits, targets.labels, config.align_corners)
    return dice_loss(logits, targets.labels, config.semantic_loss_ignore_index)


def _focal_loss(config: PreTrainedConfig, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    return focal_loss(
        resized(logits, targets.labels, config.align_corners),
        targets.labels,
        config.focal_loss_gamma,
        config.semantic_loss_ignore_index,
        class_weights=targets.class_weights,
        valid_pixels=targets.valid_pixels,
    )


class Loss(NamedTuple):
    """A row of [`LOSSES`].

    Args:
        function: called with the configuration, an output and [`Targets`]; returns a scalar.
        of: the output it looks at. Without that output there is no such loss.
        weight: the field of the configuration that it is multiplied by, `None` for 1. At 0 there is no such loss of
            the logits.
    """

    function: Callable[..., torch.Tensor]
    of: str
    weight: str | None = None


# Every loss of a CCNet, by the name that it has in a training's log. To add one: its function, its weight's field in
# `CCNetConfig`, and its row here.
LOSSES = {
    "decode_loss": Loss(_decode_loss, of="logits"),
    "auxiliary_loss": Loss(_cross_entropy, of="auxiliary_logits", weight="auxiliary_loss_weight"),
    "category_loss": Loss(_category_loss, of="category_embeddings", weight="category_consistent_loss_weight"),
    "lovasz_loss": Loss(_lovasz_loss, of="logits", weight="lovasz_loss_weight"),
    "dice_loss": Loss(_dice_loss, of="logits", weight="dice_loss_weight"),
    "focal_loss": Loss(_focal_loss, of="logits", weight="focal_loss_weight"),
}


def semantic_segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    reduction: str = "valid",
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
    valid_pixels: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Cross entropy of logits that are first resized bilinearly to the labels.

    Args:
        logits: (B, num_labels, h, w), floating point; computed in fp32, or float64 if they are.
        labels: (B, H, W), integers in 0..num_labels - 1 or `ignore_index`.
        ignore_index: label of pixels that do not count.
        reduction: `"valid"` divides the sum by the number of labelled pixels, PyTorch's own mean. `"all"` divides by
            the number of all pixels, ignored ones included, as mmsegmentation 1.x does.
        align_corners: of the resize.
        class_weights: (num_labels,) factors of the classes' cross entropy, or `None`. Pixels are counted as without.
        valid_pixels: what `"valid"` divides by instead of the labelled pixels of `labels`. With their mean over the
            processes and accumulation passes of a step, the mean of the losses is the loss of the joined batch.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.

    Raises:
        ValueError: labels of another rank or batch size, or an unknown reduction.
    """
    if reduction not in ("valid", "all"):
        raise ValueError(f"reduction must be 'valid' or 'all', got {reduction!r}")
    labels = class_ids(labels)
    total = nn.functional.cross_entropy(
        resized(logits, labels, align_corners),
        labels,
        weight=class_weights,
        ignore_index=ignore_index,
        reduction="sum",
    )
    if reduction == "all":
        return total / (labels.numel() + _EPSILON)
    if valid_pixels is None:
        valid_pixels = (labels != ignore_index).sum()
    count = torch.as_tensor(valid_pixels, dtype=total.dtype, device=total.device)
    return total / torch.where(count > 0, count, 1)


__all__ = [
    "LOSSES",
    "Loss",
    "Targets",
    "category_consistent_loss",
    "ccnet_loss",
    "ccnet_losses",
    "ohem_loss",
    "paddleseg_ohem_loss",
    "semantic_segmentation_loss",
]
