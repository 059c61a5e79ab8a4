"""A small checkpoint and pictures for the page."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor


NAMES = ("Road", "Sky", "Tree", "Car", "a < b")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The folder of a tiny CCNet of five classes that sees pictures as they are."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    model = tiny_model(id2label=dict(enumerate(NAMES)), label2id={name: label for label, name in enumerate(NAMES)})
    model.save_pretrained(folder)
    CCNetImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A colourful PNG of 96 by 64 pixels."""
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return path
