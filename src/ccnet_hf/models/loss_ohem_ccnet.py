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
"""Cross entropy of the hard pixels only: online hard example mining (OHEM), as the authors' code defines it and as
PaddleSeg does."""

import torch
from torch import nn

from .loss_labels_ccnet import class_ids, nearest_labels, resized


# The authors search the threshold on a map smaller by this factor.
_OHEM_FACTOR = 8

# PaddleSeg adds this to the fraction of pixels that it divides by.
_PADDLESEG_EPSILON = 1e-5


def ohem_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy of the hard pixels, by the authors' rule.

    A pixel is kept if its class has at most the probability `threshold`, or another that is higher where this keeps
    too few. That one is found on a map 8 times smaller (probabilities sampled bilinearly, labels nearest, corners
    aligned): the (min_kept // 64)-th smallest of its labelled pixels. Where the map has no more labelled pixels than
    that, all are kept. It is searched in the whole batch of this process.

    Args:
        logits: (B, num_labels, h, w), floating point; computed in fp32, or float64 if they are.
        labels: (B, H, W), integers in 0..num_labels - 1 or `ignore_index`.
        threshold: pixels whose class has at most this probability are always kept.
        min_kept: pixels to keep at least, about, over the batch.
        ignore_index: label of pixels that do not count.
        align_corners: of the resize to the labels.
        class_weights: (num_labels,) factors of the classes' cross entropy, or `None`; they do not change what is kept.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.

    Raises:
        ValueError: labels of another rank or batch size.
    """
    labels = class_ids(labels)
    # One logarithm for the bound and the pixels: where a sample is a pixel, as in the corners, the two must tie.
    log_probabilities = resized(logits, labels, align_corners).log_softmax(1)
    valid = labels != ignore_index
    cross_entropy = nn.functional.nll_loss(log_probabilities, labels, ignore_index=ignore_index, reduction="none")
    with torch.no_grad():
        bound = _ohem_bound(log_probabilities, labels, threshold, min_kept // _OHEM_FACTOR**2, ignore_index)
        kept = valid & ((-cross_entropy).exp() <= bound)
    if class_weights is not None:
        cross_entropy = cross_entropy * class_weights[labels.where(valid, 0)]
    return cross_entropy.where(kept, 0).sum() / kept.sum().clamp(min=1)


def paddleseg_ohem_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy of the hard pixels, by PaddleSeg's rule (`OhemCrossEntropyLoss`).

    A pixel is kept if its class has a probability strictly below `threshold`, or below the `min_kept`-th smallest of
    all labelled pixels where that is higher, so that `min_kept - 1` are kept then. Where there are no more than
    `min_kept` labelled pixels, or `min_kept` is 0, all are. The bound is searched at the size of the labels, in the
    whole batch of this process, and 1e-5 is added to the fraction of kept pixels that the loss is divided by.

    Args:
        logits, labels, ignore_index, align_corners, class_weights: as for [`ohem_loss`].
        threshold: pixels whose class has a lower probability are always kept.
        min_kept: pixels to keep at least, but for one.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.

    Raises:
        ValueError: labels of another rank or batch size.
    """
    labels = class_ids(labels)
    log_probabilities = resized(logits, labels, align_corners).log_softmax(1)
    valid = labels != ignore_index
    cross_entropy = nn.functional.nll_loss(log_probabilities, labels, ignore_index=ignore_index, reduction="none")
    with torch.no_grad():
        probability = (-cross_entropy).exp().where(valid, torch.inf)
        kept = valid
        if 0 < min_kept < labels.numel():
            hardest = probability.flatten().sort().values[min_kept - 1]
            bound = hardest.clamp(min=threshold).where(valid.sum() > min_kept, torch.inf)
            kept = probability < bound
    if class_weights is not None:
        cross_entropy = cross_entropy * class_weights[labels.where(valid, 0)]
    return cross_entropy.where(kept, 0).mean() / (kept.to(cross_entropy.dtype).mean() + _PADDLESEG_EPSILON)


def _ohem_bound(
    log_probabilities: torch.Tensor, labels: torch.Tensor, threshold: float, min_kept: int, ignore_index: int
) -> torch.Tensor:
    """The largest probability that is kept, from the small map; infinite if that map has `min_kept` pixels or less.

    Written without a branch on the data, which would synchronise with the device and break a compiled graph.
    """
    sizes = [max(1, round(side / _OHEM_FACTOR)) for side in labels.shape[-2:]]
    labels = nearest_labels(labels, sizes, align_corners=True)
    valid = labels != ignore_index
    probability = _sampled_probability(log_probabilities, labels.where(valid, 0))
    if min_kept >= labels.numel():
        return probability.new_full((), torch.inf)
    if min_kept == 0:
        return probability.new_full((), threshold).where(valid.any(), torch.inf)
    hardest = probability.where(valid, torch.inf).flatten().sort().values[min_kept - 1]
    return hardest.clamp(min=threshold).where(valid.sum() > min_kept, torch.inf)


def _sampled_probability(log_probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probability of the class `labels` (B, h, w) in a map (B, K, H, W) resized to (h, w), corners aligned."""
    corners = []
    for size, samples in zip(log_probabilities.shape[-2:], labels.shape[-2:], strict=True):
        place = torch.arange(samples, device=labels.device)
        steps = max(1, samples - 1)
        low = place * (size - 1) // steps
        share = (place * (size - 1) % steps).to(log_probabilities.dtype) / steps
        corners.append((low, (low + 1).clamp(max=size - 1), share))
    (top, bottom, down), (left, right, across) = corners
    probability = 0
    for rows, row_share in ((top, 1 - down), (bottom, down)):
        for columns, column_share in ((left, 1 - across), (right, across)):
            neighbour = log_probabilities[:, :, rows[:, None], columns].gather(1, labels[:, None]).squeeze(1).exp()
            probability = probability + row_share[:, None] * column_share * neighbour
    return probability


__all__ = ["ohem_loss", "paddleseg_ohem_loss"]
