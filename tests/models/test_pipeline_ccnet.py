"""`AutoImageProcessor` and `pipeline("image-segmentation")` in fresh processes, by the package and by remote code."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import ccnet_hf
from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor, CCNetResNetConfig
from ccnet_hf.models import image_processing_common_ccnet as common
from ccnet_hf.models.image_processing_pil_ccnet import CCNetImageProcessorPil


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
    """A folder with a small checkpoint as `save_pretrained` leaves it, under a relative name, and an image beside
    it."""
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
    but for the progress bars of weights."""
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
    bars = ("Loading weights", "Writing model shards")
    assert [line for line in messages if not line.startswith(bars)] == []
    return json.loads(result.stdout)


def expected_masks(folder: Path) -> dict[str, list]:
    model = CCNetForSemanticSegmentation.from_pretrained(folder / NAME).eval()
    processor = CCNetImageProcessor.from_pretrained(folder / NAME)
    image = Image.open(folder / "image.png")
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(48, 72)])[0].numpy()
    return {model.config.id2label[label]: ((labels == label) * 255).tolist() for label in np.unique(labels)}


def test_a_saved_folder_with_the_package(folder):
    """By relative name; and a processor's folder alone."""
    (folder / "processor").mkdir()
    shutil.copy(folder / NAME / "preprocessor_config.json", folder / "processor")
    script = f"import ccnet_hf\n{SEGMENT}print(json.dumps([segment('{NAME}'), image_processors('processor')]))"
    segmented, processors = run(script, folder)
    masks = expected_masks(folder)
    assert len(masks) > 1
    assert segmented == ["CCNetForSemanticSegmentation", "CCNetImageProcessor", masks]
    assert processors == IMAGE_PROCESSORS


def test_a_folder_saved_before_the_code_was(folder):
    """As version 0.1 left them: neither modules nor `auto_map`."""
    shutil.copytree(folder / NAME, folder / "old", ignore=shutil.ignore_patterns("*.py"))
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / "old" / name).read_text())
        del content["auto_map"]
        (folder / "old" / name).write_text(json.dumps(content))
    (segmented,) = run(f"import ccnet_hf\n{SEGMENT}print(json.dumps([segment('old')]))", folder)
    assert segmented[2] == expected_masks(folder)


@pytest.mark.parametrize("saved_by", [CCNetImageProcessor, CCNetImageProcessorPil])
def test_a_saved_folder_as_remote_code(folder, saved_by):
    saved_by(size=SIZE).save_pretrained(folder / NAME)
    script = (
        f"import sys; sys.modules['ccnet_hf'] = None\n{SEGMENT}"
        f"arguments = {{'trust_remote_code': True}}\n"
        f"print(json.dumps([segment('{NAME}', **arguments), image_processors('{NAME}', **arguments)]))"
    )
    segmented, processors = run(script, folder)
    assert segmented == ["CCNetForSemanticSegmentation", "CCNetImageProcessor", expected_masks(folder)]
    assert processors == IMAGE_PROCESSORS


def test_what_remote_code_saves_is_remote_code_again(folder):
    script = (
        f"import sys; sys.modules['ccnet_hf'] = None\n{SEGMENT}"
        f"from transformers import AutoModel, AutoModelForSemanticSegmentation\n"
        f"arguments = {{'trust_remote_code': True}}\n"
        f"AutoModelForSemanticSegmentation.from_pretrained('{NAME}', **arguments).save_pretrained('again')\n"
        f"AutoImageProcessor.from_pretrained('{NAME}', **arguments).save_pretrained('again')\n"
        f"base = type(AutoModel.from_pretrained('again', **arguments)).__name__\n"
        f"print(json.dumps([base, segment('again', **arguments), image_processors('again', **arguments)]))"
    )
    base, segmented, processors = run(script, folder)
    assert base == "CCNetModel"
    assert segmented[2] == expected_masks(folder)
    assert processors == IMAGE_PROCESSORS


class OfAUser(CCNetForSemanticSegmentation):
    pass


def test_a_subclass_takes_no_file_of_its_own_along(tmp_path, folder):
    OfAUser.from_pretrained(folder / NAME).save_pretrained(tmp_path)
    assert not (tmp_path / Path(__file__).name).exists()


def test_a_pipeline_in_batches_says_what_images_of_different_sizes_need(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    common.logger.warning_once.cache_clear()
    segmenter = pipeline("image-segmentation", model=folder / NAME)
    images = [Image.open(folder / "image.png"), Image.open(folder / "image.png").resize((40, 48))]
    for image in images:
        segmenter(image)
    assert not caplog.records
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        segmenter(images, batch_size=2)
    (record,) = caplog.records
    assert 'set `do_pad=True, pad_size={"height": ..., "width": ...}` on the image processor' in record.message
    segmenter.image_processor.do_pad = True
    segmenter.image_processor.pad_size = {"height": 160, "width": 160}
    for segments, image in zip(segmenter(images, batch_size=2), images, strict=True):
        assert {segment["mask"].size for segment in segments} == {image.size}
        assert sum(np.asarray(segment["mask"], dtype=bool) for segment in segments).all()
    assert len(caplog.records) == 1
