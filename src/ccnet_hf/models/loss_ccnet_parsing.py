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
"""The losses of human parsing: of both classifiers, of the edges between the parts, and the category-consistent one.

Source: CE2P (Liu et al., "Devil in the Details: Towards Accurate Single and Multiple Human Parsing", AAAI 2019).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig

from .loss_ccnet import LOSSES, Targets, semantic_segmentation_loss
from .loss_labels_ccnet import checked_class_ids


# Two pixels are marked on both sides of a border, and one more around them.
_EDGE_KERNEL = 3


def ccnet_parsing_losses(
    config: PreTrainedConfig,
    labels: torch.Tensor,
    logits: torch.Tensor,
    parsing_logits: torch.Tensor,
    edge_logits: torch.Tensor,
    category_embeddings: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
    valid_pixels: torch.Tensor | float | None = None,
) -> dict[str, torch.Tensor]:
    """The losses of a model's outputs, each with its weight, so that their sum is what is minimised.

    Args:
        config: a `CCNetParsingConfig`; says how they count.
        labels: (B, H, W), integers in 0..num_labels - 1 or `config.semantic_loss_ignore_index`.
        logits: (B, num_labels, h, w) of the final classifier.
        parsing_logits: likewise of the decoder's.
        edge_logits: (B, 2, h, w), no edge and edge.
        category_embeddings: (B, C, h', w'), what the category-consistent loss looks at.
        class_weights: as in `semantic_segmentation_loss`, for both classifiers.
        valid_pixels: as in `semantic_segmentation_loss`, for both classifiers. The edge loss and the
            category-consistent loss are means over this batch, whatever it is.

    Returns:
        Scalars by name: `fusion_loss`, `parsing_loss`, `edge_loss`, those of both classifiers that have a weight
        (`lovasz_loss`, `dice_loss`, `focal_loss`), and `category_loss` where its input is given.

    Raises:
        ValueError: as `ccnet_losses`.
    """
    labels = checked_class_ids(config, labels)
    ignore_index, align_corners = config.semantic_loss_ignore_index, config.align_corners
    how = {
        "ignore_index": ignore_index,
        "align_corners": align_corners,
        "class_weights": class_weights,
        "valid_pixels": valid_pixels,
    }
    parsing_loss = semantic_segmentation_loss(parsing_logits, labels, **how)
    edges = edge_loss(edge_logits, labels, ignore_index, align_corners)
    losses = {
        "fusion_loss": semantic_segmentation_loss(logits, labels, **how),
        "parsing_loss": config.parsing_loss_weight * parsing_loss,
        "edge_loss": config.edge_loss_weight * edges,
    }
    targets = Targets(labels, class_weights, valid_pixels)
    for name in ("lovasz_loss", "dice_loss", "focal_loss"):
        function, _, weight = LOSSES[name]
        if factor := getattr(config, weight):
            of_final, of_decoder = (function(config, output, targets) for output in (logits, parsing_logits))
            losses[name] = factor * (of_final + config.parsing_loss_weight * of_decoder)
    if category_embeddings is not None:
        function, _, weight = LOSSES["category_loss"]
        losses["category_loss"] = getattr(config, weight) * function(config, category_embeddings, targets)
    return losses


def ccnet_parsing_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    parsing_logits: torch.Tensor,
    edge_logits: torch.Tensor,
    category_embeddings: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    """The `loss_function` of [`CCNetForHumanParsing`]: the sum of [`ccnet_parsing_losses`].

    Args:
        logits: (B, num_labels, h, w) of the final classifier.
        labels: (B, H, W), integers in 0..num_labels - 1 or `config.semantic_loss_ignore_index`.
        config: a `CCNetParsingConfig`.
        parsing_logits: likewise of the decoder's.
        edge_logits: (B, 2, h, w), no edge and edge.
        category_embeddings: (B, C, h', w'), what the category-consistent loss looks at.
        kwargs: what transformers hands to other loss functions as well.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: as [`ccnet_parsing_losses`].
    """
    return sum(ccnet_parsing_losses(config, labels, logits, parsing_logits, edge_logits, category_embeddings).values())


def edge_loss(
    edge_logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, align_corners: bool = True
) -> torch.Tensor:
    """Cross entropy of edges and non-edges, each weighted by the fraction of pixels that the other one has in this
    batch, and divided by the summed weights: half the mean over the edges plus half the mean over the other pixels.

    Args:
        edge_logits: (B, 2, h, w), floating point, no edge and edge; computed in fp32, or float64 if they are. They
            are resized bilinearly to the labels.
        labels: (B, H, W), int64, class ids; their edges are found by `edge_target`.
        ignore_index: label of pixels that make no edge. They count as pixels without one.
        align_corners: of the resize.

    Returns:
        The loss, a scalar; 0 with zero gradients where there is no edge, or nothing else.

    Raises:
        ValueError: labels of another rank or batch size.
    """
    target = edge_target(labels, ignore_index)
    edges, pixels = target.sum(), target.numel()
    dtype = torch.float64 if edge_logits.dtype == torch.float64 else torch.float32
    weights = torch.stack([edges, pixels - edges]).to(dtype) / pixels
    summed_weights = weights[target].sum()
    return semantic_segmentation_loss(
        edge_logits,
        target,
        ignore_index=ignore_index,
        align_corners=align_corners,
        class_weights=weights,
        valid_pixels=summed_weights,
    )


def edge_target(labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """1 at the borders between classes and around them, 0 elsewhere, as CE2P draws them.

    Of two neighbouring pixels of different classes one is marked: the lower one, the left one, and of two that touch
    at a corner the upper one. All that touch a marked pixel are edge, too, so that straight edges are four pixels
    wide. Next to ignored pixels there is no edge, and they are none.

    Args:
        labels: (B, H, W), integers, class ids.
        ignore_index: label of pixels that do not count.

    Returns:
        (B, H, W), int64.
    """

    def differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one != other) & (one != ignore_index) & (other != ignore_index)

    marked = torch.zeros_like(labels, dtype=torch.bool)
    marked[:, 1:] |= differ(labels[:, 1:], labels[:, :-1])
    marked[:, :, :-1] |= differ(labels[:, :, :-1], labels[:, :, 1:])
    marked[:, :-1, :-1] |= differ(labels[:, :-1, :-1], labels[:, 1:, 1:])
    marked[:, :-1, 1:] |= differ(labels[:, :-1, 1:], labels[:, 1:, :-1])
    widened = nn.functional.max_pool2d(marked[:, None].float(), _EDGE_KERNEL, stride=1, padding=_EDGE_KERNEL // 2)
    return widened[:, 0].long()


__all__ = ["ccnet_parsing_loss", "ccnet_parsing_losses", "edge_loss", "edge_target"]
