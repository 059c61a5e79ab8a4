"""What makes a checkpoint on the Hub load without this package: its code beside it, and the files that point there."""

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.dynamic_module_utils import get_relative_import_files

import ccnet_hf
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.configuration_ccnet_video import CCNetVideoConfig
from ccnet_hf.models.image_processing_common_ccnet import IMAGE_PROCESSORS


CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
_VIDEO_PROCESSOR_FILE = "video_preprocessor_config.json"


def processor_file(model_type: str) -> str:
    """Name of the file with the processor of this type of model."""
    return _VIDEO_PROCESSOR_FILE if model_type == CCNetVideoConfig.model_type else PROCESSOR_FILE


def code_files(model_type: str = CCNetConfig.model_type) -> list[Path]:
    """The modules that a published checkpoint of this type of model needs: those the `auto_map`s name, and all that
    they import of each other."""
    models = Path(ccnet_hf.__file__).parent / "models"
    files = set()
    classes = CONFIG_MAPPING[model_type].remote_classes
    # The processors of most models are the same two, and no part of their configuration's classes.
    processors = () if "AutoImageProcessor" in classes else IMAGE_PROCESSORS
    for reference in (*classes.values(), *processors):
        module = models / f"{reference.partition('.')[0]}.py"
        files |= {module, *map(Path, get_relative_import_files(str(module)))}
    return sorted(files)


def published_files(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, bytes | Path]:
    """What a repository on the Hub holds beside card and weights, by file name: what `save_pretrained` writes today,
    for folders of any version.

    Args:
        config: content of the model's config.json, of any model of this package.
        processor: content of its `processor_file`.
    """
    model_type = config["model_type"]
    classes = CONFIG_MAPPING[model_type].remote_classes
    processors = {"AutoImageProcessor": IMAGE_PROCESSORS}
    if "AutoImageProcessor" in classes:
        processors = {"AutoImageProcessor": [classes["AutoImageProcessor"]] * 2}  # without torchvision, and with it
    if "AutoVideoProcessor" in classes:
        processors = {"AutoVideoProcessor": classes["AutoVideoProcessor"]}
    contents = {
        CONFIG_FILE: config | {"auto_map": classes},
        processor_file(model_type): processor | {"auto_map": processors},
    }
    # In the order of the files: sorted as text, label 10 would come before label 2.
    encoded = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}
    return encoded | {file.name: file for file in code_files(model_type)}
