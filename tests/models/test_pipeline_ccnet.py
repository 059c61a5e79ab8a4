"""`AutoImageProcessor` and `pipeline("image-segmentation")` in fresh processes, by the package and by remote code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ccnet_hf
from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor, CCNetResNetConfig
from ccnet_hf.remote_code import published_files


NAME = "ccnet-r101-cityscapes"

SEGMENT = """
import json
import numpy as np
from transformers import AutoImageProcessor, pipeline

def segment(folder, **arguments):
    segmenter = pipeline("image-segmentation", model=folder, **arguments)
    masks = {segment["label"]: np.asarray(segment["mask"]).tolist() for segment in segmenter("image.png")}
    return [type(segmenter.model).__name__, type(segmenter.image_processor).__name__, masks]

def image_processors(folder, **arguments):
    backends = ("torchvision", "pil")
    processors = [AutoImageProcessor.from_pretrained(folder, backend=backend, **arguments) for backend in backends]
    return [[type(processor).__name__, dict(processor.size)] for processor in processors]

"""

SIZE = {"shortest_edge": 64, "longest_edge": 128}
IMAGE_PROCESSORS = [["CCNetImageProcessor", SIZE], ["CCNetImageProcessorPil", SIZE]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a small checkpoint under a relative name, and an image beside it."""
    torch.manual_seed(0)
    backbone_config = CCNetResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], stem_size=8, out_features=["stage3", "stage4"]
    )
    config = CCNetConfig(
        backbone_config=backbone_config,
        hidden_size=16,
        auxiliary_channels=8,
        id2label=dict(enumerate(["road", "car", "sky"])),
    )
    model = CCNetForSemanticSegmentation(config)
    with torch.no_grad():  # some classes each: an untrained classifier may well find one only
        model.classifier.weight.normal_()
    path = tmp_path_factory.mktemp("checkpoints")
    model.save_pretrained(path / NAME)
    CCNetImageProcessor(size=SIZE).save_pretrained(path / NAME)
    image = np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    Image.fromarray(image).save(path / "image.png")
    return path


def run(script: str, folder: Path) -> list:
    """What a script prints as JSON in a fresh process, offline and without a terminal. Nothing else may be printed,
    but for the progress bar of loading weights."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONPATH": os.pathsep.join([str(Path(ccnet_hf.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
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
    messages = [line for part in result.stderr.splitlines() for line in part.split("\r") if line.strip()]
    assert [line for line in messages if not line.startswith("Loading weights")] == []
    return json.loads(result.stdout)


def expected_masks(folder: Path) -> dict[str, list]:
    model = CCNetForSemanticSegmentation.from_pretrained(folder / NAME).eval()
    processor = CCNetImageProcessor.from_pretrained(folder / NAME)
    image = Image.open(folder / "image.png")
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 72)])[0].numpy()
    return {model.config.id2label[label]: ((labels == label) * 255).tolist() for label in np.unique(labels)}


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory) -> Path:
    """The same folder as it is published: with the flat modules, `auto_map` in config.json only, and no class name in
    preprocessor_config.json."""
    path = tmp_path_factory.mktemp("published")
    shutil.copytree(folder / NAME, path / NAME)
    shutil.copy(folder / "image.png", path)
    config, processor = (
        json.loads((path / NAME / file).read_text()) for file in ("config.json", "preprocessor_config.json")
    )
    for name, content in published_files(config, processor).items():
        (path / NAME / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return path


def test_with_the_package(published, folder):
    """Folders as `save_pretrained` leaves them and as published, by relative name; and a processor's folder alone."""
    shutil.copytree(folder / NAME, published / "saved")
    (published / "processor").mkdir()
    shutil.copy(folder / NAME / "preprocessor_config.json", published / "processor")
    script = (
        f"import ccnet_hf\n{SEGMENT}"
        f"print(json.dumps([segment('{NAME}'), segment('saved'), image_processors('processor')]))"
    )
    as_published, as_saved, processors = run(script, published)
    masks = expected_masks(folder)
    assert len(masks) > 1
    assert as_published == as_saved == ["CCNetForSemanticSegmentation", "CCNetImageProcessor", masks]
    assert processors == IMAGE_PROCESSORS


def test_as_remote_code(published, folder):
    script = (
        f"import sys; sys.modules['ccnet_hf'] = None\n{SEGMENT}"
        f"arguments = {{'trust_remote_code': True}}\n"
        f"print(json.dumps([segment('{NAME}', **arguments), image_processors('{NAME}', **arguments)]))"
    )
    segmented, processors = run(script, published)
    assert segmented == ["CCNetForSemanticSegmentation", "CCNetImageProcessor", expected_masks(folder)]
    assert processors == IMAGE_PROCESSORS
