"""mmsegmentation checkpoints made of deterministic weights, and what our converter makes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_weights import mmsegmentation_state_dict
from transformers import AutoModelForSemanticSegmentation

from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.zoo import convert_checkpoint


# Depth -> a variant of that depth whose classes the golden files use.
VARIANTS = {50: "ccnet-r50-cityscapes-512x1024-40k", 101: "ccnet-r101-ade20k-512x512-80k"}
NUM_LABELS = {50: 19, 101: 150}


@pytest.fixture(scope="session")
def converted_folder(tmp_path_factory) -> Callable[[int], Path]:
    """`converted_folder(depth)`: the golden files' weights as a `.pth` file, sent through the converter once."""
    folders: dict[int, Path] = {}

    def convert(depth: int) -> Path:
        if depth not in folders:
            work = tmp_path_factory.mktemp(f"r{depth}")
            checkpoint, folders[depth] = work / "mmsegmentation.pth", work / VARIANTS[depth]
            state_dict = mmsegmentation_state_dict(depth, NUM_LABELS[depth])
            torch.save({"meta": {"CLASSES": ["any"]}, "state_dict": state_dict}, checkpoint)
            convert_checkpoint(VARIANTS[depth], checkpoint, folders[depth])
            checkpoint.unlink()
        return folders[depth]

    return convert


@pytest.fixture(scope="session")
def load_model(converted_folder) -> Callable[..., CCNetForSemanticSegmentation]:
    """`load_model(depth, dtype=..., **config)`: the converted folder as a user loads it."""

    def load(depth: int, **kwargs) -> CCNetForSemanticSegmentation:
        return AutoModelForSemanticSegmentation.from_pretrained(converted_folder(depth), **kwargs)

    return load
