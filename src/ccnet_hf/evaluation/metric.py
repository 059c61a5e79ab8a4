"""Mean intersection over union from one confusion matrix over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ccnet_hf.errors import InputError, using
from ccnet_hf.evaluation.report import unlabelled_classes
from ccnet_hf.limits import check_integer
from ccnet_hf.models.image_transforms_ccnet import segmentation_map_to_array


logger = logging.get_logger(__name__)

MAX_CLASSES = 16_384  # whose matrix takes 2 GB

_DESCRIPTION = "Mean IoU of label maps, from one confusion matrix over all pixels of all images."
_INPUTS = """
Args:
    predictions: label maps (H, W) of class ids, one per image; sizes may differ from image to image.
    references: the true label maps, of the same sizes; pixels with the ignored id do not count.
"""


def confusion_matrix(
    prediction: torch.Tensor, reference: torch.Tensor, num_labels: int, ignore_index: int
) -> torch.Tensor:
    """Count the pixels of one image by true and predicted class.

    Args:
        prediction: ids of any shape, integers or whole floats; one that is no class counts as missed, as in the
            metrics of the peers.
        reference: ids of the same shape, each a class or `ignore_index`.
        num_labels: ids 0..num_labels - 1 are classes.
        ignore_index: true id of the pixels that do not count.

    Returns:
        (num_labels, num_labels + 1) int64 on the inputs' device, rows = truth; the last column holds predictions
        outside the classes.

    Raises:
        InputError: the shapes differ, an id is no whole number, or a true one is neither a class nor ignored.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ in shape"
        )
    # int64 first: uint8 would overflow in the product below.
    with using("prediction"):
        prediction = segmentation_map_to_array(prediction).flatten()
    with using("reference"):
        reference = segmentation_map_to_array(reference).flatten()
    counted = reference != ignore_index
    prediction, reference = prediction[counted], reference[counted]
    wrong = reference[(reference < 0) | (reference >= num_labels)]
    if wrong.numel():
        raise InputError(f"true label id {int(wrong[0])} is outside 0..{num_labels - 1} and is not {ignore_index}")
    prediction = torch.where((prediction >= 0) & (prediction < num_labels), prediction, num_labels)
    cells = reference * (num_labels + 1) + prediction
    return torch.bincount(cells, minlength=num_labels * (num_labels + 1)).view(num_labels, num_labels + 1)


def _to_tensor(label_map: Any) -> torch.Tensor:
    if isinstance(label_map, torch.Tensor):
        return label_map
    if isinstance(label_map, Image.Image):
        return torch.from_numpy(segmentation_map_to_array(label_map))
    return torch.as_tensor(np.asarray(label_map))


def scores(matrix: torch.Tensor) -> dict[str, Any]:
    """IoU and accuracies of a confusion matrix as `confusion_matrix` counts it.

    Returns:
        `mean_iou` over the classes that occur in truth or prediction, `mean_accuracy` over those that occur in truth,
        `overall_accuracy`, and the lists `per_category_iou`, `per_category_accuracy`, with NaN for classes left out;
        all from 0 to 1.
    """
    matrix = matrix.double().cpu()
    hits = matrix.diagonal()
    truth, predicted = matrix.sum(1), matrix.sum(0)[:-1]
    iou, accuracy = hits / (truth + predicted - hits), hits / truth
    return {
        "mean_iou": float(iou.nanmean()),
        "mean_accuracy": float(accuracy.nanmean()),
        "overall_accuracy": float(hits.sum() / matrix.sum()),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


class MeanIoU(evaluate.Metric):
    """Mean IoU as an `evaluate` metric that keeps one int64 confusion matrix and no image, and needs no network.

    Args:
        num_labels: ids 0..num_labels-1 are classes, two at least.
        ignore_index: true id of pixels that do not count, which is no class.

    Raises:
        InputError: there is a single class, there are too many for a matrix, or the ignored id is one of them.

    Example:

    ```python
    >>> metric = MeanIoU(num_labels=2)
    >>> metric.add_batch(predictions=[np.array([[0, 1]])], references=[np.array([[0, 0]])])
    >>> metric.compute()["per_category_iou"]
    [0.5, 0.0]
    ```

    Attributes:
        confusion_matrix: (num_labels, num_labels + 1) int64; processes are joined by summing it.
        num_ignored: number of pixels with the ignored id, as a tensor.
        class_names: name per class for what `compute` says about classes; `None` says their ids alone.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs: Any):
        super().__init__(**kwargs)
        check_integer("num_labels", num_labels, 2)
        check_integer("ignore_index", ignore_index, -inf)
        if num_labels > MAX_CLASSES:
            gigabytes = num_labels * (num_labels + 1) * 8 / 1e9
            raise InputError(
                f"`num_labels` must be at most {MAX_CLASSES:,}, got {num_labels}: its confusion matrix would take "
                f"{gigabytes:,.0f} GB of memory"
            )
        if 0 <= ignore_index < num_labels:
            raise InputError(f"`ignore_index` must be no class, got {ignore_index} of {num_labels} classes")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.class_names: Sequence[str] | None = None
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _build_data_dir(self) -> str:
        return ""  # the base class would make a cache folder for images that are not kept

    def reset(self) -> None:
        """Forget everything added so far."""
        self.confusion_matrix = torch.zeros(self.num_labels, self.num_labels + 1, dtype=torch.int64)
        self.num_ignored = torch.tensor(0)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one image: label maps (H, W) as tensor, array, nested list, or PIL image, which is turned upright as
        its EXIF orientation says."""
        with using("a label map is a tensor, an array or a nested list"):
            prediction, reference = map(_to_tensor, (prediction, reference))
        counts = confusion_matrix(prediction, reference.to(prediction.device), self.num_labels, self.ignore_index)
        self.confusion_matrix = self.confusion_matrix.to(counts.device) + counts
        num_ignored = (reference == self.ignore_index).sum()
        self.num_ignored = self.num_ignored.to(num_ignored.device) + num_ignored

    def add_batch(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> None:
        """Count several images, each with its own size.

        Raises:
            InputError: they are not as many label maps as there are true ones, or one is none.
        """
        for name, maps in (("predictions", predictions), ("references", references)):
            if not hasattr(maps, "__len__") or isinstance(maps, str | bytes):
                raise InputError(f"`{name}` must be a list of label maps, one per image, got {maps!r}")
        if len(predictions) != len(references):
            raise InputError(f"got {len(predictions)} predictions for {len(references)} references")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Score everything added so far (and `predictions`, if given) as `scores` does, then start anew.

        Where no pixel is labelled as one of the classes, and some are ignored, a warning says so once.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_ignored:
            counts = self.confusion_matrix.sum(dim=1).tolist()
            line = unlabelled_classes(counts, int(self.num_ignored), self.ignore_index, self.class_names)
            if line is not None:
                logger.warning_once(line)
        return self.result()

    def result(self) -> dict[str, Any]:
        """As `compute` of what was added so far, without a word on classes that no pixel is labelled as."""
        if not int(self.confusion_matrix.sum()):
            raise InputError("no labelled pixel was added")
        result = scores(self.confusion_matrix)
        self.reset()
        return result
