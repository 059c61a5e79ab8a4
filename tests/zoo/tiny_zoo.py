"""Checkpoints of the zoo's variants, small in width but with the variants' own configs, and a push of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.hub
from fake_hub import FakeHub
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from tiny_models import wake_attention

import ccnet_hf
from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.recipes import SHORT_NAMES, Recipe, zoo_recipes


ZOO = zoo_recipes()
REPOSITORY_NAMES = [recipe.name for recipe in ZOO] + list(SHORT_NAMES)


def write_checkpoint(recipe: Recipe, folder: Path) -> CCNetForSemanticSegmentation:
    """Write what the converter would, with a few channels and random weights, into `folder / recipe.name`."""
    torch.manual_seed(ZOO.index(recipe))
    backbone_config = recipe.model["backbone_config"] | {"hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
    config = recipe.config(backbone_config=backbone_config, hidden_size=16, auxiliary_channels=8)
    model = CCNetForSemanticSegmentation(config).eval()
    wake_attention(model.model.head.attention)
    model.save_pretrained(folder / recipe.name)
    recipe.image_processor().save_pretrained(folder / recipe.name)
    return model


def connect(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, no_token_file: Path) -> None:
    """Point this process's `huggingface_hub` to a fake Hub, signed in as `me`."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(no_token_file))
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    # transformers keeps one client, which remembers where it was made to go.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


class quiet:
    """No progress bars, which would stand between the lines that a test looks for."""

    def __enter__(self) -> None:
        disable_progress_bars()

    def __exit__(self, *exception) -> None:
        enable_progress_bars()


def run(script: str, hub: FakeHub, folder: Path) -> Any:
    """What a script prints as JSON in a fresh process without a terminal; it must not warn, nor ask."""
    source = str(Path(ccnet_hf.__file__).parents[1])
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",
        "HF_HUB_ETAG_TIMEOUT": "120",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_read",
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Where code is trusted, transformers names the files it comes in.
    notice = r"\[transformers\] A new version of the following files was downloaded.*?pin a revision\."
    messages = re.sub(notice if "trust_remote_code" in script else "^$", "", result.stderr, flags=re.DOTALL)
    lines = [line for part in messages.splitlines() for line in part.split("\r") if line.strip()]
    assert [line for line in lines if not line.startswith("Loading weights")] == []
    return json.loads(result.stdout)
