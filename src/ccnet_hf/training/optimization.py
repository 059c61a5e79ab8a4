"""Optimiser, learning rates and loss of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from ccnet_hf.errors import InputError
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.loss_ccnet import ccnet_losses
from ccnet_hf.models.modeling_ccnet import CCNetSemanticSegmenterOutput
from ccnet_hf.recipes import TrainingRecipe


def build_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the parameters that learn, the backbone with its own learning rate."""
    backbone, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if ".backbone." in f".{name}" else rest).append(parameter)
    groups = [
        {"params": rest, "lr": recipe.learning_rate},
        {"params": backbone, "lr": recipe.learning_rate * recipe.backbone_learning_rate_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def learning_rate_factor(step: int, recipe: TrainingRecipe) -> float:
    """Learning rate at `step` (0-based) as a share of its first value: linear warm-up, then poly down to the floor."""
    floor = min(recipe.min_learning_rate / recipe.learning_rate, 1.0)
    left = max(0.0, 1 - step / recipe.max_train_steps)
    factor = floor + (1 - floor) * left**recipe.power
    return factor * min(1.0, (step + 1) / (recipe.warmup_steps + 1))


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: TrainingRecipe) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule by optimiser step; every group follows `learning_rate_factor` from its own first value."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))


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


class SegmentationLoss(nn.Module):
    """The losses of a model's output, weighted by class where weights are given.

    Args:
        config: of the model; says which losses there are and how they count.
        class_weights: (num_labels,) or `None`.
    """

    def __init__(self, config: CCNetConfig, class_weights: torch.Tensor | None = None):
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", class_weights)

    def forward(
        self,
        outputs: CCNetSemanticSegmenterOutput,
        labels: torch.Tensor,
        valid_pixels: torch.Tensor | float | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of outputs in training mode.

        Args:
            outputs: of a `CCNetForSemanticSegmentation`.
            labels: (B, H, W), int64.
            valid_pixels: labelled pixels of a whole step divided by its passes over all processes. The mean of the
                cross entropies over these passes is then that of the joined batch, however the pixels are shared out.
                `None` counts those of `labels`. With the reduction `"all"` they do not matter.

        Returns:
            Named scalars, `loss` being the sum of the others.
        """
        losses = ccnet_losses(
            self.config,
            labels,
            outputs.logits,
            outputs.auxiliary_logits,
            outputs.category_embeddings,
            class_weights=self.class_weights,
            valid_pixels=valid_pixels,
        )
        return {"loss": sum(losses.values()), **losses}
