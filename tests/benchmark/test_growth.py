"""`benchmark.py growth` on tiny images: what is measured, left out, fitted and drawn."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from ccnet_hf import benchmark
from ccnet_hf.benchmark import measuring, networks
from ccnet_hf.benchmark.growth_points import Point, exponent, memory


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "get_recipe", lambda name: SimpleNamespace(config=tiny_config))
    return tmp_path


def grow(*options):
    assert benchmark.main(["growth", "--repeats", "1", "--json", "growth.json", *options]) == 0
    return json.loads((open("growth.json")).read())["points"]


def test_every_block_at_every_size(here, capsys):
    pytest.importorskip("matplotlib")
    points = grow("--sizes", "128x128", "64x96")
    blocks = ["network", "criss-cross attention", "non-local block"]
    assert [(point["block"], point["height"], point["width"]) for point in points] == [
        (block, *size) for size in ((64, 96), (128, 128)) for block in blocks
    ]
    non_local = [point["bytes"] for point in points if point["block"] == "non-local block"]
    assert non_local[1] >= 2 * 4 * (16 * 16) ** 2, "scores and weights of all pairs of 16x16 positions"
    assert capsys.readouterr().out.count("power of the pixels") == 3
    with Image.open("growth.png") as picture:
        assert picture.size == (1200, 480) and len(picture.getcolors(2**20)) > 10


def test_what_does_not_fit_is_a_line(here, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    # Room for the pairs of 16x16 positions, not for those of 32x32.
    monkeypatch.setattr(measuring, "available_memory", lambda device: 2 * 4 * (32 * 32) ** 2 - 1)
    points = grow("--sizes", "128x128", "256x256")
    sizes = [point["height"] for point in points if point["block"] == "non-local block"]
    assert sizes == [128]
    assert "non-local block at 256x256: left out: it takes 0.0 GiB of memory" in capsys.readouterr().out


def test_exponents():
    points = [Point("network", side, side, [1.0], 3 * side**4) for side in (8, 16, 40)]
    assert exponent(points, memory) == pytest.approx(2)
    assert exponent(points[:1], memory) is None


def test_resident_growth_sees_memory_that_pytorch_does_not_know():
    with measuring.resident_growth() as growth:
        block = bytearray(64 * 2**20)
    assert growth.bytes is None or growth.bytes >= 60 * 2**20
    del block


def test_available_memory():
    available = measuring.available_memory(torch.device("cpu"))
    assert available is None or available > 2**20
