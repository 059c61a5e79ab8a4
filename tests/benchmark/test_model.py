"""`benchmark.py model` on a tiny image."""

import json

import pytest
import torch
from tiny_models import tiny_config, tiny_model

from ccnet_hf import benchmark
from ccnet_hf.benchmark import model as model_benchmark


@pytest.mark.parametrize("train", [False, True], ids=["inference", "train"])
def test_model(train, tmp_path, monkeypatch, capsys):
    class Recipe:
        config = staticmethod(tiny_config)

    monkeypatch.setattr(model_benchmark, "get_recipe", lambda name: Recipe)
    file = tmp_path / "model.json"
    arguments = ["--size", "33x41", "--batch_size", "2", "--repeats", "2", "--json", str(file)]
    assert benchmark.main(["model", *arguments, *(["--train"] if train else [])]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["form"] for row in rows] == ["einsum form, NCHW", "operator"]
    assert all(len(row["seconds"]) == 2 and row["bytes"] > 0 for row in rows)
    assert "images/s" in capsys.readouterr().out


def test_the_plain_copy_runs_the_einsum_form_in_nchw(monkeypatch):
    model = tiny_model()
    plain = model_benchmark._in_nchw(model)
    pixel_values = torch.randn(1, 3, 33, 41)
    calls = []
    yardstick = model_benchmark.einsum_attention
    monkeypatch.setattr(
        model_benchmark,
        "einsum_attention",
        lambda *tensors: calls.append([tensor.is_contiguous() for tensor in tensors]) or yardstick(*tensors),
    )
    with torch.inference_mode():
        expected = model(pixel_values=pixel_values).logits
        actual = model_benchmark._with_einsum(lambda: plain(pixel_values=pixel_values).logits)
    assert calls == [[True] * 3] * model.config.recurrence
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
