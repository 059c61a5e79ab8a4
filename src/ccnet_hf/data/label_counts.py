"""How many pixels of every class a split has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from ccnet_hf.data.images import CorruptExample
from ccnet_hf.data.loading import SegmentationDataset


def label_counts(dataset: SegmentationDataset, start: int = 0, step: int = 1) -> torch.Tensor:
    """Number of pixels of every id in every `step`-th label map from `start` on, (256,) int64."""
    return sum(_counts(dataset, start, step), torch.zeros(256, dtype=torch.int64))


def sample_label_counts(dataset: SegmentationDataset, most: int = 64) -> tuple[torch.Tensor, int]:
    """Count the pixels of label maps from all over a split, or the first of a stream, until all classes have occurred.

    Args:
        dataset: the split.
        most: how many label maps are read at most.

    Returns:
        Number of pixels of every id, (256,) int64, and of label maps read.
    """
    step = 1 if dataset.streamed else max(1, len(dataset) // most)
    counts, number = torch.zeros(256, dtype=torch.int64), 0
    for found in islice(_counts(dataset, 0, step), most):
        counts, number = counts + found, number + 1
        if counts[: dataset.num_labels].all():
            break
    return counts, number


def _counts(dataset: SegmentationDataset, start: int, step: int) -> Iterator[torch.Tensor]:
    """Number of pixels of every id, (256,) int64, in one label map after the other."""
    for index, example in dataset.encoded(start, step):
        try:
            yield torch.from_numpy(np.bincount(dataset.decode_label(example, index).ravel(), minlength=256))
        except CorruptExample:
            if not dataset.skip_corrupt:
                raise
