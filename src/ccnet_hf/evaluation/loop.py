"""Score a predictor on a split."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm

from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.evaluation.metric import MeanIoU
from ccnet_hf.inference import Predictor


def evaluate_dataset(
    predictor: Predictor, dataset: SegmentationDataset, batch_size: int = 1, progress: bool = True
) -> dict[str, Any]:
    """Score label maps at every picture's own size against its untouched label map.

    With several processes each takes every n-th picture, and the confusion matrices are summed.

    Args:
        predictor: gives the label maps.
        dataset: pictures and label maps; its transform is not used.
        batch_size: pictures handed to the predictor at a time.
        progress: whether to show a progress bar.

    Returns:
        The scores of `ccnet_hf.evaluation.metric.scores`.
    """
    process = PartialState()
    metric = MeanIoU(num_labels=dataset.num_labels, ignore_index=dataset.ignore_index)
    mine = range(process.process_index, len(dataset), process.num_processes)
    starts = range(0, len(mine), batch_size)
    for start in tqdm(starts, desc="evaluate", disable=not (progress and process.is_main_process), leave=False):
        pictures, labels, _ = zip(*(dataset.read(index) for index in mine[start : start + batch_size]), strict=True)
        metric.add_batch(predictions=predictor.label_maps(pictures), references=[torch.from_numpy(m) for m in labels])
    metric.confusion_matrix = reduce(metric.confusion_matrix.to(process.device))
    return metric.compute()
