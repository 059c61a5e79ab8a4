"""A checkpoint by its folder or Hub name, ready to segment, or one sentence that names the file and says why not."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import (
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
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
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.image_processing_common_ccnet import CCNetImageProcessorMixin
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.models.modeling_ccnet_instance import CCNetForInstanceSegmentation
from ccnet_hf.models.modeling_ccnet_parsing import CCNetForHumanParsing
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor
from ccnet_hf.untrusted_checkpoints import read_state_dict


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# The models that commands load, by their configuration.
_MODELS: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    CCNetConfig: CCNetForSemanticSegmentation,
    CCNetParsingConfig: CCNetForHumanParsing,
    CCNetVideoConfig: CCNetForVideoSegmentation,
    CCNetInstanceConfig: CCNetForInstanceSegmentation,
}

# The dtypes that weights may be stored in, as safetensors calls them.
_FLOATING, _WHOLE = ("F16", "BF16", "F32", "F64"), ("I64", "I32")
_DTYPE_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_Headers = Mapping[str, tuple[Path, tuple[int, ...], str]]  # name of a weight -> its file, shape and dtype

_ADAPTER_CONFIG_NAME = "adapter_config.json"
_PICKLED = Path(WEIGHTS_NAME).suffix
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
    _check_names(content, config_class, file)
    with reading(file, lambda: config_class.from_dict(config_class().to_dict())):
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
    content, file = _read_processor(name_or_path, IMAGE_PROCESSOR_NAME, "image_processor")
    needed = "CCNetInstanceImageProcessor" if isinstance(config, CCNetInstanceConfig) else "CCNetImageProcessor"
    if content.get("image_processor_type") is not None:
        _check_processor(content["image_processor_type"], needed, file)
    _check_names(content, CCNetImageProcessorMixin, file)

    def pixels(image_processor: BaseImageProcessor, channels: int) -> torch.Tensor:
        # Not resized, for the size of the result is no fault of the file alone.
        image = torch.zeros(channels, 2, 3, dtype=torch.uint8)
        options = {"input_data_format": "channels_first", "do_resize": False, "return_tensors": "pt"}
        return image_processor(image, **options)["pixel_values"]

    with reading(file, lambda: pixels(CCNetImageProcessor(), channels=3)):
        image_processor = AutoImageProcessor.from_pretrained(name_or_path, config=config, trust_remote_code=False)
        _check_processor(type(image_processor).__name__, needed, file)
        if any(isinstance(side, int) and side > MAX_PIXELS for _, side in image_processor.size):
            raise ValueError(f"size is at most {MAX_PIXELS:,} pixels a side, got {dict(image_processor.size)}")
        if not pixels(image_processor, getattr(config.backbone_config, "num_channels", 3)).isfinite().all():
            raise ValueError("image_mean, image_std and rescale_factor do not make finite numbers of an image")
    return image_processor


def _check_processor(kind: object, needed: str, file: str) -> None:
    if not str(kind).startswith(needed):
        raise InputError(f"{file} is of a {kind}, not of a {needed}")


def _load_video_processor(name_or_path: str) -> CCNetVideoProcessor:
    content, file = _read_processor(name_or_path, VIDEO_PROCESSOR_NAME, "video_processor")
    _check_names(content, CCNetVideoProcessor, file)

    def pixels(video_processor: CCNetVideoProcessor) -> torch.Tensor:
        clip = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
        options = {"input_data_format": "channels_first", "do_resize": False, "return_tensors": "pt"}
        return video_processor(clip, **options)["pixel_values_videos"]

    with reading(file, lambda: pixels(CCNetVideoProcessor())):
        video_processor = CCNetVideoProcessor.from_pretrained(name_or_path)
        if not pixels(video_processor).isfinite().all():
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
    model, info = load_weights(model_class(config), name_or_path, config, dtype)
    if info["missing_keys"]:
        raise InputError(f"{name_or_path} cannot be read: {_missing(info['missing_keys'])}")
    return model


def load_weights(
    kind: type[PreTrainedModel],
    name_or_path: str,
    config: PreTrainedConfig,
    dtype: Dtype | torch.dtype,
    is_partial: bool = False,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What `from_pretrained` makes of a checkpoint, after its weights have been checked, and which keys it did not
    find.

    Args:
        kind: the model's class.
        name_or_path: as for `load_checkpoint`.
        config: of the model.
        dtype: as for `load_model`.
        is_partial: take weights of a folder, too, some of which are missing or have another shape.

    Raises:
        InputError: as `load_model`.
    """
    folder = Path(name_or_path)
    tensors, headers = None, {}
    if folder.is_dir():
        files = weight_files(folder, config)
        if any(file.suffix == _PICKLED for file in files):
            tensors = {}
            for file in files:
                part = read_state_dict(file)
                tensors |= part
                headers |= {name: (file, tuple(t.shape), _DTYPE_NAMES[t.dtype]) for name, t in part.items()}
        else:
            headers = weight_headers(folder, config)
        _check_weights(folder, kind, config, headers, is_partial)
    with reading(name_or_path, lambda: _on_meta(kind, type(config)())):
        model, info = kind.from_pretrained(
            None if tensors is not None else name_or_path,
            state_dict=tensors,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=is_partial,
            output_loading_info=True,
        )
    model.name_or_path = model.config.name_or_path = name_or_path
    check_values(model, name_or_path, headers)
    return model, info


def require_backbone(config: PreTrainedConfig) -> None:
    """Raise ModuleNotFoundError if the backbone is of a library that is not installed; unlike transformers' complaint
    it has the library's name, by which a command knows the extra that brings it."""
    if config.backbone_config.model_type == "timm_backbone":
        import_module("timm")


def check_values(
    model: torch.nn.Module,
    source: str,
    headers: _Headers = MappingProxyType({}),
) -> None:
    """Refuse weights and statistics that no training makes, and that make NaN of every image.

    Args:
        model: any.
        source: what it was read from, as the user knows it.
        headers: where each weight was found, as far as that is known.

    Raises:
        InputError: one is NaN or infinite, or a variance negative.
    """
    for name, tensor in model.state_dict().items():
        where = f" (in {headers[name][0].name})" if name in headers else ""
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source} cannot be read: {name} has values that are not finite{where}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(f"{source} cannot be read: {name}, a variance, has negative values{where}")


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


def _read_processor(name_or_path: str, name: str, part: str) -> tuple[dict[str, Any], str]:
    """What the file that transformers makes a processor of says of it, and how its user knows the file: a `part` of
    `processor_config.json` comes before the file of the processor's own."""
    folder = Path(name_or_path)
    if folder.is_dir():
        has_common = (folder / PROCESSOR_NAME).is_file()
    else:
        with reading(name_or_path):
            has_common = cached_file(name_or_path, PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False)
    if has_common:
        content, file = _read_settings(name_or_path, PROCESSOR_NAME)
        if part in content:
            if not isinstance(content[part], dict):
                raise InputError(f"{file} cannot be read: its {part} is no object, but {type(content[part]).__name__}")
            return content[part], file
    return _read_settings(name_or_path, name)


def _check_settings(settings: dict[str, Any], file: str) -> None:
    """Refuse what would take all time or memory before anything could complain: a network without end."""
    for name, value in settings.items():
        if isinstance(value, dict):
            _check_settings(value, file)
        elif re.search("depth|layers|blocks", name):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number > _DEEPEST_BACKBONE:
                    raise InputError(f"{file}: {name} is at most {_DEEPEST_BACKBONE}, got {number}")


def _check_names(settings: dict[str, Any], kind: type, file: str) -> None:
    """Refuse a value by whose name the class that it is for computes something."""
    for name in sorted(settings):
        computed = getattr(kind, name, None)
        if callable(computed) or (isinstance(computed, property) and computed.fset is None):
            raise InputError(f"{file} cannot be read: there is no field {name!r}")


def _on_meta(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without memory for its weights."""
    with torch.device("meta"):
        return kind(config)


def _check_weights(
    folder: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, found: _Headers, is_partial: bool
) -> None:
    """Compare the names, shapes and dtypes of weights with a model of this kind and `config`, before memory for it is
    taken."""
    with reading(folder / CONFIG_NAME, lambda: _on_meta(kind, type(config)())):
        model = _on_meta(kind, config)
    expected = model.state_dict()
    if not expected.keys() <= found.keys():
        # In files transformers keeps the names that some of its backbones once had.
        expected = revert_weight_conversion(model, expected)
    missing = expected.keys() - found.keys()
    if missing and not is_partial:
        raise InputError(f"{folder} cannot be read: {_missing(missing)}")
    for name in expected.keys() - missing:
        file, shape, dtype = found[name]
        needed = tuple(expected[name].shape)
        if shape != needed and not is_partial:
            raise InputError(
                f"cannot load {folder}: {name} has shape {shape} in {file.name}, {needed} by {CONFIG_NAME}"
            )
        allowed = _FLOATING if expected[name].is_floating_point() else _WHOLE
        if dtype not in allowed:
            raise InputError(f"cannot load {folder}: {name} in {file.name} is of dtype {dtype}, not {allowed[0]}")


def weight_headers(folder: Path, config: PreTrainedConfig | None = None) -> _Headers:
    """The weights in a folder's safetensors files: name -> file, shape, and dtype as safetensors calls it.

    Raises:
        InputError: as `weight_files`, or a file is damaged.
    """
    headers = {}
    for file in weight_files(folder, config):
        if file.suffix == _PICKLED:
            continue
        with reading(file), safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                entry = opened.get_slice(name)
                headers[name] = file, tuple(entry.get_shape()), entry.get_dtype()
    return headers


def weight_files(folder: Path, config: PreTrainedConfig | None = None) -> list[Path]:
    """The files of weights that transformers reads in a folder: safetensors or, where there are none, PyTorch's own.

    Args:
        folder: of a checkpoint.
        config: its configuration, which may name a file.

    Raises:
        InputError: there are no weights, or a file that the index or the configuration names is missing.
    """
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        is_name = isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json"))
        if not is_name or not (folder / named).is_file():
            raise InputError(
                f"{folder / CONFIG_NAME}: transformers_weights must name a safetensors file or its index in {folder}, "
                f"got {reprlib.repr(named)}"
            )
        names = [named]
    else:
        names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder} holds no {SAFE_WEIGHTS_NAME}")
    return _parts(file, folder) if file.suffix == ".json" else [file]


def _parts(index: Path, folder: Path) -> list[Path]:
    """The files that an index names."""
    content = read_json(index)
    names = content.get("weight_map")
    if not names or not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index} cannot be read: it has no weight_map of tensors' names to files' names")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{index} names {name!r}, which is not in {folder}")
    if not isinstance(content.get("metadata"), dict):
        raise InputError(f"{index} cannot be read: it has no metadata, which may be {{}}")
    return [folder / name for name in sorted(set(names.values()))]


def _missing(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)} weights are missing, {names[0]} among them"
