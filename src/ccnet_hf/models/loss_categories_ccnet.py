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
"""The category-consistent loss (paper, TPAMI version), on the attended feature map."""

import torch

from .loss_labels_ccnet import check_labels, class_ids, nearest_labels


# Margins and the weight of the last term, as the paper sets them.
_DELTA_V, _DELTA_D, _REGULARIZATION = 0.5, 1.5, 0.001


def category_consistent_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    ignore_index: int = 255,
    align_corners: bool = False,
    per_image: bool = False,
) -> torch.Tensor:
    """Pulls the vectors of a class together and pushes the means of classes apart.

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
    check_labels(embeddings, labels)
    batch, channels, *size = embeddings.shape
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    labels = nearest_labels(labels, size, align_corners)
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


__all__ = ["category_consistent_loss"]
