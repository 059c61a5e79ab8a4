"""Mean intersection over union from one confusion matrix over a whole split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from ccnet_hf.errors import InputError, using
from ccnet_hf.models.image_transforms_ccnet import segmentation_map_to_array


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
        num_labels: ids 0..num_labels-1 are classes.
        ignore_index: true id of pixels that do not count.

    Example:

    ```python
    >>> metric = MeanIoU(num_labels=2)
    >>> metric.add_batch(predictions=[np.array([[0, 1]])], references=[np.array([[0, 0]])])
    >>> metric.compute()["per_category_iou"]
    [0.5, 0.0]
    ```

    Attributes:
        confusion_matrix: (num_labels, num_labels + 1) int64; processes are joined by summing it.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.ignore_index = ignore_index
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

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one image: label maps (H, W) as tensor, array or nested list."""
        with using("a label map is a tensor, an array or a nested list"):
            prediction, reference = (
                m if isinstance(m, torch.Tensor) else torch.as_tensor(np.asarray(m)) for m in (prediction, reference)
            )
        counts = confusion_matrix(prediction, reference.to(prediction.device), self.num_labels, self.ignore_index)
        self.confusion_matrix = self.confusion_matrix.to(counts.device) + counts

    def add_batch(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> None:
        """Count several images, each with its own size."""
        if len(predictions) != len(references):
            raise InputError(f"got {len(predictions)} predictions for {len(references)} references")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Score everything added so far (and `predictions`, if given) as `scores` does, then start anew."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if not int(self.confusion_matrix.sum()):
            raise InputError("no labelled pixel was added")
        result = scores(self.confusion_matrix)
        self.reset()
        return result
