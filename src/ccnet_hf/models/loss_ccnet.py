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

from .loss_regions_ccnet import dice_loss, focal_loss, lovasz_softmax_loss


# mmsegmentation adds the machine epsilon of fp32 to the number of pixels it divides by.
_EPSILON = torch.finfo(torch.float32).eps

# The authors search the threshold of OHEM on a map smaller by this factor.
_OHEM_FACTOR = 8

# Category-consistent loss: margins and the weight of its last term, as the paper sets them.
_DELTA_V, _DELTA_D, _REGULARIZATION = 0.5, 1.5, 0.001


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
    labels = class_ids(labels)
    _check_range(labels, config.num_labels, config.semantic_loss_ignore_index)
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
            loss = function(config, outputs[of], labels, class_weights, valid_pixels)
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


def _decode_loss(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    """Cross entropy of all pixels, or of the hard ones."""
    if config.ohem_threshold is None:
        return _cross_entropy(config, logits, labels, class_weights, valid_pixels)
    return ohem_loss(
        logits,
        labels,
        config.ohem_threshold,
        config.ohem_min_kept,
        ignore_index=config.semantic_loss_ignore_index,
        align_corners=config.align_corners,
        class_weights=class_weights,
    )


def _cross_entropy(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    return semantic_segmentation_loss(
        logits,
        labels,
        ignore_index=config.semantic_loss_ignore_index,
        reduction=config.loss_reduction,
        align_corners=config.align_corners,
        class_weights=class_weights,
        valid_pixels=valid_pixels,
    )


def _category_loss(
    config: PreTrainedConfig,
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    return category_consistent_loss(
        embeddings,
        labels,
        config.num_labels,
        ignore_index=config.semantic_loss_ignore_index,
        align_corners=config.align_corners,
        per_image=config.category_consistent_per_image,
    )


def _lovasz_loss(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    logits = _resized(logits, labels, config.align_corners)
    return lovasz_softmax_loss(logits, labels, config.semantic_loss_ignore_index)


def _dice_loss(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    return dice_loss(_resized(logits, labels, config.align_corners), labels, config.semantic_loss_ignore_index)


def _focal_loss(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    valid_pixels: torch.Tensor | float | None,
) -> torch.Tensor:
    logits = _resized(logits, labels, config.align_corners)
    how = {"class_weights": class_weights, "valid_pixels": valid_pixels}
    return focal_loss(logits, labels, config.focal_loss_gamma, config.semantic_loss_ignore_index, **how)


class Loss(NamedTuple):
    """A row of [`LOSSES`].

    Args:
        function: called with the configuration, an output, labels, and `class_weights` and `valid_pixels` as in
            [`ccnet_losses`]; returns a scalar.
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
        _resized(logits, labels, align_corners),
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


def ohem_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross entropy of the hard pixels: online hard example mining as the authors' code defines it.

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
    log_probabilities = _resized(logits, labels, align_corners).log_softmax(1)
    valid = labels != ignore_index
    cross_entropy = nn.functional.nll_loss(log_probabilities, labels, ignore_index=ignore_index, reduction="none")
    with torch.no_grad():
        bound = _ohem_bound(log_probabilities, labels, threshold, min_kept // _OHEM_FACTOR**2, ignore_index)
        kept = valid & ((-cross_entropy).exp() <= bound)
    if class_weights is not None:
        cross_entropy = cross_entropy * class_weights[labels.where(valid, 0)]
    return cross_entropy.where(kept, 0).sum() / kept.sum().clamp(min=1)


def _ohem_bound(
    log_probabilities: torch.Tensor, labels: torch.Tensor, threshold: float, min_kept: int, ignore_index: int
) -> torch.Tensor:
    """The largest probability that is kept, from the small map; infinite if that map has `min_kept` pixels or less.

    Written without a branch on the data, which would synchronise with the device and break a compiled graph.
    """
    sizes = [max(1, round(side / _OHEM_FACTOR)) for side in labels.shape[-2:]]
    labels = _nearest_labels(labels, sizes, align_corners=True)
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


def category_consistent_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    ignore_index: int = 255,
    align_corners: bool = False,
    per_image: bool = False,
) -> torch.Tensor:
    """Category-consistent loss (paper, TPAMI version): pulls a class together and pushes classes apart.

    l_var + l_dis + 0.001 l_reg over the classes that occur, mu_c being the mean of class c's vectors:

    - l_var: mean over classes of the mean over their pixels of phi(d), d the distance to mu_c; phi is 0 up to 0.5,
      (d - 0.5)^2 up to 1.5, and d - 1.5 + 1 beyond. It bends there as printed: its slope drops from 2 to 1.
    - l_dis: mean over ordered pairs of different classes of (3 - distance of their means)^2 where that is below 3.
    - l_reg: mean over classes of the length of mu_c.

    Args:
        embeddings: (B, C, h, w), floating point; computed in fp32, or float64 if they are.
        labels: (B, H, W), integers in 0..num_labels - 1 or `ignore_index`; brought to (h, w) by nearest sampling.
        num_labels: number of classes.
        ignore_index: label of pixels that do not count.
        align_corners: whether the corners of labels and embeddings fall together.
        per_image: gather a class in every image for itself and average over the images that have one; by default
            over the batch.

    Returns:
        The loss, a scalar; l_dis is 0 with a single class, and all is 0 with zero gradients without any.

    Raises:
        ValueError: labels of another rank or batch size.
    """
    labels = class_ids(labels)
    _check_labels(embeddings, labels)
    batch, channels, *size = embeddings.shape
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    labels = _nearest_labels(labels, size, align_corners)
    valid = labels != ignore_index
    groups = batch if per_image else 1
    # Every class of every group has a place in one long list; ignored pixels go to a last one that is cut off.
    offset = num_labels * torch.arange(groups, device=labels.device).view(-1, 1, 1)
    places = groups * num_labels
    place = (labels + offset).where(valid, places).flatten()
    vectors = embeddings.movedim(1, -1).reshape(-1, channels)
    counts = vectors.new_zeros(places + 1).index_add(0, place, torch.ones_like(vectors[:, 0]))
    sums = vectors.new_zeros(places + 1, channels).index_add(0, place, vectors)
    means = sums / counts.clamp(min=1)[:, None]

    present = (counts[:places] > 0).view(groups, num_labels)
    classes = present.sum(1)
    # Nearer than delta_v nothing is to be learnt, and at 0 the root has no slope.
    distance = (vectors - means[place]).square().sum(1).clamp(min=_DELTA_V**2).sqrt()
    near, far = (distance - _DELTA_V).square(), distance - _DELTA_D + (_DELTA_D - _DELTA_V) ** 2
    pulled = torch.where(distance <= _DELTA_D, near, far) / counts.clamp(min=1)[place]
    pulled = pulled.new_zeros(places + 1).index_add(0, place, pulled)[:places].view(groups, num_labels)
    variance = pulled.sum(1) / classes.clamp(min=1)

    means = means[:places].view(groups, num_labels, channels)
    distances = torch.linalg.vector_norm(means[:, :, None] - means[:, None], dim=-1)
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(num_labels, dtype=torch.bool, device=labels.device)
    pushed = (2 * _DELTA_D - distances).clamp(min=0).square().where(pairs, 0)
    separation = pushed.sum((1, 2)) / (classes * (classes - 1)).clamp(min=1)

    lengths = torch.linalg.vector_norm(means, dim=-1).where(present, 0)
    regularization = lengths.sum(1) / classes.clamp(min=1)
    loss = variance + separation + _REGULARIZATION * regularization
    return loss.sum() / (classes > 0).sum().clamp(min=1)


def class_ids(labels: torch.Tensor) -> torch.Tensor:
    """Labels of any integer dtype, or bool, as int64.

    Raises:
        ValueError: they are not integers.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, the ids of classes, got {labels.dtype}")
    return labels.long()


def _check_range(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Refuse ids that are neither a class nor ignored, which cross entropy would read past its end for."""
    if torch.compiler.is_compiling() or labels.device.type not in ("cpu", "cuda"):
        return
    allowed = f"labels must be from 0 to {num_labels - 1}, or {ignore_index} where pixels are ignored"
    wrong = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    if labels.device.type == "cuda":
        torch._assert_async(~wrong.any(), allowed)
    elif wrong.any():
        raise ValueError(f"{allowed}, got {int(labels[wrong][0])}")


def _check_labels(outputs: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.dim() != 3 or labels.shape[0] != outputs.shape[0]:
        raise ValueError(
            f"labels must be (batch, height, width) with the logits' batch size, got labels {tuple(labels.shape)} "
            f"for logits {tuple(outputs.shape)}"
        )


def _resized(logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """Logits at the labels' size, in fp32 or, if they are, float64."""
    _check_labels(logits, labels)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)


def _nearest_labels(labels: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
    """Labels (B, H, W) at the nearest pixel to every place of a (B, *size) map; halves go up. Exact, in integers."""
    indices = []
    for full, small in zip(labels.shape[-2:], size, strict=True):
        place = torch.arange(small, device=labels.device)
        if align_corners:
            steps = max(1, small - 1)
            indices.append((2 * place * (full - 1) + steps) // (2 * steps))
        else:
            indices.append((2 * place + 1) * full // (2 * small))
    return labels[:, indices[0][:, None], indices[1]]


__all__ = [
    "LOSSES",
    "Loss",
    "category_consistent_loss",
    "ccnet_loss",
    "ccnet_losses",
    "ohem_loss",
    "semantic_segmentation_loss",
]
