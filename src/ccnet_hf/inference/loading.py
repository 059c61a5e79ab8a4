"""A checkpoint by its folder or Hub name, ready to segment, or one sentence why not."""

import re
from pathlib import Path
from typing import Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

import ccnet_hf  # noqa: F401, registers CCNet with the Auto classes
from ccnet_hf.errors import InputError
from ccnet_hf.models.configuration_ccnet import CCNetConfig


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_checkpoint(
    name_or_path: str, dtype: Dtype = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load a CCNet checkpoint and its image processor for inference.

    Args:
        name_or_path: a local folder, or `namespace/name` on the Hub.
        dtype: of the computation. `"auto"` takes the checkpoint's own, but float32 on the CPU, where half precision
            is only faster with support in hardware.
        device: anything `torch.device` takes; `"auto"` takes the accelerator, if there is one.

    Returns:
        The model, in eval mode and channels_last, and its image processor.

    Raises:
        InputError: there is no such folder, it holds no complete CCNet, or the device is not there.
    """
    device = _device(device)
    if dtype not in get_args(Dtype):
        raise InputError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    load_config(name_or_path)
    try:
        image_processor = AutoImageProcessor.from_pretrained(name_or_path)
        model, loading_info = AutoModelForSemanticSegmentation.from_pretrained(
            name_or_path, dtype=dtype, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"cannot load {name_or_path}: {error}") from error
    if loading_info["missing_keys"]:
        missing = sorted(loading_info["missing_keys"])
        raise InputError(f"cannot load {name_or_path}: {len(missing)} weights are missing, {missing[0]} among them")
    try:
        return model.to(device=device, memory_format=torch.channels_last).eval(), image_processor
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {device}: {error}") from error


def load_config(name_or_path: str) -> CCNetConfig:
    """Load the configuration of a CCNet checkpoint.

    Raises:
        InputError: there is no such checkpoint, or it is another kind of model.
    """
    _check_name(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name_or_path)
        if config.model_type != CCNetConfig.model_type:
            raise InputError(f"its model type is {config.model_type!r}, not {CCNetConfig.model_type!r}")
    except (ValueError, OSError, StrictDataclassError) as error:
        raise InputError(f"cannot load {name_or_path}: {error}") from error
    return config


def _check_name(name_or_path: str) -> None:
    """Refuse what is neither a folder nor a Hub name, before a search of the Hub waits for its time limit."""
    path = Path(name_or_path)
    if path.is_dir():
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) or path.parent.exists():
        raise InputError(f"no such model folder: {name_or_path} (on the Hub, models are named namespace/name)")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}") from error
