"""Score a video model on the labelled frames of clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ccnet_hf.data.loading import CorruptExample
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.evaluator import SemanticEvaluator
from ccnet_hf.evaluation.metric import MeanIoU
from ccnet_hf.inference.video import CCNetVideoSession


class VideoEvaluator(SemanticEvaluator):
    """Scores the label map of every labelled frame, the last one of its clip, by one confusion matrix.

    Runs of frames are walked through by a `CCNetVideoSession`, as a video that comes frame by frame: what it gives is
    what the model gives for the clip.
    """

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """As [`SemanticEvaluator.__call__`]."""
        result = self.score(CCNetVideoSession(model, self.image_processor))
        return {f"eval_{name}": value for name, value in result.items() if isinstance(value, float)}

    def score(
        self,
        predictor: CCNetVideoSession,
        batch_size: int = 1,
        export: Callable[[str, torch.Tensor], None] | None = None,
    ) -> dict[str, Any]:
        """As `ccnet_hf.evaluation.evaluator.evaluate_dataset`, one frame at a time; with several processes each takes
        every n-th run."""
        process, dataset = PartialState(), self.dataset
        metric = MeanIoU(num_labels=dataset.num_labels, ignore_index=dataset.ignore_index)
        skipped, turned = [], []
        num_examples = 0
        runs = dataset.runs[process.process_index :: process.num_processes]
        total = sum(map(len, runs))
        with tqdm(total=total, desc="evaluate", unit="frame", disable=not process.is_main_process, leave=False) as bar:
            for run in runs:
                predictor.reset()
                for index in run:
                    bar.update()
                    try:
                        image, label, name, was_turned = dataset.frame(index)
                    except CorruptExample as error:
                        if not dataset.skip_corrupt:
                            raise
                        skipped.append(str(error))
                        predictor.reset()
                        continue
                    label_map = predictor.step(image)
                    metric.add_batch(predictions=[label_map], references=[torch.from_numpy(label)])
                    if export is not None:
                        export(name, label_map)
                    turned += [name] if was_turned else []
                    num_examples += 1
        predictor.reset()
        metric.confusion_matrix = reduce(metric.confusion_matrix.to(process.device), "sum")
        counted = reduce(torch.tensor([num_examples, int(metric.num_ignored)], device=process.device), "sum").tolist()
        result = dict(zip(("num_examples", "num_ignored_pixels"), counted, strict=True))
        result |= {"skipped": sorted(gather_object(skipped)), "turned": sorted(gather_object(turned))}
        if not result["num_examples"]:
            raise InputError(f"no frame to score; {len(result['skipped'])} could not be read")
        self._skipped.update(result["skipped"])
        self._turned.update(result["turned"])
        if export is not None and not metric.confusion_matrix.any():
            return result
        return result | {"confusion_matrix": metric.confusion_matrix.tolist()} | metric.result()
