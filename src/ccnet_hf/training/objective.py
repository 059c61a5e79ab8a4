"""What a training minimises: the losses of a batch, and what they are divided by."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig

from ccnet_hf.data.label_counts import label_counts, sample_label_counts
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.report import unlabelled_classes
from ccnet_hf.models.loss_ccnet import ccnet_losses
from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses
from ccnet_hf.training.training_arguments import ModelArguments


class Objective(nn.Module, ABC):
    """The losses of one kind of model; all that the loop knows of what is learnt.

    A step takes several passes on several processes, and its gradient should be that of the joined batch. So the loop
    asks for the `counts` of every pass before the first, and gives `forward` their means over all passes: a sum
    divided by such a mean, averaged over the passes, is the mean of the joined batch. What depends on its forward
    pass alone (hard pixels, regions that are drawn) can only be averaged within it.
    """

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """What the losses of a pass are means over, by name, the same names for every batch.

        Args:
            batch: of one pass, as the dataset's `collate` made it, on the CPU.
        """

    @abstractmethod
    def forward(
        self, model: Callable[..., Any], batch: Mapping[str, Any], counts: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Call the model once, in training mode.

        Args:
            model: the model, or what shares it out among processes or compiles it.
            batch: of one pass, on the model's device.
            counts: those of all passes of the step, divided by the number of passes.

        Returns:
            Scalars by names that end in `_loss`, each with its weight: their sum is what is minimised.
        """


class SemanticObjective(Objective):
    """The losses of a `CCNetForSemanticSegmentation`, weighted by class where weights are given.

    Args:
        config: of the model; says which losses there are and how they count.
        class_weights: (num_labels,) factors of the classes' cross entropies, or `None`.
    """

    def __init__(self, config: PreTrainedConfig, class_weights: torch.Tensor | None = None):
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", class_weights)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """The labelled pixels."""
        return {"valid_pixels": int((batch["labels"] != self.config.semantic_loss_ignore_index).sum())}

    def forward(
        self, model: Callable[..., Any], batch: Mapping[str, Any], counts: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """As [`Objective.forward`], of a batch of `pixel_values` (B, 3, H, W) and `labels` (B, H, W) int64. With the
        reduction `"all"` the counts do not matter."""
        outputs = model(pixel_values=batch["pixel_values"])
        return ccnet_losses(
            self.config,
            batch["labels"],
            outputs.logits,
            outputs.auxiliary_logits,
            outputs.category_embeddings,
            class_weights=self.class_weights,
            valid_pixels=counts["valid_pixels"],
        )


class ParsingObjective(SemanticObjective):
    """The losses of a `CCNetForHumanParsing`; those of edges and regions are means within a pass."""

    def forward(
        self, model: Callable[..., Any], batch: Mapping[str, Any], counts: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """As [`SemanticObjective.forward`]."""
        outputs = model(pixel_values=batch["pixel_values"])
        return ccnet_parsing_losses(
            self.config,
            batch["labels"],
            outputs.logits,
            outputs.parsing_logits,
            outputs.edge_logits,
            outputs.category_embeddings,
            class_weights=self.class_weights,
            valid_pixels=counts["valid_pixels"],
        )


class VideoObjective(SemanticObjective):
    """The losses of a `CCNetForVideoSegmentation`, over all labelled frames of the clips."""

    def forward(
        self, model: Callable[..., Any], batch: Mapping[str, Any], counts: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """As [`SemanticObjective.forward`], of `pixel_values_videos` (B, T, 3, H, W) and `labels` (B, T, H, W)."""
        outputs = model(pixel_values_videos=batch["pixel_values_videos"])
        return ccnet_losses(
            self.config,
            batch["labels"].flatten(0, 1),
            outputs.logits,
            outputs.auxiliary_logits,
            outputs.category_embeddings,
            class_weights=self.class_weights,
            valid_pixels=counts["valid_pixels"],
        )


def semantic_objective(
    config: PreTrainedConfig,
    dataset: SegmentationDataset,
    arguments: ModelArguments,
    accelerator: Accelerator,
    is_resumed: bool,
    objective: type[SemanticObjective] = SemanticObjective,
) -> SemanticObjective:
    """Build the objective of a training, and say on the way which classes have no labelled pixel.

    Args:
        config: of the model.
        dataset: to train on. All its label maps are read if classes are weighted, else some, and none where a
            training is resumed.
        arguments: of the training; its `class_weight_power` is that of [`class_weights_from_counts`].
        accelerator: its processes share the reading.
        is_resumed: whether the training goes on from a checkpoint.
        objective: the class of it.
    """
    weights, counted = None, ""
    if arguments.class_weight_power:
        counts = label_counts(dataset, accelerator.process_index, accelerator.num_processes)
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
        weights = class_weights_from_counts(counts[: config.num_labels], arguments.class_weight_power)
    elif accelerator.is_main_process and not is_resumed:
        counts, number = sample_label_counts(dataset)
        counted = f"of {number} label maps"
    else:
        return objective(config)
    num_ignored = int(counts[dataset.ignore_index])
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    line = unlabelled_classes(
        counts[: config.num_labels].tolist(), num_ignored, dataset.ignore_index, class_names, counted
    )
    if line is not None and accelerator.is_main_process:
        print(line, file=sys.stderr)
    return objective(config, weights)


def parsing_objective(*arguments: Any, **options: Any) -> SemanticObjective:
    """As [`semantic_objective`], of a human parser."""
    return semantic_objective(*arguments, **options, objective=ParsingObjective)


def video_objective(*arguments: Any, **options: Any) -> SemanticObjective:
    """As [`semantic_objective`], of clips."""
    return semantic_objective(*arguments, **options, objective=VideoObjective)


def class_weights_from_counts(counts: torch.Tensor, power: float) -> torch.Tensor:
    """Weights frequency ** -power, scaled so that the average labelled pixel weighs 1.

    A class that does not occur gets the weight of the rarest one that does.

    Args:
        counts: (num_labels,) int64, pixels of every class.
        power: how much rare classes gain; 0 weighs all alike.

    Returns:
        (num_labels,) float32.

    Raises:
        InputError: there is no pixel.
    """
    if not counts.any():
        raise InputError("no pixel of the training split is labelled")
    frequencies = counts.double() / counts.sum()
    present = frequencies > 0
    weights = frequencies.clamp(min=frequencies[present].min()) ** -power
    return (weights / (weights * frequencies).sum()).float()
