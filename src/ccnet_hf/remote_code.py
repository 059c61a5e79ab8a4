"""What makes a checkpoint on the Hub load without this package: its code beside it, and the files that point there."""

import json
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import ccnet_hf


CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"

# For config.json alone: in preprocessor_config.json it would win over the classes that `import ccnet_hf` registers. Of
# the two image processors transformers takes the second where torchvision is installed.
AUTO_MAP = {
    "AutoConfig": "configuration_ccnet.CCNetConfig",
    "AutoModel": "modeling_ccnet.CCNetModel",
    "AutoModelForSemanticSegmentation": "modeling_ccnet.CCNetForSemanticSegmentation",
    "AutoImageProcessor": [
        "image_processing_pil_ccnet.CCNetImageProcessorPil",
        "image_processing_ccnet.CCNetImageProcessor",
    ],
}


def code_files() -> list[Path]:
    """The modules a published checkpoint needs: those `AUTO_MAP` names, and all that they import of each other."""
    models = Path(ccnet_hf.__file__).parent / "models"
    files = set()
    for reference in AUTO_MAP.values():
        for name in reference if isinstance(reference, list) else [reference]:
            module = models / f"{name.partition('.')[0]}.py"
            files |= {module, *map(Path, get_relative_import_files(str(module)))}
    return sorted(files)


def published_files(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, bytes | Path]:
    """What a repository on the Hub holds beside card and weights, by file name.

    Args:
        config: content of the model's config.json.
        processor: content of its preprocessor_config.json, where transformers itself would not know the class's name.
    """
    contents = {
        CONFIG_FILE: config | {"auto_map": AUTO_MAP},
        PROCESSOR_FILE: {name: value for name, value in processor.items() if name != "image_processor_type"},
    }
    # In the order of the files: sorted as text, label 10 would come before label 2.
    encoded = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}
    return encoded | {file.name: file for file in code_files()}
