"""From a mmsegmentation checkpoint to a folder that `from_pretrained` reads.

A checkpoint is foreign input: it is read without running code from it, and every doubt about it ends in a `ValueError`
before anything is written.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ccnet_hf.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.recipes import get_recipe


# Parts of a key, ours and mmsegmentation's, replaced from top to bottom.
_RENAMED_PARTS = (
    ("model.backbone.", "backbone."),
    ("stem.convolutions.0.convolution.", "stem.0."),
    ("stem.convolutions.0.normalization.", "stem.1."),
    ("stem.convolutions.1.convolution.", "stem.3."),
    ("stem.convolutions.1.normalization.", "stem.4."),
    ("stem.convolutions.2.convolution.", "stem.6."),
    ("stem.convolutions.2.normalization.", "stem.7."),
    ("stages.0.blocks.", "layer1."),
    ("stages.1.blocks.", "layer2."),
    ("stages.2.blocks.", "layer3."),
    ("stages.3.blocks.", "layer4."),
    (".conv1.convolution.", ".conv1."),
    (".conv1.normalization.", ".bn1."),
    (".conv2.convolution.", ".conv2."),
    (".conv2.normalization.", ".bn2."),
    (".conv3.convolution.", ".conv3."),
    (".conv3.normalization.", ".bn3."),
    (".shortcut.convolution.", ".downsample.0."),
    (".shortcut.normalization.", ".downsample.1."),
    ("model.head.input_projection.", "decode_head.convs.0."),
    ("model.head.attention.query.", "decode_head.cca.query_conv."),
    ("model.head.attention.key.", "decode_head.cca.key_conv."),
    ("model.head.attention.value.", "decode_head.cca.value_conv."),
    ("model.head.attention.gamma", "decode_head.cca.gamma.scale"),
    ("model.head.output_projection.", "decode_head.convs.1."),
    ("model.head.fusion.", "decode_head.conv_cat."),
    ("auxiliary_head.projection.", "auxiliary_head.convs.0."),
    ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
    (".convolution.", ".conv."),
    (".normalization.", ".bn."),
)

_MAX_LISTED_KEYS = 20  # a foreign architecture differs in hundreds


def mmsegmentation_key(key: str) -> str:
    """Name of a `CCNetForSemanticSegmentation` state-dict entry in mmsegmentation's `EncoderDecoder`."""
    if key.startswith("classifier."):
        return f"decode_head.conv_seg.{key.removeprefix('classifier.')}"
    for ours, theirs in _RENAMED_PARTS:
        key = key.replace(ours, theirs)
    return key


def convert_checkpoint(
    variant: str, checkpoint: str | os.PathLike, output_dir: str | os.PathLike, num_labels: int | None = None
) -> None:
    """Convert a mmsegmentation CCNet checkpoint into a folder with model, config and image processor.

    Args:
        variant: name or short name of a zoo variant of `recipes.py`; decides config and processor.
        checkpoint: `.pth` file, either `{"state_dict": ..., ...}` or the state dict alone. If its name ends with eight
            hexadecimal digits, as the zoo's do, they must be the start of the file's SHA-256.
        output_dir: folder to write. It appears complete or not at all; an existing one that holds files is refused.
        num_labels: number of classes of the checkpoint, for one that was trained on other classes than the variant's.
            Its classes then have no names and no colours.

    Raises:
        ValueError: wrong variant or class count, a checkpoint that is damaged, foreign, or holds more than data,
            entries that are missing, left over, of the wrong shape or not finite, or an output folder in use.
        OSError: a file that cannot be read or written.
    """
    recipe = get_recipe(variant)
    if recipe.checkpoint_file is None:
        raise ValueError(f"{recipe.name} is not a variant of mmsegmentation's zoo, so there is nothing to convert")
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists; name a new folder")

    state_dict = read_state_dict(checkpoint)
    config = recipe.config() if num_labels is None else recipe.config(num_labels=num_labels)
    model = CCNetForSemanticSegmentation(config)
    expected = model.state_dict()
    sources = {key: mmsegmentation_key(key) for key in expected}
    _check_keys(checkpoint, set(sources.values()), set(state_dict))
    _check_num_labels(checkpoint, state_dict["decode_head.conv_seg.weight"], config.num_labels, recipe.name)

    tensors = {}
    for key, source in sources.items():
        tensor, shape = state_dict[source], expected[key].shape
        if key.endswith(".gamma") and tensor.ndim == 0:  # a scalar there, one element here
            tensor = tensor.reshape(1)
        if tensor.shape != shape:
            raise ValueError(f"{checkpoint}: {source} has shape {tuple(tensor.shape)}, the variant {tuple(shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{checkpoint}: {source} holds NaN or infinity")
        tensors[key] = tensor
    model.load_state_dict(tensors)

    image_processor = recipe.image_processor()
    if num_labels is not None:
        image_processor.palette = None
    _write_whole(output_dir, (model.eval(), image_processor))


def read_state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a `.pth` file, wrapped or bare, without the prefix of `DistributedDataParallel`.

    Raises:
        ValueError: the file is damaged, is no checkpoint, does not match the hash in its name, or its pickle asks for
            anything but tensors and plain containers. No code of the file is run.
        OSError: the file cannot be opened.
    """
    _check_hash(checkpoint)
    with checkpoint.open("rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise any
            raise ValueError(f"{checkpoint} was refused: {_reason(error)}") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{checkpoint} holds no state dict")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_plain_tensor(value):
            raise ValueError(f"{checkpoint} holds no state dict: entry {key!r} is no plain tensor")
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _reason(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` failed, in one clause."""
    forbidden = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
    if forbidden:
        return f"its pickle asks for {forbidden[1]}, and only tensors and plain containers are accepted"
    return f"it is damaged or no PyTorch checkpoint ({type(error).__name__})"


def _is_plain_tensor(value: Any) -> bool:
    """Whether `value` holds real numbers, all of them: not sparse, quantised, complex or without storage."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _check_hash(checkpoint: Path) -> None:
    stated = re.search(r"-([0-9a-f]{8})\.pth$", checkpoint.name)
    if stated is None:
        return
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(stated[1]):
        raise ValueError(
            f"{checkpoint} is not the file its name promises: its SHA-256 starts with {digest[:8]}, not {stated[1]}"
        )


def _check_keys(checkpoint: Path, expected: set[str], found: set[str]) -> None:
    complaints = []
    if expected - found:
        complaints.append(f"missing: {_enumerate(expected - found)}")
    if found - expected:
        complaints.append(f"left over: {_enumerate(found - expected)}")
    if complaints:
        raise ValueError(f"{checkpoint} does not fit the variant; {'; '.join(complaints)}")


def _check_num_labels(checkpoint: Path, classifier_weight: torch.Tensor, num_labels: int, variant: str) -> None:
    found = classifier_weight.shape[0] if classifier_weight.ndim else 0
    if found != num_labels:
        raise ValueError(
            f"{checkpoint} has {found} classes where {num_labels} were expected; "
            f"to convert it with {variant}'s protocol but its own classes, pass num_labels={found}"
        )


def _enumerate(keys: set[str]) -> str:
    listed = sorted(keys)[:_MAX_LISTED_KEYS]
    rest = f" and {len(keys) - len(listed)} more" if len(keys) > len(listed) else ""
    return ", ".join(listed) + rest


def _write_whole(output_dir: Path, parts: Iterable[Any]) -> None:
    """Save every part into a hidden neighbour of `output_dir`, then give it the name in one step."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = output_dir.with_name(f".{output_dir.name}.partial-{os.getpid()}")
    try:
        for part in parts:
            part.save_pretrained(partial_dir)
        os.replace(partial_dir, output_dir)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
