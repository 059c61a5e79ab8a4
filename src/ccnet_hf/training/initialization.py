"""What a training starts from: a backbone's pretrained tensors, and the modules that stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ccnet_hf.errors import InputError, reading
from ccnet_hf.untrusted_checkpoints import read_state_dict


_HUB_FILE, _OLDER_HUB_FILE = "model.safetensors", "pytorch_model.bin"

# Of transformers' backbones: on the feature maps, beside the classifier's network.
_NEW_NORMS = "hidden_states_norms."

# The three convolutions of a ResNet-V1c's stem, each before its batch norm, as others call them.
_STEM_NAMES = (
    ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),  # timm
    ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),  # mmsegmentation
    ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),  # the authors
)


def load_backbone_checkpoint(backbone: nn.Module, checkpoint: str | Path) -> None:
    """Fill a backbone from a checkpoint of the same network, whatever its keys are called.

    A checkpoint with every key of the backbone is taken by name: the backbone's own names (without the prefix of
    timm's wrapper), and for a `CCNetResNetBackbone` also those of timm, mmsegmentation and the authors. Otherwise both
    networks are read layer by layer, the file's in natural order of their names, and the backbone's layers must be one
    unbroken run of the file's, equal in tensor names and shapes. What stands before and after (a classifier) is left
    out. For a network of transformers' own, transformers does this; the norms of its feature maps, which no file of a
    classifier has, stay as they are.

    Args:
        backbone: is changed in place, and left as it is when an error is raised.
        checkpoint: a safetensors or a PyTorch file, from which no code is run, or the id of a model on the Hub, e.g.
            `"timm/resnet101c.gluon_in1k"`.

    Raises:
        InputError: the file is not readable, or the two do not fit; the message names the first layer that does not.
        OSError: there is neither such a file nor such a model on the Hub, or no way to the Hub.
    """
    tensors, state = _read_tensors(_local_file(checkpoint)), backbone.state_dict()
    if is_of_transformers(backbone):
        tensors = _in_current_names(checkpoint, backbone, tensors)
        names = {key: key for key in tensors}
    else:
        # Attention among the blocks is in no file; it starts as the identity.
        names = _find_names(
            checkpoint, {key: tensor for key, tensor in state.items() if ".attention." not in key}, tensors
        )
    for theirs in names:
        if not tensors[theirs].is_floating_point() or not tensors[theirs].float().isfinite().all():
            raise InputError(f"{checkpoint}: {theirs} does not hold finite floating-point numbers only")
    for theirs, ours in names.items():
        state[ours].copy_(tensors[theirs])


def _find_names(
    checkpoint: str | Path, state: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Our key by the file's, for all tensors of a backbone."""
    for names in _namings(state):
        if names.keys() <= tensors.keys():
            _check_fit(checkpoint, names, state, tensors)
            return names
    return _names_by_place(checkpoint, state, tensors)


def _local_file(checkpoint: str | Path) -> Path:
    """The checkpoint's file, downloaded if it is the id of a model on the Hub."""
    file = Path(checkpoint)
    if file.is_file():
        return file
    is_file_name = file.suffix in (".safetensors", ".pth", ".pt", ".bin")
    if is_file_name or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(checkpoint)):
        raise FileNotFoundError(f"there is no file {checkpoint}")
    try:
        return _download(str(checkpoint))
    except GatedRepoError as error:
        raise OSError(
            f"{checkpoint} is for those who accept its licence: do so at https://huggingface.co/{checkpoint}, and log "
            "in with hf auth login"
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"{checkpoint} cannot be downloaded, for the Hub is out of reach: get {_HUB_FILE} from "
            f"https://huggingface.co/{checkpoint} where there is a network, and name the file (--backbone_checkpoint)"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, ValueError) as error:
        raise OSError(f"{checkpoint} is neither a file nor a model on the Hub with a {_HUB_FILE}") from error


def _download(repo_id: str) -> Path:
    """The file of a model's weights on the Hub; older ones have no safetensors."""
    try:
        return Path(hf_hub_download(repo_id, _HUB_FILE))
    except LocalEntryNotFoundError:  # which is an `EntryNotFoundError`
        raise
    except EntryNotFoundError:
        return Path(hf_hub_download(repo_id, _OLDER_HUB_FILE))


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return read_state_dict(file)
    with reading(file):
        return load_file(str(file))


def is_of_transformers(module: nn.Module) -> bool:
    """Whether it is of one of transformers' own networks, rather than of this package or in its wrapper of timm."""
    package = type(module).__module__
    return package.startswith("transformers.models.") and not package.startswith("transformers.models.timm_")


def _in_current_names(
    checkpoint: str | Path, backbone: PreTrainedModel, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint for such a network, by the names that the installed transformers has for them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what is missing or left over is said below
    try:
        with reading(checkpoint):
            filled, found = type(backbone).from_pretrained(
                None,
                config=backbone.config,
                state_dict=tensors,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    for name, theirs, ours in sorted(found["mismatched_keys"]):
        raise InputError(
            f"{checkpoint} does not fit the backbone: its {name} has the shape {tuple(theirs)}, the backbone's "
            f"{tuple(ours)}"
        )
    missing = set(found["missing_keys"])
    if others := sorted(name for name in missing if not name.startswith(_NEW_NORMS)):
        raise InputError(f"{checkpoint} does not fit the backbone: it has no {others[0]}")
    state = {name: tensor for name, tensor in filled.state_dict().items() if name not in missing}
    prefix = f"{backbone.base_model_prefix}."  # which only some of the names have
    stages = {stage for name in state for stage in _stages(name.removeprefix(prefix))}
    for name in sorted(found["unexpected_keys"]):
        if stages.intersection(_stages(name.removeprefix(prefix))):
            raise InputError(f"{checkpoint} does not fit the backbone, which is less deep and has no {name}")
    return state


def _namings(state: dict[str, torch.Tensor]) -> Iterator[dict[str, str]]:
    """The ways a file may name the backbone's tensors: our key by the file's, without batch norm's counter."""
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    yield {key.removeprefix("_backbone."): key for key in keys}
    if all(key.startswith(("stem.convolutions.", "stages.")) for key in keys):
        # A shortcut that pools, or might, counts its pooling as its first layer.
        for stem, is_pooled in product(_STEM_NAMES, (False, True)):
            yield {_resnet_name(key, stem, is_pooled): key for key in keys}


def _resnet_name(key: str, stem: tuple[str, ...], is_pooled: bool) -> str:
    """Name of a `CCNetResNetBackbone` tensor in a network that calls the layers of its stem `stem`, and whose
    shortcuts are pooled (ResNet-V1d) or not."""
    part, index, *block, layer, tensor = key.replace(".blocks.", ".").replace("stem.convolutions.", "stem.").split(".")
    is_normalization = layer == "normalization"
    if part == "stem":
        return f"{stem[2 * int(index) + is_normalization]}.{tensor}"
    number, name = block
    if name == "shortcut":
        layer = f"downsample.{is_normalization + is_pooled}"
    else:
        layer = name.replace("conv", "bn") if is_normalization else name
    return f"layer{int(index) + 1}.{number}.{layer}.{tensor}"


def _check_fit(
    checkpoint: str | Path, names: dict[str, str], state: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> None:
    for theirs, ours in names.items():
        if tensors[theirs].shape != state[ours].shape:
            raise InputError(
                f"{checkpoint} does not fit the backbone: its {theirs} has the shape {tuple(tensors[theirs].shape)}, "
                f"the backbone's {ours} {tuple(state[ours].shape)}"
            )
    # The blocks of a ResNet-50 bear names that a ResNet-101 has too. Whole stages may be missing at the end.
    stages = {stage for name in names for stage in _stages(name)}
    for key in tensors:
        if key not in names and not key.endswith("num_batches_tracked") and stages.intersection(_stages(key)):
            raise InputError(f"{checkpoint} does not fit the backbone, which is less deep and has no {key}")


def _stages(key: str) -> set[str]:
    """The numbered parts that a numbered block is in: of `layer3.22.conv1.weight` it is `layer3`."""
    before = (key[: match.start()] for match in re.finditer(r"\.\d+(?=\.)", key))
    return {part for part in before if re.search(r"\d", part)}


def _names_by_place(
    checkpoint: str | Path, state: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Our key by the file's for layers that come in the same order with the same shapes."""
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
        raise InputError(
            f"{checkpoint} does not fit the backbone: no layer of the file has the place and the shape of {first} "
            f"{tuple(state[first].shape)} (layer {best_length + 1} of {len(wanted)})"
        )
    layers = zip(wanted, offered[best_start:], strict=False)
    return {theirs[tensor]: key for ours, theirs in layers for tensor, key in ours.items()}


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


def freeze(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Stop the named modules from learning, batch norm statistics included.

    Args:
        names: of modules, e.g. `model.backbone.stem`.

    Returns:
        The modules; `train()` puts them into training mode like all others, so call `eval()` on them after it.

    Raises:
        InputError: there is no such module.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise InputError(f"the model has no module {unknown[0]!r} to freeze")
    frozen = [modules[name] for name in names]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
