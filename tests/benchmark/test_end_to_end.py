"""`benchmark.py end_to_end` on a tiny checkpoint."""

import json

import pytest
from PIL import Image
from tiny_models import tiny_model

from ccnet_hf import CCNetImageProcessor, benchmark


STAGES = ["decode", "image processor", "network", "logits to labels", "overlay", "overlay PNG", "label PNG"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("given", [True, False], ids=["a picture", "a drawn one"])
def test_every_stage_every_time(checkpoint, given, tmp_path, capsys):
    Image.new("RGB", (90, 70), (200, 30, 60)).save(tmp_path / "picture.png")
    options = ["--image", str(tmp_path / "picture.png")] if given else ["--size", "70x90", "--runtime", "eager"]
    words = ["--model_name_or_path", checkpoint, "--repeats", "2", "--json", str(tmp_path / "stages.json"), *options]
    assert benchmark.main(["end_to_end", *words]) == 0
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    assert all(len(stage["seconds"]) == len(stage["cpu_seconds"]) == 2 for stage in stages)
    out = capsys.readouterr().out
    assert "all but the network" in out and "70x90" in out


def test_one_line_for_what_cannot_be_measured(checkpoint, tmp_path, capsys):
    for options, message in (
        (["--image", str(tmp_path / "none.png")], "no such image"),
        (["--size", "1x1"], "the height of --size must be at least 36, got 1"),
    ):
        assert benchmark.main(["end_to_end", "--model_name_or_path", checkpoint, *options]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
