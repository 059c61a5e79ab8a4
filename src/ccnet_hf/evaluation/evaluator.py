"""Score a model on a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import count, islice
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ccnet_hf.data.images import turned_note
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.metric import MeanIoU
from ccnet_hf.evaluation.report import class_table, summary, unlabelled_classes
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.overlap import read_ahead


class Evaluator(ABC):
    """Scores models of one kind on one split: in a training one after the other, by the command that scores once.

    Attributes:
        deciding_score: which of the scores says what model is the best, the one where it is highest.
    """

    deciding_score: ClassVar[str]

    @abstractmethod
    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Score a model in eval mode by its own protocol. All processes of a training call it alike.

        Returns:
            Scores by names that begin with `eval_`, the same in every process.
        """

    @abstractmethod
    def remarks(self) -> list[str]:
        """What a user should know of the examples scored so far, a line or several each."""

    @abstractmethod
    def score(
        self, predictor: Any, batch_size: int = 1, export: Callable[[str, Any], None] | None = None
    ) -> dict[str, Any]:
        """Score a predictor, whatever its protocol.

        Args:
            predictor: of a model of the kind.
            batch_size: examples handed to it at a time.
            export: called with the name and the prediction of every example of this process.

        Returns:
            Scores and counts by name, as JSON holds them.
        """

    @abstractmethod
    def report(self, result: Mapping[str, Any], counted: str) -> list[str]:
        """The lines to print of what `score` returned, as Markdown; `counted` says in words what was scored."""


class SemanticEvaluator(Evaluator):
    """Scores label maps by one confusion matrix.

    Args:
        config: of the models; names the classes.
        dataset: images and label maps.
        image_processor: of the models.
    """

    deciding_score = "eval_mean_iou"

    def __init__(self, config: PreTrainedConfig, dataset: SegmentationDataset, image_processor: BaseImageProcessor):
        self.class_names = [config.id2label[label] for label in range(config.num_labels)]
        self.dataset = dataset
        self.image_processor = image_processor
        self._skipped: set[str] = set()
        self._turned: set[str] = set()

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """As [`Evaluator.__call__`]: the means of `ccnet_hf.evaluation.metric.scores`."""
        result = self.score(Predictor(model, self.image_processor))
        return {f"eval_{name}": value for name, value in result.items() if isinstance(value, float)}

    def remarks(self) -> list[str]:
        lines = []
        if self._skipped:
            lines += [f"{len(self._skipped)} corrupt examples were left out of evaluation:"]
            lines += [f"  {message}" for message in sorted(self._skipped)]
        return lines + ([f"in evaluation, {turned_note(sorted(self._turned))}"] if self._turned else [])

    def score(
        self, predictor: Predictor, batch_size: int = 1, export: Callable[[str, torch.Tensor], None] | None = None
    ) -> dict[str, Any]:
        """As [`evaluate_dataset`]."""
        result = evaluate_dataset(predictor, self.dataset, batch_size, export=export)
        self._skipped.update(result["skipped"])
        self._turned.update(result["turned"])
        return result

    def report(self, result: Mapping[str, Any], counted: str) -> list[str]:
        lines = ["no pixel is labelled: no scores"]
        if "mean_iou" in result:
            lines = [class_table(result, self.class_names), "", f"{summary(result)} ({counted})"]
        notes = [turned_note(result["turned"])] if result["turned"] else []
        if "confusion_matrix" in result:
            counts = [sum(row) for row in result["confusion_matrix"]]
            num_ignored, ignore_index = result["num_ignored_pixels"], self.dataset.ignore_index
            missing = unlabelled_classes(counts, num_ignored, ignore_index, self.class_names)
            notes += [missing] if missing else []
        if notes:
            lines += ["", *notes]
        if skipped := result["skipped"]:
            lines += ["", f"{len(skipped)} examples skipped:", *(f"- {reason}" for reason in skipped)]
        return lines


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
    num_examples = 0
    batches = read_ahead(lambda _: list(islice(examples, batch_size)), count(), number=1)
    with bar, closing(batches):
        for _, reading in batches:
            if not (batch := reading.result()):
                break
            images, labels, names = zip(*batch, strict=True)
            label_maps = predictor.label_maps(images)
            metric.add_batch(predictions=label_maps, references=[torch.from_numpy(label) for label in labels])
            for name, label_map in zip(names, label_maps, strict=True):
                if export is not None:
                    export(name, label_map)
            num_examples += len(batch)
            bar.update(len(batch))
    metric.confusion_matrix = reduce(metric.confusion_matrix.to(process.device), "sum")
    counted = reduce(torch.tensor([num_examples, int(metric.num_ignored)], device=process.device), "sum").tolist()
    result = dict(zip(("num_examples", "num_ignored_pixels"), counted, strict=True))
    result |= {"skipped": sorted(gather_object(corrupt)), "turned": sorted(gather_object(turned))}
    if not result["num_examples"]:
        raise InputError(f"no example to score; {len(result['skipped'])} could not be read")
    if export is not None and not metric.confusion_matrix.any():
        return result
    return result | {"confusion_matrix": metric.confusion_matrix.tolist()} | metric.result()
