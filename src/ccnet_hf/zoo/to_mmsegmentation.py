"""The way back: a folder as a checkpoint that mmsegmentation loads, and the command for it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file, check_file
from ccnet_hf.inference.loading import load_config, load_image_processor, load_model
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.visualization import generate_palette
from ccnet_hf.zoo.mmsegmentation import mmsegmentation_key


@dataclass
class ExportArguments:
    folder: str = field(metadata={"positional": True, "help": "folder of a CCNet with the dilated ResNet"})
    output: str = field(metadata={"help": ".pth file to write; must not exist yet"})


def export_checkpoint(folder: str | os.PathLike, output: str | os.PathLike) -> None:
    """Write the model of a folder as mmsegmentation's `ccnet_r*-d8` expects it: `state_dict` and `meta`.

    Every tensor keeps its bytes. `meta` names classes and palette as mmsegmentation 1.x (`dataset_meta`) and 0.x
    (`CLASSES`, `PALETTE`) look for them. What is no part of a checkpoint there (depth, recurrence, `align_corners`,
    the test protocol) has to be in the mmsegmentation config it is loaded with.

    Args:
        folder: what `convert_checkpoint`, a training or `save_pretrained` has written.
        output: file to write, atomically.

    Raises:
        InputError: the folder holds no complete CCNet, or one that mmsegmentation's cannot compute; the file exists.
        OSError: the file cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise InputError(f"{output} exists; name a new file")
    if not folder.is_dir():
        raise InputError(f"no such model folder: {folder}")
    check_file(output)
    config = load_config(str(folder), [CCNetConfig])
    _check_config(folder, config)
    palette = load_image_processor(str(folder), config).palette
    model = load_model(str(folder), config)

    tensors = model.state_dict()
    # The projection of the category-consistent loss takes part in training alone, and mmsegmentation has none.
    kept = [key for key in tensors if not key.startswith("category_projection.")]
    state_dict = {mmsegmentation_key(key): tensors[key] for key in kept}
    gamma = "decode_head.cca.gamma.scale"
    state_dict[gamma] = state_dict[gamma].reshape(())
    with atomic_file(output) as unfinished:
        torch.save({"meta": _meta(config, palette), "state_dict": state_dict}, unfinished)


def _check_config(folder: Path, config: CCNetConfig) -> None:
    """Refuse what has no counterpart in mmsegmentation's `ResNetV1c`, `CCHead` and `FCNHead`."""
    backbone = config.backbone_config
    if backbone.model_type != "ccnet_resnet":
        raise InputError(f"{folder} has a backbone of type {backbone.model_type!r}; only 'ccnet_resnet' is exported")
    required = {
        "backbone_config.stem_type": (backbone.stem_type, "deep"),
        "backbone_config.pool_ceil_mode": (backbone.pool_ceil_mode, False),
        "backbone_config.pooled_shortcut": (backbone.pooled_shortcut, False),
        "backbone_config.frozen_batch_norm": (backbone.frozen_batch_norm, False),
        "backbone_config.batch_norm_eps": (backbone.batch_norm_eps, 1e-5),
        "backbone_config.attention_stage": (backbone.attention_stage, None),
        "head_activation": (config.head_activation, "relu"),
        "attention_activation": (config.attention_activation or config.head_activation, "relu"),
        "query_key_size": (config.query_key_size or config.hidden_size // 8, config.hidden_size // 8),
    }
    for name, (found, needed) in required.items():
        if found != needed:
            raise InputError(f"{folder} has {name}={found!r}; mmsegmentation's CCNet knows {needed!r} only")
    if config.recurrence == 0:
        raise InputError(f"{folder} has recurrence=0, a head without attention; mmsegmentation's CCNet has one")


def _meta(config: CCNetConfig, palette: list[list[int]] | None) -> dict[str, Any]:
    classes = tuple(config.id2label[index] for index in range(config.num_labels))
    # mmsegmentation looks for a palette wherever it finds classes
    palette = [list(colour) for colour in palette or generate_palette(config.num_labels)]
    return {"CLASSES": classes, "PALETTE": palette, "dataset_meta": {"classes": classes, "palette": palette}}


def export(arguments: ExportArguments) -> None:
    """Write a folder's model as a checkpoint that mmsegmentation loads."""
    transformers.utils.logging.disable_progress_bar()
    export_checkpoint(arguments.folder, arguments.output)
    print(f"{arguments.folder} written to {arguments.output}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.zoo to_mmsegmentation") -> int:
    return run_command(ExportArguments, export, argv, prog)
