"""What makes a checkpoint on the Hub load without this package: its code beside it, and the files that point there."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from transformers import CONFIG_MAPPING
from transformers.dynamic_module_utils import get_relative_import_files

import ccnet_hf
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.configuration_ccnet_video import CCNetVideoConfig
from ccnet_hf.models.image_processing_common_ccnet import IMAGE_PROCESSORS


CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
_VIDEO_PROCESSOR_FILE = "video_preprocessor_config.json"

_HANDLER = "handler.py"  # what Inference Endpoints run

_NAMES_OF_CLASSES = ("auto_map", "image_processor_type")


def processor_file(model_type: str) -> str:
    """Name of the file with the processor of this type of model."""
    return _VIDEO_PROCESSOR_FILE if model_type == CCNetVideoConfig.model_type else PROCESSOR_FILE


def code_files(model_type: str = CCNetConfig.model_type) -> list[Path]:
    """The modules that a published checkpoint of this type of model needs: those the `auto_map`s name, and all that
    they import of each other."""
    models = _models()
    files = set()
    classes = CONFIG_MAPPING[model_type].remote_classes
    # The processors of most models are the same two, and no part of their configuration's classes.
    processors = () if "AutoImageProcessor" in classes else IMAGE_PROCESSORS
    for reference in (*classes.values(), *processors):
        module = models / f"{reference.partition('.')[0]}.py"
        files |= {module, *map(Path, get_relative_import_files(str(module)))}
    return sorted(files)


def _models() -> Path:
    return Path(ccnet_hf.__file__).parent / "models"


def endpoint_files(config: dict[str, Any]) -> dict[str, bytes | Path]:
    """What Hugging Face's Inference Endpoints need to serve a checkpoint, by file name: the handler, and what has to
    be installed. Nothing for video models, which no pipeline runs.

    Args:
        config: content of the model's config.json.
    """
    if config["model_type"] == CCNetVideoConfig.model_type:
        return {}
    needed = {"transformers"}
    if (config.get("backbone_config") or {}).get("model_type") == "timm_backbone":
        needed.add("timm")
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, importlib.metadata.requires("ccnet-hf") or ()):
        if requirement.name in needed:
            found.setdefault(requirement.name, requirement)  # of transformers the package's own, not an extra's
    lines = [f"{name}{found[name].specifier}\n" for name in sorted(found)]
    return {_HANDLER: _models() / _HANDLER, "requirements.txt": "".join(lines).encode()}


def published_files(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, bytes | Path]:
    """What a repository on the Hub holds beside card and weights, by file name, for folders of any version.

    The classes of the code stand in config.json alone, those of image processors included: in a processor's file they
    would win over the ones that `import ccnet_hf` registers.

    Args:
        config: content of the model's config.json, of any model of this package.
        processor: content of its `processor_file`.
    """
    model_type = config["model_type"]
    classes = dict(CONFIG_MAPPING[model_type].remote_classes)
    if "AutoVideoProcessor" in classes:
        # transformers looks for a video processor's class in its own file alone.
        processor = processor | {"auto_map": {"AutoVideoProcessor": classes["AutoVideoProcessor"]}}
    else:
        # Two of them: transformers takes the second where torchvision is installed.
        image_processor = classes.get("AutoImageProcessor")
        classes["AutoImageProcessor"] = IMAGE_PROCESSORS if image_processor is None else [image_processor] * 2
        processor = {name: value for name, value in processor.items() if name not in _NAMES_OF_CLASSES}
    contents = {CONFIG_FILE: config | {"auto_map": classes}, processor_file(model_type): processor}
    # In the order of the files: sorted as text, label 10 would come before label 2.
    encoded = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}
    return encoded | {file.name: file for file in code_files(model_type)} | endpoint_files(config)
