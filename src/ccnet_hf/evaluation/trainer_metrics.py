"""The scores of this package in transformers' `Trainer`."""

from __future__ import annotations

import math

import torch
from torch.distributed import get_world_size, is_initialized
from transformers import EvalPrediction, PreTrainedConfig

from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.metric import MeanIoU, confusion_matrix
from ccnet_hf.inference.runtime import check_logits
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits


_PADDING = -100  # of label maps, where `Trainer` makes them equally high in all processes


class TrainerMetrics:
    """Counts pixels while `Trainer` evaluates, and scores them by one confusion matrix; made by [`compute_metrics`].

    Args:
        config: of the model: its classes, the ignored id and how its logits are resized.
    """

    def __init__(self, config: PreTrainedConfig):
        if not hasattr(config, "semantic_loss_ignore_index"):
            raise InputError(
                "`config` must be of a model of semantic segmentation, of clips or of human parsing, got "
                f"{type(config).__name__}"
            )
        self.config = config
        self.metric = MeanIoU(num_labels=config.num_labels, ignore_index=config.semantic_loss_ignore_index)
        self.metric.class_names = [config.id2label[label] for label in range(config.num_labels)]

    def count(self, logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        """Count the pixels of a batch, for `Trainer(preprocess_logits_for_metrics=...)`.

        Args:
            logits: (B, num_labels, h, w), of clips (B * T, num_labels, h, w), of any floating dtype and device;
                resized to the labels by the rule of the model. Of several outputs the first.
            labels: (B, H, W), of clips (B, T, H, W), classes or the ignored id.

        Returns:
            (B, num_labels, num_labels + 1) int64, for each example what `confusion_matrix` counts: all that `Trainer`
            keeps of it, and gathers from other processes.

        Raises:
            InputError: the logits are not of the model's classes or not as many as the label maps, or hold NaN.
        """
        logits = logits[0] if isinstance(logits, tuple) else logits
        shapes = [tuple(getattr(values, "shape", ())) for values in (logits, labels)]
        is_fit = len(shapes[0]) == 4 and len(shapes[1]) in (3, 4) and shapes[0][1] == self.config.num_labels
        if not is_fit or shapes[0][0] != math.prod(shapes[1][:-2]) or not shapes[0][0]:
            raise InputError(
                f"logits must be (images, {self.config.num_labels}, h, w) and labels (images, H, W), of clips (clips, "
                f"frames, H, W), got shapes {shapes[0]} and {shapes[1]}"
            )
        check_logits(logits)
        examples = zip(
            logits.unflatten(0, (len(labels), -1)), labels.reshape(len(labels), -1, *labels.shape[-2:]), strict=True
        )
        return torch.stack([self._count_example(*example) for example in examples])

    def _count_example(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        matrices = []
        ignore_index = self.metric.ignore_index
        for image, label in zip(logits, labels, strict=True):
            if ignore_index != _PADDING:
                label = label[(label != _PADDING).any(dim=1)]
            self.metric.num_ignored = self.metric.num_ignored.to(label.device) + (label == ignore_index).sum()
            label_map = argmax_of_resized_logits(image, self.config.align_corners, target_size=tuple(label.shape))
            matrices.append(confusion_matrix(label_map, label, self.metric.num_labels, ignore_index))
        return torch.stack(matrices).sum(dim=0)

    def __call__(self, evaluation: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Score what `count` has counted, for `Trainer(compute_metrics=...)`.

        Args:
            evaluation: whose predictions are the matrices of `count`, of all examples or, with
                `TrainingArguments(batch_eval_metrics=True)`, of one batch.
            compute_result: false where more batches follow.

        Returns:
            `mean_iou`, `mean_accuracy` and `overall_accuracy`, from 0 to 1, and by the names of the classes
            `iou_<class>`, of those that occur; nothing before the last batch.
        """
        self.metric.confusion_matrix += torch.as_tensor(evaluation.predictions).sum(dim=0).cpu()
        if not compute_result:
            return {}
        if is_initialized() and get_world_size() > 1:
            self.metric.num_ignored = torch.tensor(0)  # those of the other processes are not known
        result = self.metric.compute()
        means = {name: value for name, value in result.items() if isinstance(value, float)}
        per_class = {f"iou_{self.config.id2label[i]}": iou for i, iou in enumerate(result["per_category_iou"])}
        return means | {name: iou for name, iou in per_class.items() if not math.isnan(iou)}


def compute_metrics(config: PreTrainedConfig) -> TrainerMetrics:
    """What transformers' `Trainer` takes to score a model of semantic segmentation, of clips or of human parsing.

    No image and no logits are kept: of each example the counts alone. With `batch_eval_metrics=True` the label maps
    are not either, and memory does not grow with the split. An evaluation that was broken off leaves its counts
    behind: call `metrics.metric.reset()` before the next.

    Args:
        config: of the model.

    Example:

    ```python
    metrics = compute_metrics(model.config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir="runs", eval_strategy="epoch", batch_eval_metrics=True),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.count,
    )
    trainer.evaluate()["eval_mean_iou"]
    ```
    """
    return TrainerMetrics(config)
