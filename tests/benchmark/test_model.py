"""`benchmark.py model` on a tiny image."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch import nn

from ccnet_hf import benchmark
from ccnet_hf.benchmark import model as model_benchmark
from ccnet_hf.benchmark import networks, rivals, speed
from ccnet_hf.benchmark.networks import build_network, network_inputs, noise
from ccnet_hf.benchmark.runtimes import RUNTIME_FORMS, make_runtime
from ccnet_hf.errors import InputError


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    monkeypatch.setattr(networks, "get_recipe", lambda name: SimpleNamespace(config=tiny_config))


def measure(tmp_path, *options):
    file = tmp_path / "model.json"
    arguments = ["--size", "33x41", "--batch_size", "2", "--repeats", "2", "--json", str(file)]
    assert benchmark.main(["model", *arguments, *options]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert all(len(row["seconds"]) == len(row["cpu_seconds"]) == 2 for row in rows)
    return {row["form"]: row for row in rows}


def test_training_is_that_of_the_model_as_it_is(tmp_path, capsys):
    rows = measure(tmp_path, "--train")
    assert list(rows) == ["einsum form, NCHW", "operator"]
    assert all(row["bytes"] > 0 and row["error"] is None for row in rows.values())
    assert "images/s" in capsys.readouterr().out


def test_runtimes_and_rivals_in_one_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rivals.RIVALS, "segformer-b2", lambda num_labels: nn.Conv2d(3, num_labels, 1))
    rows = measure(tmp_path, "--runtimes", "eager", "cuda_graphs", "--against", "segformer-b2")
    out = capsys.readouterr().out
    assert list(rows) == ["einsum form, NCHW", "operator", "eager", "segformer-b2"]
    assert rows["operator"]["error"] <= 1e-6 and rows["operator"]["changed"] == 0
    assert 0 < rows["eager"]["error"] <= 1e-3 and rows["eager"]["changed"] <= 0.01
    assert rows["segformer-b2"]["error"] is None
    assert "cuda_graphs: not measured: the backend cuda_graphs needs a model on CUDA" in out
    assert "auto without an example takes eager: 1.00 times" in out


@pytest.mark.slow
def test_int8_is_calibrated_on_what_is_measured():
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    model, batches = tiny_model(), [noise((1, 3, 48, 64), seed) for seed in range(2)]
    runtime = make_runtime("openvino-int8", model, torch.float32, batches)
    assert model_benchmark._is_program(runtime)  # whose memory PyTorch does not see
    assert not model_benchmark._is_program(make_runtime("eager", model, torch.float32, batches))
    logits = runtime.logits(batches[0])
    with torch.no_grad():
        expected = model(batches[0]).logits
    error, _ = speed.compare_logits(logits, expected, False, (48, 64))
    assert 0 < error < 0.2


@pytest.mark.parametrize("name", ["onnx", "openvino", "onnx-int8", "openvino-int8", "eager-bfloat16"])
def test_what_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr("ccnet_hf.deployment.machine.find_spec", lambda name: None)
    monkeypatch.setattr("ccnet_hf.deployment.machine._has_instructions", lambda *names: False)
    with pytest.raises(InputError, match=r"not installed|no instructions"):
        make_runtime(name, tiny_model(), torch.float32, [])


def test_random_networks_compute_something():
    model = build_network("ccnet-r50-cityscapes")
    assert model.model.head.attention.gamma.item() == pytest.approx(0.3) and not model.training
    with torch.no_grad():
        logits = model(noise((1, 3, 96, 96), 7)).logits
    assert logits.isfinite().all() and logits.std() > 0.01
    assert all(layer.momentum == 0.1 for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_pictures_become_network_input(tmp_path):
    from PIL import Image

    Image.new("RGB", (9, 7), (255, 0, 0)).save(tmp_path / "red.png")
    (batch,) = network_inputs([tmp_path / "red.png"], 2, (32, 40))
    assert batch.shape == (2, 3, 32, 40)
    torch.testing.assert_close(batch[0, :, 5, 5], torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


@pytest.mark.slow
@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_are_the_published_sizes(name):
    """Parameters of the checkpoints that they stand for, to a percent; classifiers have as many classes as we ask."""
    millions = {
        "segformer-b2": 27.4,
        "upernet-convnext-tiny": 60.2,
        "mask2former-swin-tiny": 47.4,
        "deeplabv3-r50": 39.6,
    }
    network = rivals.RIVALS[name](19)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(millions[name], rel=0.01)
    rivals.rival_call(name, 19, noise((1, 3, 64, 64)), torch.float32)()


def test_auto_is_compared_with_backends_of_its_dtype_only():
    rows = [
        speed.Speed(name, [], [seconds], 0)
        for name, seconds in (("operator", 4.0), ("eager", 2.2), ("onnx", 2.0), ("openvino-int8", 0.5))
    ]
    line = speed.auto_line(rows, tiny_model(), torch.float32, "cpu_seconds")
    assert line.startswith("auto without an example takes eager: 1.10 times") and line.endswith("onnx")
    assert speed.auto_line(rows[:1], tiny_model(), torch.float32, "cpu_seconds") is None
    assert {"eager", "compile", "onnx", "openvino", "openvino-int8"} <= RUNTIME_FORMS.keys()


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
