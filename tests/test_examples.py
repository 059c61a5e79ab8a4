"""The examples do what they say."""

import importlib.util
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor


def load(name: str):
    file = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
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


def test_the_server_answers_with_a_label_map(client):
    answer = client.post("/segment", content=picture())
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    label_map = Image.open(io.BytesIO(answer.content))
    assert label_map.size == (60, 40) and label_map.mode == "L" and label_map.getextrema()[1] < 5
    assert client.get("/classes").json() == {str(label): f"LABEL_{label}" for label in range(5)}


def test_the_server_refuses_in_a_sentence_and_lives_on(client, monkeypatch):
    for content, reason in (
        (b"text", "it is not an image"),
        (picture()[:200], "cannot be read"),
        (b"", "it is not an image"),
    ):
        answer = client.post("/segment", content=content)
        assert answer.status_code == 400 and reason in answer.json()["detail"]
    endpoint = next(route.endpoint for route in client.app.routes if route.path == "/segment")
    monkeypatch.setitem(endpoint.__globals__, "MAX_PIXELS", 1000)
    assert "exceeds limit" in client.post("/segment", content=picture()).json()["detail"]
    monkeypatch.setitem(endpoint.__globals__, "MAX_BYTES", 100)
    assert client.post("/segment", content=picture("PNG")).status_code == 413
    monkeypatch.undo()
    assert client.post("/segment", content=picture("PNG")).status_code == 200
