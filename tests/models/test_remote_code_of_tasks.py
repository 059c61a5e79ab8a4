"""Human parsers, video models, Mask R-CNN and attended backbones, saved and loaded in fresh processes without the
package."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_backbone_config, tiny_config, tiny_instance_model, tiny_parsing_model, tiny_video_model

import ccnet_hf
from ccnet_hf import (
    CCNetBackbone,
    CCNetBackboneConfig,
    CCNetForSemanticSegmentation,
    CCNetImageProcessor,
    CCNetInstanceImageProcessor,
    CCNetVideoProcessor,
)
from ccnet_hf.remote_code import code_files, published_files


PARSING = """
import json, sys
sys.modules["ccnet_hf"] = None
import numpy as np
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="parser", trust_remote_code=True)
segmenter.save_pretrained("again")
again = pipeline("image-segmentation", model="again", trust_remote_code=True)
results = [[(s["label"], np.asarray(s["mask"]).tolist()) for s in one("image.png")] for one in (segmenter, again)]
names = [type(segmenter.model).__name__, type(segmenter.image_processor).__name__]
print(json.dumps([names, sorted(results[0]) == sorted(results[1]), dict(results[0])]))
"""
VIDEO = """
import json, sys
sys.modules["ccnet_hf"] = None
import numpy as np, torch
from transformers import AutoModelForSemanticSegmentation, AutoVideoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("video", trust_remote_code=True)
processor = AutoVideoProcessor.from_pretrained("video", trust_remote_code=True)
clip = processor(np.load("clip.npy"), return_tensors="pt")
with torch.no_grad():
    outputs = model(**clip)
maps = processor.post_process_semantic_segmentation(outputs, [(30, 42)] * 3)
print(json.dumps([type(model).__name__, type(processor).__name__, [m.tolist() for m in maps]]))
"""
INSTANCES = """
import json, sys
sys.modules["ccnet_hf"] = None
from transformers import AutoModelForInstanceSegmentation, pipeline

AutoModelForInstanceSegmentation.from_pretrained("instances", trust_remote_code=True)
segmenter = pipeline("image-segmentation", model="instances", trust_remote_code=True)
segmenter.save_pretrained("again")
again = pipeline("image-segmentation", model="again", trust_remote_code=True)
boxes = pipeline("object-detection", model="again", trust_remote_code=True)("image.png", threshold=0.3)
results = [[(s["label"], s["score"]) for s in one("image.png", threshold=0.3)] for one in (segmenter, again)]
names = [type(segmenter.model).__name__, type(segmenter.image_processor).__name__]
print(json.dumps([names, results[0] == results[1], results[0], boxes[0]["score"]]))
"""

BACKBONE = """
import json, sys
sys.modules["ccnet_hf"] = None
import numpy as np, torch
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

# AutoBackbone.from_pretrained takes names on the Hub alone.
config = AutoConfig.from_pretrained("attended", trust_remote_code=True)
backbone = get_class_from_dynamic_module(config.auto_map["AutoBackbone"], "attended").from_pretrained("attended")
with torch.no_grad():
    maps = backbone(torch.from_numpy(np.load("pixel_values.npy"))).feature_maps
print(json.dumps([type(backbone).__name__, [feature_map.sum().item() for feature_map in maps]]))
"""
OF_A_USER = """
from ccnet_hf import CCNetForSemanticSegmentation, CCNetImageProcessor

class OwnModel(CCNetForSemanticSegmentation):
    pass

class OwnProcessor(CCNetImageProcessor):
    pass
"""


def run(script: str, folder: Path) -> list:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    environment["PYTHONPATH"] = str(Path(ccnet_hf.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_human_parser(tmp_path):
    model = tiny_parsing_model()
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(tmp_path / "parser")
    processor = CCNetImageProcessor(size={"height": 48, "width": 48}, do_letterbox=True, align_corners=True)
    processor.save_pretrained(tmp_path / "parser")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    names, same, masks = run(PARSING, tmp_path)
    assert names == ["CCNetForHumanParsing", "CCNetImageProcessor"] and same
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, [(40, 30)])[0].numpy()
    assert masks == {f"LABEL_{label}": ((labels == label) * 255).tolist() for label in np.unique(labels)}


def test_a_video_model(tmp_path):
    model = tiny_video_model()
    with torch.no_grad():
        model.classifier.weight.normal_()
    processor = CCNetVideoProcessor(size={"height": 48, "width": 64})
    model.save_pretrained(tmp_path / "video")
    processor.save_pretrained(tmp_path / "video")
    clip = np.random.default_rng(0).integers(0, 256, (3, 30, 42, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", clip)
    with torch.no_grad():
        outputs = model(**processor(clip, return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(outputs, [(30, 42)] * 3)
    found = run(VIDEO, tmp_path)
    assert found[:2] == ["CCNetForVideoSegmentation", "CCNetVideoProcessor"]
    assert found[2] == [label_map.tolist() for label_map in expected]


def test_instances(tmp_path):
    model = tiny_instance_model()
    model.save_pretrained(tmp_path / "instances")
    processor = CCNetInstanceImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "instances")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    names, same, found, score = run(INSTANCES, tmp_path)
    assert names == ["CCNetForInstanceSegmentation", "CCNetInstanceImageProcessor"] and same
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    expected = processor.post_process_instance_segmentation(outputs, 0.3, 0.5, 0.5, [(50, 70)])[0]["segments_info"]
    assert [entry[0] for entry in found] == [model.config.id2label[info["label_id"]] for info in expected]
    assert [entry[1] for entry in found] == [info["score"] for info in expected] and found
    assert score == outputs.scores.max().item()


def test_an_attended_backbone(tmp_path):
    backbone = CCNetBackbone(CCNetBackboneConfig(backbone_config=tiny_backbone_config())).eval()
    torch.nn.init.ones_(backbone.attention.gamma)
    backbone.save_pretrained(tmp_path / "attended")
    pixel_values = torch.rand(1, 3, 65, 97)
    np.save(tmp_path / "pixel_values.npy", pixel_values.numpy())
    with torch.no_grad():
        expected = [feature_map.sum().item() for feature_map in backbone(pixel_values).feature_maps]
    assert run(BACKBONE, tmp_path) == ["CCNetBackbone", expected]


def saved_references(folder: Path, model: torch.nn.Module, processor) -> set[str]:
    """The classes that the files of a saved folder name, of which every module is there."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    contents = [json.loads(file.read_text()) for file in folder.glob("*config.json")]
    values = [value for content in contents for value in content.get("auto_map", {}).values()]
    names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    assert all((folder / f"{name.partition('.')[0]}.py").is_file() for name in names)
    return names


def test_subclasses_of_a_users_name_no_code_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(OF_A_USER)
    monkeypatch.syspath_prepend(tmp_path)
    user = importlib.import_module("of_a_user")
    model, processor = CCNetForSemanticSegmentation(tiny_config()), CCNetImageProcessor()
    assert len(saved_references(tmp_path / "ours", model, processor)) == 5
    for name, of_a_user in {
        "new": (user.OwnModel(tiny_config()), user.OwnProcessor()),
        "loaded": [kind.from_pretrained(tmp_path / "ours") for kind in (user.OwnModel, user.OwnProcessor)],
    }.items():
        assert saved_references(tmp_path / name, *of_a_user) == {"configuration_ccnet.CCNetConfig"}
    user.OwnModel.register_for_auto_class("AutoModelForSemanticSegmentation")
    user.OwnProcessor.register_for_auto_class()
    names = saved_references(tmp_path / "registered", *of_a_user)
    assert names == {"configuration_ccnet.CCNetConfig", "of_a_user.OwnModel", "of_a_user.OwnProcessor"}


@pytest.mark.parametrize(
    ("model_type", "own", "processor"),
    [
        ("ccnet_parsing", "modeling_ccnet_parsing.py", "preprocessor_config.json"),
        ("ccnet_instance", "annotations_ccnet.py", "preprocessor_config.json"),
        ("ccnet_video", "video_processing_ccnet.py", "video_preprocessor_config.json"),
    ],
)
def test_what_is_published_holds_the_files_of_the_task(model_type, own, processor):
    names = {path.name for path in code_files(model_type)}
    assert {own, "layers_ccnet.py", "criss_cross_attention.py"} <= names
    files = published_files({"model_type": model_type}, {})
    assert {own, "config.json", processor} <= set(files)
    auto_map = json.loads(files["config.json"])["auto_map"]
    references = {name for value in auto_map.values() for name in ([value] if isinstance(value, str) else value)}
    assert all(f"{reference.partition('.')[0]}.py" in names for reference in references)
