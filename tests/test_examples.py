"""The examples do what they say."""

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_models import tiny_model
from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoProcessor

from ccnet_hf import CCNetImageProcessor


ROOT = Path(__file__).resolve().parents[1]


def load(name: str):
    file = ROOT / "examples" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(Path(name).name, file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_unet_3d():
    example = load("unet_3d")
    torch.manual_seed(0)
    model = example.UNet3D(channels=4).double().eval()
    torch.nn.init.constant_(model.attention.gamma, 0.5)
    volumes, labels = example.synthetic_volumes(2, 16, torch.Generator().manual_seed(0))
    assert labels.shape == (2, 16, 16, 16) and set(labels.unique().tolist()) == {0, 1, 2}
    with torch.no_grad():
        logits = model(volumes.double())
        assert logits.shape == (2, 3, 16, 16, 16)
        everywhere = torch.ones(2, 16, 16, 16, dtype=torch.bool)
        torch.testing.assert_close(model(volumes.double(), everywhere), logits)
        some = everywhere.clone()
        some[:, 8:] = False
        assert not torch.allclose(model(volumes.double(), some), logits)
    example.main(steps=2, side=8)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of the server in examples/server, which serves a tiny model."""
    testclient = pytest.importorskip("fastapi.testclient", reason="needs fastapi, which gradio brings")
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as context:
        context.setenv("MODEL", str(folder))
        yield testclient.TestClient(load("server/app").app)


def picture(format: str = "JPEG") -> bytes:
    encoded = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((60, 40)).save(encoded, format)
    return encoded.getvalue()


def picture_of_floats() -> bytes:
    encoded = io.BytesIO()
    Image.new("F", (6, 4)).save(encoded, "TIFF")
    return encoded.getvalue()


def test_the_server_answers_with_a_label_map(client):
    answer = client.post("/segment", content=picture())
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    label_map = Image.open(io.BytesIO(answer.content))
    assert label_map.size == (60, 40) and label_map.mode == "L" and label_map.getextrema()[1] < 5
    assert client.get("/classes").json() == {str(label): f"LABEL_{label}" for label in range(5)}


def test_the_server_refuses_in_a_sentence_and_lives_on(client, monkeypatch):
    for content, reason in (
        (b"text", "it is not an image"),
        (picture()[:200], "the picture: cannot be read"),
        (picture_of_floats(), "the picture: floating point pixels have no known range"),
        (b"", "it is not an image"),
    ):
        answer = client.post("/segment", content=content)
        assert answer.status_code == 400 and reason in answer.json()["detail"]
    endpoint = next(route.endpoint for route in client.app.routes if route.path == "/segment")
    monkeypatch.setitem(endpoint.__globals__, "MAX_PIXELS", 1000)
    answer = client.post("/segment", content=picture())
    assert answer.json()["detail"] == "the picture: it has more than 0.001 megapixels"
    monkeypatch.setitem(endpoint.__globals__, "MAX_BYTES", 100)
    assert client.post("/segment", content=picture("PNG")).status_code == 413
    monkeypatch.undo()
    assert client.post("/segment", content=picture("PNG")).status_code == 200


def test_the_function_for_cvat_answers_with_masks(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(tmp_path)
    monkeypatch.setenv("MODEL", str(tmp_path))
    function = load("cvat/main")
    context = SimpleNamespace(user_data=SimpleNamespace(), Response=SimpleNamespace)
    function.init_context(context)
    answer = function.handler(context, SimpleNamespace(body={"image": base64.b64encode(picture()).decode()}))
    assert answer.status_code == 200
    found = np.full((40, 60), -1)
    for one in json.loads(answer.body):
        *pixels, left, top, right, bottom = one["mask"]
        inside = np.array(pixels, bool).reshape(bottom - top + 1, right - left + 1)
        assert inside.any(axis=0)[[0, -1]].all() and inside.any(axis=1)[[0, -1]].all() and one["type"] == "mask"
        found[top : bottom + 1, left : right + 1][inside] = int(one["label"].removeprefix("LABEL_"))
    label_map = context.user_data.predictor.label_map(Image.open(io.BytesIO(picture())))
    np.testing.assert_array_equal(found, label_map.numpy())
    answer = function.handler(context, SimpleNamespace(body={"image": base64.b64encode(b"text").decode()}))
    assert answer.status_code == 400 and "it is not an image" in answer.body


def test_the_function_for_cvat_names_the_classes_of_the_checkpoint():
    text = (ROOT / "examples" / "cvat" / "function.yaml").read_text()
    named = json.loads(yaml.safe_load(text)["metadata"]["annotations"]["spec"])
    config = json.loads((next((ROOT / "checkpoints").iterdir()) / "config.json").read_text())
    assert {str(one["id"]): one["name"] for one in named} == config["id2label"]


def test_fiftyone_finds_what_it_asks_a_model_for(tmp_path):
    """What FiftyOne's `apply_model` does with a transformers model, by its `fiftyone/utils/transformers.py`: it tells
    the task by the class's name, loads by the Auto classes and takes the argmax of `logits`."""
    tiny_model().save_pretrained(tmp_path / "model")
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}).save_pretrained(tmp_path / "model")
    folder, cache = str(tmp_path / "model"), str(tmp_path / "cache")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, cache_dir=cache).eval()
    assert "ForSemanticSegmentation" in type(model).__name__ and model.config.name_or_path == folder
    config = AutoConfig.from_pretrained(folder, cache_dir=cache)
    assert [config.id2label[label] for label in range(len(config.id2label))] == [f"LABEL_{i}" for i in range(5)]
    processor = AutoProcessor.from_pretrained(pretrained_model_name_or_path=folder, use_fast=True, cache_dir=cache)
    image = Image.open(io.BytesIO(picture()))
    with torch.no_grad():
        output = model(**processor(images=[image], return_tensors="pt"), output_hidden_states=False)
    assert output["logits"].argmax(dim=1).shape[0] == 1
