"""Score a predictor on a split."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from tqdm.auto import tqdm

from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.metric import MeanIoU
from ccnet_hf.inference import Predictor


def evaluate_dataset(
    predictor: Predictor,
    dataset: SegmentationDataset,
    batch_size: int = 1,
    progress: bool = True,
    export: Callable[[str, torch.Tensor], None] | None = None,
) -> dict[str, Any]:
    """Score label maps at every image's own size against its untouched label map.

    With several processes each takes every n-th image, and the confusion matrices are summed; all return the same.

    Args:
        predictor: gives the label maps.
        dataset: images and label maps, mapped or streamed; its transform is not used.
        batch_size: images handed to the predictor at a time.
        progress: whether to show a progress bar.
        export: called with the name and the label map (H, W) of every image of this process.

    Returns:
        `num_examples`; `num_ignored_pixels`; `skipped`, the messages about examples left out because `dataset` skips
        corrupt ones; `turned`, the names of those whose label maps were turned with their images; `confusion_matrix`,
        as `ccnet_hf.evaluation.metric.confusion_matrix` counts, in nested lists; and the scores of
        `ccnet_hf.evaluation.metric.scores`. The last two are missing where `export` is given and no pixel is labelled.

    Raises:
        InputError: no example, or no labelled pixel and no `export`.
    """
    process = PartialState()
    metric = MeanIoU(num_labels=dataset.num_labels, ignore_index=dataset.ignore_index)
    corrupt: list[str] = []
    turned: list[str] = []
    examples = dataset.examples(process.process_index, process.num_processes, corrupt, turned)
    total = None if dataset.streamed else len(range(process.process_index, len(dataset), process.num_processes))
    bar = tqdm(
        total=total, desc="evaluate", unit="image", disable=not (progress and process.is_main_process), leave=False
    )
    num_examples = num_ignored = 0
    with bar:
        while batch := list(islice(examples, batch_size)):
            images, labels, names = zip(*batch, strict=True)
            label_maps = predictor.label_maps(images)
            metric.add_batch(predictions=label_maps, references=[torch.from_numpy(label) for label in labels])
            for name, label_map in zip(names, label_maps, strict=True):
                if export is not None:
                    export(name, label_map)
            num_examples += len(batch)
            num_ignored += sum(int((label == dataset.ignore_index).sum()) for label in labels)
            bar.update(len(batch))
    metric.confusion_matrix = reduce(metric.confusion_matrix.to(process.device), "sum")
    counted = reduce(torch.tensor([num_examples, num_ignored], device=process.device), "sum").tolist()
    result = dict(zip(("num_examples", "num_ignored_pixels"), counted, strict=True))
    result |= {"skipped": sorted(gather_object(corrupt)), "turned": sorted(gather_object(turned))}
    if not result["num_examples"]:
        raise InputError(f"no example to score; {len(result['skipped'])} could not be read")
    if export is not None and not metric.confusion_matrix.any():
        return result
    return result | {"confusion_matrix": metric.confusion_matrix.tolist()} | metric.compute()
