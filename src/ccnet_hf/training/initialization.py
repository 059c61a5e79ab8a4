"""What a training starts from: a backbone's pretrained tensors, and the modules that stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


def _layers(state_dict: dict[str, torch.Tensor]) -> list[dict[str, str]]:
    """The layers of a state dict in its own order: for each, the key by tensor name, without batch norm's counter."""
    layers: dict[str, dict[str, str]] = {}
    for key in state_dict:
        layer, _, tensor = key.rpartition(".")
        if tensor != "num_batches_tracked":
            layers.setdefault(layer, {})[tensor] = key
    return list(layers.values())


def _natural(key: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"[._]", key)]


def load_backbone_checkpoint(backbone: nn.Module, file: str | Path) -> None:
    """Fill a backbone from a safetensors file of the same network, whatever its keys are called.

    A file that has every key of the backbone (without the prefix of timm's wrapper) is taken by name. Otherwise both
    networks are read layer by layer, the file's in natural order of their names, and the backbone's layers must be one
    unbroken run of the file's, equal in tensor names and shapes; what stands before and after (a classifier) is left
    out.

    Raises:
        ValueError: the file is not readable, or the two do not fit; the message names the first layer that does not.
    """
    try:
        tensors = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from error
    state = backbone.state_dict()
    bare = {key.removeprefix("_backbone."): key for key in state if not key.endswith("num_batches_tracked")}
    if bare.keys() <= tensors.keys() and all(tensors[name].shape == state[key].shape for name, key in bare.items()):
        for name, key in bare.items():
            state[key].copy_(tensors[name])
        return
    wanted, offered = _layers(state), _layers({key: tensors[key] for key in sorted(tensors, key=_natural)})

    def fits(ours: dict[str, str], theirs: dict[str, str]) -> bool:
        return ours.keys() == theirs.keys() and all(state[ours[n]].shape == tensors[theirs[n]].shape for n in ours)

    best_start, best_length = 0, -1
    for start in range(len(offered)):
        length = 0
        while length < len(wanted) and start + length < len(offered) and fits(wanted[length], offered[start + length]):
            length += 1
        if length > best_length:
            best_start, best_length = start, length
    if best_length < len(wanted):
        first = next(iter(wanted[best_length].values()))
        raise ValueError(
            f"{file} does not fit the backbone: no layer of the file has the place and the shape of {first} "
            f"{tuple(state[first].shape)} (layer {best_length + 1} of {len(wanted)})"
        )
    for ours, theirs in zip(wanted, offered[best_start:], strict=False):
        for tensor, key in ours.items():
            state[key].copy_(tensors[theirs[tensor]])


def freeze(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Stop the named modules from learning, batch norm statistics included.

    Args:
        names: of modules, e.g. `model.backbone.stem`.

    Returns:
        The modules; `train()` puts them into training mode like all others, so call `eval()` on them after it.

    Raises:
        ValueError: there is no such module.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"the model has no module {unknown[0]!r} to freeze")
    frozen = [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
