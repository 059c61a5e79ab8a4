"""Score a model's instances on a split by average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ccnet_hf.data.instances import InstanceDataset
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.average_precision import KINDS, NAMES, average_precision, compressed
from ccnet_hf.evaluation.evaluator import Evaluator
from ccnet_hf.inference.instances import InstancePredictor, Instances


class InstanceEvaluator(Evaluator):
    """Scores boxes and masks by COCO's average precision, at every image's own size. Labels are the category ids.

    Args:
        config: of the models.
        dataset: images and objects; its transform is not used.
        image_processor: of the models.
    """

    deciding_score = "eval_mask_ap"

    def __init__(self, config: PreTrainedConfig, dataset: InstanceDataset, image_processor: BaseImageProcessor):
        self.config = config
        self.dataset = dataset
        self.image_processor = image_processor
        self._skipped: set[str] = set()

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        result = self.score(InstancePredictor(model, self.image_processor))
        return {f"eval_{name}": value for name, value in result.items() if isinstance(value, float)}

    def remarks(self) -> list[str]:
        if not self._skipped:
            return []
        lines = [f"{len(self._skipped)} corrupt examples were left out of evaluation:"]
        return lines + [f"  {message}" for message in sorted(self._skipped)]

    def score(
        self, predictor: InstancePredictor, batch_size: int = 1, export: Callable[[str, Any], None] | None = None
    ) -> dict[str, Any]:
        """As [`Evaluator.score`]. With several processes each takes every n-th image; the scores are computed of all.

        Returns:
            `num_examples`; `skipped`, the messages about examples left out; and the scores of
            [`average_precision`].

        Raises:
            InputError: there is no example.
        """
        process = PartialState()
        corrupt: list[str] = []
        examples = self.dataset.truths(process.process_index, process.num_processes, corrupt)
        images, annotations, detections = [], [], []
        with tqdm(desc="evaluate", unit="image", disable=not process.is_main_process, leave=False) as bar:
            while batch := list(islice(examples, batch_size)):
                found = predictor.instances([image for image, *_ in batch])
                for (image, objects, image_id, name), instances in zip(batch, found, strict=True):
                    images.append({"id": image_id, "height": image.height, "width": image.width})
                    annotations += [{**entry, "image_id": image_id} for entry in objects]
                    detections += coco_results(instances, image_id)
                    if export is not None:
                        export(name, instances)
                    bar.update()
        # A list each, for empty ones are gathered as nothing.
        gathered = gather_object([(images, annotations, detections, corrupt)])
        images, annotations, detections, skipped = (
            [one for part in parts for one in part] for parts in zip(*gathered, strict=True)
        )
        self._skipped.update(skipped)
        if not images:
            raise InputError(f"no example to score; {len(skipped)} could not be read")
        if len({image["id"] for image in images}) < len(images):
            raise InputError("two images have the same image_id")
        counts = {"num_examples": len(images), "skipped": sorted(skipped)}
        return counts | average_precision(images, annotations, detections)

    def report(self, result: Mapping[str, Any], counted: str) -> list[str]:
        lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
        for kind in KINDS:
            cells = (_percent(result[f"{kind}_{name}"]) for name in NAMES)
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines += ["", f"box AP {_percent(result['box_ap'])}, mask AP {_percent(result['mask_ap'])} ({counted})"]
        if skipped := result["skipped"]:
            lines += ["", f"{len(skipped)} examples skipped:", *(f"- {reason}" for reason in skipped)]
        return lines


def _percent(score: float) -> str:
    return "-" if score < 0 else f"{100 * score:.1f}"


def coco_results(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """The instances of an image as COCO's results format has them."""
    results = []
    rows = zip(instances.scores.tolist(), instances.labels.tolist(), instances.boxes.tolist(), strict=True)
    for (score, label, (left, top, right, bottom)), mask in zip(rows, instances.masks.numpy(), strict=True):
        results.append(
            {
                "image_id": image_id,
                "category_id": label,
                "score": score,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": compressed(mask, mask.shape),
            }
        )
    return results
