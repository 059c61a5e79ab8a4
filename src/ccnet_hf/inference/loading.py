"""A checkpoint by its folder or Hub name, ready to segment, or one sentence that names the file and says why not."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

import ccnet_hf  # noqa: F401, registers CCNet with the Auto classes
from ccnet_hf.errors import InputError, describe, reading
from ccnet_hf.limits import MAX_PIXELS, read_settings
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.configuration_ccnet_parsing import CCNetParsingConfig
from ccnet_hf.models.configuration_ccnet_video import CCNetVideoConfig
from ccnet_hf.models.image_processing_common_ccnet import CCNetImageProcessorMixin
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.models.modeling_ccnet_instance import CCNetForInstanceSegmentation
from ccnet_hf.models.modeling_ccnet_parsing import CCNetForHumanParsing
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# The models that commands load, by their configuration.
_MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    CCNetConfig: CCNetForSemanticSegmentation,
    CCNetParsingConfig: CCNetForHumanParsing,
    CCNetVideoConfig: CCNetForVideoSegmentation,
    CCNetInstanceConfig: CCNetForInstanceSegmentation,
}

_ADAPTER_CONFIG_NAME = "adapter_config.json"
_LARGEST_JSON = 16 * 2**20  # bytes; the configuration of 65,536 classes has about 3 MB
_DEEPEST_BACKBONE = 1000  # layers or blocks of one kind; building more would take all time and memory


def load_checkpoint(
    name_or_path: str, dtype: Dtype = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, BaseImageProcessor | CCNetVideoProcessor]:
    """Load a CCNet checkpoint and its image processor, or its video processor, for inference.

    Args:
        name_or_path: a local folder, or `namespace/name` on the Hub.
        dtype: of the computation. `"auto"` takes the checkpoint's own, but float32 on the CPU, where half precision
            is only faster with support in hardware.
        device: anything `torch.device` takes; `"auto"` takes the accelerator, if there is one.

    Returns:
        The model, in eval mode and channels_last, and its image processor.

    Raises:
        InputError: there is no such folder, it holds no complete CCNet, or the device is not there.
        ModuleNotFoundError: the backbone is timm's, which is not installed.
    """
    device = find_device(device)
    if dtype not in get_args(Dtype):
        raise InputError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    config = load_config(name_or_path)
    processor = load_image_processor(name_or_path, config)
    model = load_model(name_or_path, config, dtype)
    try:
        return model.to(device=device, memory_format=torch.channels_last).eval(), processor
    except RuntimeError as error:
        raise InputError(f"cannot use device {device}: {describe(error)}") from error


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name, `"auto"` being the accelerator, if there is one, or else the CPU.

    Raises:
        InputError: nothing can be computed there and fetched from there.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"unknown device {name!r}; devices are cpu, cuda, cuda:1, mps, ...") from error
    try:
        torch.ones(1, device=device).cpu()
    except Exception as error:  # every kind of device that this PyTorch cannot use has an exception of its own
        reason = describe(error).partition(". ")[0]  # PyTorch goes on about its own source code
        raise InputError(f"cannot use device {name}: {reason}") from error
    return device


def load_config(
    name_or_path: str, config_classes: Sequence[type[PreTrainedConfig]] = tuple(_MODELS)
) -> CCNetConfig | CCNetParsingConfig:
    """Load the configuration of a CCNet checkpoint.

    Args:
        name_or_path: as for `load_checkpoint`.
        config_classes: what kinds of it are taken, by default all.

    Raises:
        InputError: there is no such checkpoint, it is another kind of model, or its configuration is malformed.
    """
    content, file = _read_settings(name_or_path, CONFIG_NAME)
    model_type = content.get("model_type")
    config_class = next((kind for kind in config_classes if kind.model_type == model_type), None)
    if config_class is None:
        known = " or ".join(repr(kind.model_type) for kind in config_classes)
        raise InputError(f"{file}: its model type is {reprlib.repr(model_type)}, not {known}")
    _check_settings(content, file)
    with reading(file):
        # What transformers computes of a configuration would be hidden by a value of the same name.
        if shadowing := sorted(name for name in content if callable(getattr(config_class, name, None))):
            raise ValueError(f"there is no field {shadowing[0]!r}")
        config = config_class.from_pretrained(name_or_path)
        if sorted(config.id2label) != list(range(config.num_labels)):
            raise ValueError(
                f"id2label must name the labels 0 to {config.num_labels - 1}, got {sorted(config.id2label)[:20]}"
            )
        if not all(isinstance(name, str) for name in config.id2label.values()):
            raise ValueError("id2label must map labels to names")
    config.return_dict = True  # a tuple has no logits
    return config


def load_image_processor(name_or_path: str, config: PreTrainedConfig) -> BaseImageProcessor | CCNetVideoProcessor:
    """Load the image processor of a CCNet checkpoint, whose configuration is `config`, or its video processor.

    Raises:
        InputError: there is none, it is another kind, or it does not make finite numbers of an image.
    """
    if isinstance(config, CCNetVideoConfig):
        return _load_video_processor(name_or_path)
    content, file = _read_settings(name_or_path, IMAGE_PROCESSOR_NAME)
    kind = content.get("image_processor_type")
    if kind is not None and not str(kind).startswith(("CCNetImageProcessor", "CCNetInstanceImageProcessor")):
        raise InputError(f"{file} is of a {kind}, not of a CCNetImageProcessor")
    with reading(file):
        if shadowing := sorted(name for name in content if callable(getattr(CCNetImageProcessorMixin, name, None))):
            raise ValueError(f"there is no field {shadowing[0]!r}")
        image_processor = AutoImageProcessor.from_pretrained(name_or_path, config=config, trust_remote_code=False)
        if any(isinstance(side, int) and side > MAX_PIXELS for _, side in image_processor.size):
            raise ValueError(f"size is at most {MAX_PIXELS:,} pixels a side, got {dict(image_processor.size)}")
        channels = getattr(config.backbone_config, "num_channels", 3)
        # Not resized, for the size of the result is no fault of the file alone.
        image = torch.zeros(channels, 2, 3, dtype=torch.uint8)
        trial = image_processor(image, input_data_format="channels_first", do_resize=False, return_tensors="pt")
        if not trial["pixel_values"].isfinite().all():
            raise ValueError("image_mean, image_std and rescale_factor do not make finite numbers of an image")
    return image_processor


def _load_video_processor(name_or_path: str) -> CCNetVideoProcessor:
    content, file = _read_settings(name_or_path, VIDEO_PROCESSOR_NAME)
    with reading(file):
        if shadowing := sorted(name for name in content if callable(getattr(CCNetVideoProcessor, name, None))):
            raise ValueError(f"there is no field {shadowing[0]!r}")
        video_processor = CCNetVideoProcessor.from_pretrained(name_or_path)
        trial = video_processor(
            torch.zeros(1, 3, 4, 5, dtype=torch.uint8),
            do_resize=False,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        if not trial["pixel_values_videos"].isfinite().all():
            raise ValueError("image_mean, image_std and rescale_factor do not make finite numbers of a frame")
    return video_processor


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the models that `config`, of one of the kinds above, describes."""
    return _MODELS[type(config)]


def load_model(name_or_path: str, config: PreTrainedConfig, dtype: Dtype | torch.dtype = "auto") -> PreTrainedModel:
    """Load the weights of a CCNet checkpoint, whose configuration is `config`, all of them.

    Args:
        name_or_path: as for `load_checkpoint`.
        config: what `load_config` has returned.
        dtype: of the weights in memory; `"auto"` takes the one they are stored in.

    Raises:
        InputError: weights are missing, damaged, of another shape or kind, or not finite.
        ModuleNotFoundError: the backbone is timm's, which is not installed.
    """
    require_backbone(config)
    folder = Path(name_or_path)
    if folder.is_dir():
        _check_weights(folder, config)
    with reading(name_or_path):
        model, info = model_class(config).from_pretrained(
            name_or_path, config=config, dtype=dtype, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(_missing(info["missing_keys"]))
        check_finite(model)
    return model


def require_backbone(config: PreTrainedConfig) -> None:
    """Raise ModuleNotFoundError if the backbone is of a library that is not installed; unlike transformers' complaint
    it has the library's name, by which a command knows the extra that brings it."""
    if config.backbone_config.model_type == "timm_backbone":
        import_module("timm")


def check_finite(model: torch.nn.Module) -> None:
    """Raise ValueError if a weight or a statistic of `model` is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file in UTF-8 holds.

    Raises:
        InputError: the file is no such file, or larger than a configuration can be.
    """
    with reading(file):
        content = json.loads(read_settings(file, _LARGEST_JSON))
        if not isinstance(content, dict):
            raise ValueError(f"it holds no object, but {type(content).__name__}")
    return content


def _read_settings(name_or_path: str, name: str) -> tuple[dict[str, Any], str]:
    """What a JSON file of a checkpoint holds, and how its user knows the file."""
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / name).is_file():
            adapter = " but that of an adapter (LoRA): merge it into its model and save that"
            raise InputError(f"{folder} holds no {name}{adapter if (folder / _ADAPTER_CONFIG_NAME).is_file() else ''}")
        return read_json(folder / name), str(folder / name)
    # Before a search of the Hub waits for its time limit.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) or folder.parent.exists():
        raise InputError(f"no such model folder: {name_or_path} (on the Hub, models are named namespace/name)")
    with reading(name_or_path):
        file = Path(cached_file(name_or_path, name))
    return read_json(file), f"{name_or_path}/{name}"


def _check_settings(settings: dict[str, Any], file: str) -> None:
    """Refuse what would take all time or memory before anything could complain: a network without end."""
    for name, value in settings.items():
        if isinstance(value, dict):
            _check_settings(value, file)
        elif re.search("depth|layers|blocks", name):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number > _DEEPEST_BACKBONE:
                    raise InputError(f"{file}: {name} is at most {_DEEPEST_BACKBONE}, got {number}")


def _check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Compare the names, shapes and dtypes in the headers of safetensors files with the model of `config`, before
    memory for either is taken."""
    found = weight_headers(folder)
    if not found:
        return
    with reading(folder / CONFIG_NAME), torch.device("meta"):
        model = model_class(config)(config)
        expected = model.state_dict()
        if not expected.keys() <= found.keys():
            # In files transformers keeps the names that some of its backbones once had.
            expected = revert_weight_conversion(model, expected)
    if missing := expected.keys() - found.keys():
        raise InputError(f"cannot load {folder}: {_missing(missing)}")
    for name, tensor in expected.items():
        file, shape, dtype = found[name]
        needed = tuple(tensor.shape)
        if shape != needed:
            raise InputError(
                f"cannot load {folder}: {name} has shape {shape} in {file.name}, {needed} by {CONFIG_NAME}"
            )
        allowed = ("F16", "BF16", "F32", "F64") if tensor.is_floating_point() else ("I64", "I32")
        if dtype not in allowed:
            raise InputError(f"cannot load {folder}: {name} in {file.name} is of dtype {dtype}, not {allowed[0]}")


def weight_headers(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """The weights in a folder's safetensors files: name -> file, shape, and dtype as safetensors calls it.

    Raises:
        InputError: there are no weights, a file is damaged, or one that the index names is missing.
    """
    headers = {}
    for file in weight_files(folder):
        with reading(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                entry = opened.get_slice(name)
                headers[name] = file, tuple(entry.get_shape()), entry.get_dtype()
    return headers


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read; none where it would read PyTorch's own format.

    Raises:
        InputError: there are no weights, or one file that the index names is missing.
    """
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        if any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            return []
        raise InputError(f"{folder} holds no {SAFE_WEIGHTS_NAME}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index} cannot be read: it has no weight_map of tensors' names to files' names")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{index} names {name!r}, which is not in {folder}")
    return [folder / name for name in sorted(set(names.values()))]


def _missing(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)} weights are missing, {names[0]} among them"
