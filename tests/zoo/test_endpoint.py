"""The handler that Inference Endpoints run, from the files of a repository and nothing else."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_instance_model
from tiny_zoo import write_checkpoint
from transformers import pipeline

from ccnet_hf import CCNetInstanceImageProcessor
from ccnet_hf.models.handler import _FORMATS, EndpointHandler
from ccnet_hf.models.image_transforms_ccnet import FORMATS
from ccnet_hf.recipes import get_recipe
from ccnet_hf.remote_code import endpoint_files, published_files
from ccnet_hf.zoo.repository import model_repositories


ROOT = Path(__file__).parents[2]
STREET = ROOT / "examples" / "street.jpg"
NAME = "ccnet-r50-voc12aug-512x512-40k"
SCRIPT = """
import base64, json, sys

sys.modules["ccnet_hf"] = None
sys.path.insert(0, sys.argv[1])  # as an endpoint imports it
from handler import EndpointHandler

handler = EndpointHandler(sys.argv[1])
image = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
json.dump(handler({"inputs": image, "parameters": {"subtask": "semantic"}}), open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository as it is pushed, in a folder."""
    folder = tmp_path_factory.mktemp("repository")
    write_checkpoint(get_recipe(NAME), folder)
    (found,) = model_repositories(get_recipe(NAME), folder, "me")
    for path, content in found.files.items():
        target = folder / "pushed" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    processor = folder / "pushed" / "preprocessor_config.json"
    size = {"size": {"shortest_edge": 96, "longest_edge": 128}}  # for a test's sake
    processor.write_text(json.dumps(json.loads(processor.read_text()) | size))
    return folder / "pushed"


@pytest.fixture(scope="module")
def handler(repository) -> EndpointHandler:
    return EndpointHandler(str(repository))


def masks(segments: list[dict]) -> dict[str, bytes]:
    """Label -> pixels of its mask, of segments as the handler gives them or as the pipeline does."""
    found = {}
    for segment in segments:
        mask = segment["mask"]
        if isinstance(mask, str):
            mask = Image.open(io.BytesIO(base64.b64decode(mask, validate=True)))
            assert mask.format == "PNG"
        assert mask.mode == "L"
        found[segment["label"]] = mask.size, mask.tobytes()
    return found


def test_it_answers_as_the_pipeline_without_the_package(repository, tmp_path):
    answer = tmp_path / "answer.json"
    subprocess.run([sys.executable, "-c", SCRIPT, repository, STREET, answer], check=True, cwd=tmp_path)
    expected = masks(pipeline("image-segmentation", model=str(repository))(str(STREET)))
    segments = json.loads(answer.read_text())
    assert masks(segments) == expected and len(expected) > 1
    assert all(segment["score"] is None for segment in segments)


def test_every_form_of_an_image_is_the_same(handler):
    data = STREET.read_bytes()
    expected = handler({"inputs": data})
    text = base64.encodebytes(data).decode()  # with line breaks
    for inputs in (text, f"data:image/jpeg;base64,{text}", Image.open(STREET)):
        assert handler({"inputs": inputs, "parameters": None}) == expected


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, "must be an image: base64 text, bytes or Pillow's; got NoneType"),
        ({"inputs": ["a", "b"]}, "got list"),
        ({"inputs": "https://example.org/street.jpg"}, "must be an image file encoded in base64"),
        ({"inputs": "no base64!"}, "must be an image file encoded in base64"),
        ({"inputs": b"text"}, "is no image of these formats: AVIF, .*, WEBP"),
        (
            {"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"},
            "is no image of these formats",
        ),
        ({"inputs": STREET.read_bytes()[:2000]}, "cannot be read as an image: image file is truncated"),
        ({"inputs": STREET.read_bytes(), "parameters": {"timeout": 3}}, "`parameters` can have .*; got timeout"),
        ({"inputs": STREET.read_bytes(), "parameters": {"subtask": "depth"}}, "Subtask depth is not supported"),
    ],
)
def test_what_cannot_be_segmented_is_one_sentence(handler, data, message):
    with pytest.raises(ValueError, match=message):
        handler(data)


def test_the_formats_are_those_of_the_package():
    assert _FORMATS == FORMATS


def test_instances_have_scores(tmp_path):
    model = tiny_instance_model()
    model.save_pretrained(tmp_path)
    CCNetInstanceImageProcessor(size={"shortest_edge": 96, "longest_edge": 128}).save_pretrained(tmp_path)
    parameters = {"threshold": 0.0, "mask_threshold": 0.1}
    segments = EndpointHandler(str(tmp_path))({"inputs": STREET.read_bytes(), "parameters": parameters})
    assert segments and all(0 <= segment["score"] <= 1 for segment in segments)
    assert {size for size, _ in masks(segments).values()} == {Image.open(STREET).size}


def test_what_an_endpoint_installs():
    demo = json.loads((ROOT / "checkpoints" / "ccnet-mobilenetv2-camvid" / "config.json").read_text())
    lines = endpoint_files(demo)["requirements.txt"].decode().splitlines()
    assert [line.partition(">=")[0] for line in lines] == ["timm", "transformers"]
    assert "handler.py" in published_files(demo, {})
    assert endpoint_files({"model_type": "ccnet_video"}) == {}
