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
"""Losses people add to cross entropy: Lovász-softmax and Dice, which look at whole regions, and the focal loss."""

import torch
from torch import nn


def lovasz_softmax_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Lovász-softmax loss (Berman et al., CVPR 2018): the Jaccard loss of every class, made convex in the errors of
    its pixels, and averaged over the classes that occur.

    The classes are gathered over the batch, not in every image, as SCHP does it. What is minimised is 1 - IoU where
    every probability is 0 or 1.

    Args:
        logits: (B, num_labels, H, W), floating point, of the labels' size.
        labels: (B, H, W), int64, in 0..num_labels - 1 or `ignore_index`.
        ignore_index: label of pixels that do not count.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.
    """
    valid = (labels != ignore_index).flatten()
    probabilities = logits.softmax(1).movedim(1, 0).flatten(1)
    total, classes = logits.new_zeros(()), logits.new_zeros(())
    for label, probability in enumerate(probabilities):  # one at a time: sorting takes several times its memory
        is_class = (labels == label).flatten()
        # What is ignored has no error and comes last, where it changes nothing.
        errors = (is_class.to(probability.dtype) - probability).abs().where(valid, 0)
        order = errors.detach().argsort(descending=True, stable=True)
        found = is_class[order].to(probability.dtype)
        missed = found.sum() - found.cumsum(0)
        union = found.sum() + (1 - found).cumsum(0)
        jaccard = 1 - missed / union
        slopes = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        occurs = is_class.any().to(probability.dtype)
        total = total + occurs * (errors[order] * slopes).sum()
        classes = classes + occurs
    return total / classes.clamp(min=1)


def dice_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """Soft Dice loss: 1 - 2 |P and G| / (|P| + |G|) of every class, with probabilities for P, averaged over the
    classes that occur. The classes are gathered over the batch. Arguments and result as of `lovasz_softmax_loss`."""
    valid = labels != ignore_index
    probabilities = logits.softmax(1) * valid[:, None]
    truth = nn.functional.one_hot(labels.where(valid, 0), logits.shape[1]).movedim(-1, 1) * valid[:, None]
    axes = (0, 2, 3)
    sizes = truth.sum(axes)
    overlap = (probabilities * truth).sum(axes)
    dice = 2 * overlap / (probabilities.sum(axes) + sizes).clamp(min=1)
    occurs = sizes > 0
    return (1 - dice).where(occurs, 0).sum() / occurs.sum().clamp(min=1)


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    gamma: float = 2.0,
    ignore_index: int = 255,
    class_weights: torch.Tensor | None = None,
    valid_pixels: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Focal loss (Lin et al., ICCV 2017): cross entropy in which a pixel counts (1 - p) ** gamma, p the probability of
    its class; pixels that are learnt already count little.

    Args:
        logits: (B, num_labels, H, W), floating point, of the labels' size.
        labels: (B, H, W), int64, in 0..num_labels - 1 or `ignore_index`.
        gamma: how little; 0 is cross entropy.
        ignore_index: label of pixels that do not count.
        class_weights: (num_labels,) factors of the classes, alpha in the paper, or `None`.
        valid_pixels: what the sum is divided by instead of the labelled pixels of `labels`.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.
    """
    valid = labels != ignore_index
    cross_entropy = nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    losses = (-torch.expm1(-cross_entropy)).clamp(min=torch.finfo(logits.dtype).tiny) ** gamma * cross_entropy
    if class_weights is not None:
        losses = losses * class_weights[labels.where(valid, 0)]
    count = valid.sum() if valid_pixels is None else valid_pixels
    count = torch.as_tensor(count, dtype=losses.dtype, device=losses.device)
    return losses.where(valid, 0).sum() / torch.where(count > 0, count, 1)


__all__ = ["dice_loss", "focal_loss", "lovasz_softmax_loss"]
