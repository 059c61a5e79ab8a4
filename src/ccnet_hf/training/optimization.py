"""Optimiser and learning rates of a recipe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ccnet_hf.errors import InputError
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.distributed import shared_out


def build_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over the groups of [`parameter_groups`]."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def parameter_groups(model: nn.Module, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Group the parameters that learn by learning rate and weight decay, as an optimiser takes them.

    The heads come first, at the recipe's learning rate. The backbone learns at `backbone_learning_rate_factor` times
    it; its last layer at `layer_decay` times that, the one before at `layer_decay ** 2` times, and so on down to the
    stem. What comes behind the last layer, such as norms of the feature maps, is spared `layer_decay`.

    Args:
        model: whose backbone is the module, or the one inside another, that is called `backbone`.
        recipe: that says how they learn.

    Raises:
        InputError: `layer_decay` is below 1, and the backbone has no layers.
    """
    of_backbone = [name for name, _ in model.named_parameters() if ".backbone." in f".{name}"]
    below_heads = _layers_below_heads(of_backbone) if recipe.layer_decay < 1 else dict.fromkeys(of_backbone, 0)
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, below = recipe.learning_rate, below_heads.get(name, 0)
        if name in below_heads:
            rate *= recipe.backbone_learning_rate_factor * recipe.layer_decay**below
        decays = recipe.decay_norms_and_biases or _is_weight_of_layer(model, name, parameter)
        group = {"params": [], "lr": rate, "weight_decay": recipe.weight_decay if decays else 0.0}
        groups.setdefault((name in below_heads, below, not decays), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _is_weight_of_layer(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether it is the weight of a convolution or a linear layer: no norm, bias, scale, token or position."""
    layer, _, tensor = name.rpartition(".")
    return (
        parameter.dim() > 1 and tensor.endswith("weight") and not isinstance(model.get_submodule(layer), nn.Embedding)
    )


def _layers_below_heads(backbone: Sequence[str]) -> dict[str, int]:
    """How many layers below the heads the parameters of a backbone are, by name: 1 for those of its last layer, 0 for
    those behind it, and one more than the first layer has for the stem.

    The layers are the numbered parts that hold the most tensors: stages in `encoder.stages.2.layers.5.dwconv`, blocks
    in `model.layer.7.norm1`.
    """
    numbered = {name: match for name in backbone if (match := re.match(r"(.*?)(\d+)\.", name))}
    if not numbered:
        raise InputError("layer_decay must be 1 for a backbone without numbered stages or blocks")
    ((layers, _),) = Counter(match[1] for match in numbered.values()).most_common(1)
    numbers = {name: int(match[2]) for name, match in numbered.items() if match[1] == layers}
    ordered = sorted(set(numbers.values()), reverse=True)
    below, is_stem = {}, True
    for name in backbone:  # in the order in which they are used
        if name in numbers:
            below[name], is_stem = 1 + ordered.index(numbers[name]), False
        else:
            below[name] = len(ordered) + 1 if is_stem else 0
    return below


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser of [`build_optimizer`] knows of the steps so far, by `<parameter>.<name of the tensor>`."""
    return {
        f"{name}.{key}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def optimizer_misfit(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], step: int
) -> str | None:
    """Say why whole tensors, as [`optimizer_tensors`] names them, are not of such an optimiser after `step` steps;
    `None` where they are. A parameter without any has had no gradient."""
    keys = _state_keys(optimizer)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if step and keys and not tensors:
        return f"it is empty after {step} steps"
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in learning or key not in keys:
            return f"{full_name} belongs to nothing"
        if missing := [other for other in keys if f"{name}.{other}" not in tensors]:
            return f"{name}.{missing[0]} is missing"
        shape = () if key == "step" else learning[name].shape
        if tensor.shape != shape or not tensor.is_floating_point():
            return f"{full_name} is {tensor.dtype} {tuple(tensor.shape)}, not floats {tuple(shape)}"
        if key == "step" and tensor.item() not in range(1, step + 1):
            return f"{full_name} is {tensor.item():g}, not one of the {step} steps"
        if key == "exp_avg_sq" and (tensor < 0).any():
            return f"{full_name} has negative values, and is a mean of squares"
    return None


def fill_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser that has made no step yet tensors in which [`optimizer_misfit`] finds nothing wrong."""
    for name, parameter in model.named_parameters():
        for key in _state_keys(optimizer):
            if f"{name}.{key}" not in tensors:
                continue
            tensor = tensors[f"{name}.{key}"]
            if key != "step":
                # In the parameter's memory format: the same numbers in another order might be rounded otherwise.
                tensor = torch.empty_like(parameter.detach()).copy_(shared_out(tensor, parameter))
            optimizer.state[parameter][key] = tensor


def _state_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of what the optimiser keeps of a parameter, in the parameter's shape but for AdamW's step, a number."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()


def learning_rate_factor(step: int, recipe: TrainingRecipe) -> float:
    """Learning rate at `step` (0-based) as a share of its first value: linear warm-up, then poly down to the floor, or
    to a tenth at each of the recipe's decay steps."""
    floor = min(recipe.min_learning_rate / recipe.learning_rate, 1.0)
    left = max(0.0, 1 - step / recipe.max_train_steps)
    factor = floor + (1 - floor) * left**recipe.power
    if recipe.decay_steps:
        factor = 0.1 ** sum(step >= decay_step for decay_step in recipe.decay_steps)
    if recipe.warmup_start and step < recipe.warmup_steps:
        return factor * (recipe.warmup_start + (1 - recipe.warmup_start) * step / recipe.warmup_steps)
    return factor * min(1.0, (step + 1) / (recipe.warmup_steps + 1))


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, step: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule by optimiser step; every group follows `learning_rate_factor` from its own first value.

    Args:
        optimizer: whose learning rates it sets, at once and after each of its steps.
        recipe: has the schedule.
        step: steps done. Above 0, the optimiser must have had a schedule from 0 on, which keeps its first rates.
    """
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe), last_epoch=step - 1
    )
