"""`ccnet_hf.optimize`: every form gives the logits of the model, which stays as it is."""

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_backbone_config, tiny_instance_model, tiny_model
from torch import nn
from transformers import ConvNextConfig, TimmBackboneConfig

import ccnet_hf
from ccnet_hf import CCNetForVideoSegmentation, CCNetVideoConfig, InputError
from ccnet_hf.deployment import machine, optimize, programs, runtimes
from ccnet_hf.deployment.onednn import FusedBottleneck
from ccnet_hf.deployment.runtimes import RUNTIMES, OptimizedRuntime
from ccnet_hf.deployment.winograd import WinogradConv2d
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.runtime import Runtime


MODELS = {
    "resnet": {},
    "wide": {
        "hidden_size": 256,
        "query_key_size": 8,
        "backbone_config": tiny_backbone_config(hidden_sizes=[16, 32, 64, 256]),
    },
    "leaky": {"head_activation": "leaky_relu", "recurrence": 1},
    "paddleseg": {
        "backbone_config": tiny_backbone_config(pooled_shortcut=True),
        "attention_activation": "leaky_relu",
    },
    "no concatenation": {"concat_input": False, "recurrence": 0},
    "mobile": {"backbone_config": TimmBackboneConfig(backbone="mobilenetv2_050", out_indices=[3, 4], output_stride=8)},
    "efficientnet": {
        "backbone_config": TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[3, 4], output_stride=8)
    },
    "convnext": {
        "backbone_config": ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_indices=[3, 4])
    },
    "frozen batch norms": {"backbone_config": tiny_backbone_config(frozen_batch_norm=True)},
    "attention in the trunk": {
        "backbone_config": tiny_backbone_config(attention_stage="stage3", attention_query_key_size=4)
    },
}
VIDEO = CCNetVideoConfig(backbone_config=tiny_backbone_config(), hidden_size=32, auxiliary_channels=16, num_labels=5)
BATCHES = [(2, 3, 64, 96), (1, 3, 97, 65)]


def batches():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in BATCHES]


def assert_equal_logits(runtime, model, bound=1e-3):
    for pixel_values in batches():
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).logits
        found = runtime.logits(pixel_values)
        assert found.shape == expected.shape
        assert (found.float() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_eager_gives_the_model_s_logits_and_leaves_it_alone(name, lively):
    model = lively(tiny_model(**MODELS[name]))
    before = copy.deepcopy(model.state_dict())
    runtime = ccnet_hf.optimize(model, "eager")
    assert isinstance(runtime, Runtime) and isinstance(runtime, OptimizedRuntime)
    assert runtime.config is model.config and runtime.dtype == torch.float32
    assert_equal_logits(runtime, model, 1e-4)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_model_in_training_stays_there_and_is_compared_as_in_inference(lively):
    model = lively(tiny_model())
    with torch.no_grad():
        expected = model(batches()[0]).logits
    runtime = ccnet_hf.optimize(model.train(), "eager")
    assert runtime.check(batches()) == 0 and model.training
    torch.testing.assert_close(runtime.logits(batches()[0]), expected, atol=1e-4, rtol=1e-4)


def test_the_wide_convolutions_are_winograd_s_and_blocks_one_call(lively):
    network = ccnet_hf.optimize(lively(tiny_model(**MODELS["wide"])), "eager").network
    assert sum(isinstance(layer, WinogradConv2d) for layer in network.modules()) >= 3
    assert any(isinstance(layer, FusedBottleneck) for layer in network.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", ["resnet", "wide", "mobile"])
def test_bfloat16_folds_first_and_mobile_backbones_stay_in_float32(name, lively, caplog):
    model = lively(tiny_model(**MODELS[name]))
    runtime = ccnet_hf.optimize(model, "eager", torch.bfloat16)
    assert_equal_logits(runtime, model, 0.1)
    dtypes = {
        part: {weight.dtype for weight in module.parameters()}
        for part, module in (("backbone", runtime.network.model.backbone), ("head", runtime.network.model.head))
    }
    assert dtypes["backbone"] == ({torch.float32} if name == "mobile" else {torch.bfloat16})
    assert dtypes["head"] == {torch.bfloat16} and runtime.logits(batches()[0]).dtype == torch.bfloat16


def test_bfloat16_loses_less_than_the_model_in_bfloat16(lively):
    model = lively(tiny_model(**MODELS["mobile"]))
    runtime = ccnet_hf.optimize(model, "eager", torch.bfloat16)
    (pixel_values, _) = batches()
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        plain = copy.deepcopy(model).bfloat16()(pixel_values=pixel_values).logits.float()
    error = (runtime.logits(pixel_values).float() - expected).abs().mean()
    assert error <= 0.5 * (plain - expected).abs().mean()


@pytest.mark.nightly
def test_compile_gives_the_model_s_logits(lively):
    torch.compiler.reset()
    model = lively(tiny_model(**MODELS["wide"]))
    assert_equal_logits(ccnet_hf.optimize(model, "compile"), model, 1e-4)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_programs_give_the_model_s_logits_of_any_size(backend, lively):
    for package in {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}[backend]:
        pytest.importorskip(package)
    model = lively(tiny_model())
    runtime = ccnet_hf.optimize(model, backend)
    assert runtime.backend == backend
    assert_equal_logits(runtime, model)


@pytest.mark.parametrize(("kind", "precisions"), [("wide", ["bf16"]), ("mobile", ["f32", "bf16"])])
def test_openvino_in_bfloat16_is_compiled_for_every_size_of_images(kind, precisions, lively, monkeypatch):
    """In float32 here, which every processor computes in: what is proven is the way to the logits."""
    pytest.importorskip("openvino")
    compiled = []
    model = lively(tiny_model(**MODELS[kind]))
    monkeypatch.setattr(programs, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(programs, "_MAX_SIZES", 1)
    compile_part = programs._compiled

    def compile_in_float32(part, precision):
        images = part.inputs[-1].get_partial_shape()
        compiled.append((tuple(side.get_length() for side in list(images)[2:]), precision))
        return compile_part(part, "f32")

    monkeypatch.setattr(programs, "_compiled", compile_in_float32)
    runtime = ccnet_hf.optimize(model, "openvino", torch.bfloat16)
    assert_equal_logits(runtime, model)
    first, second = (batch[:1] for batch in batches())
    assert torch.equal(runtime.logits(second), runtime.logits(second))
    runtime.logits(first)
    sizes = [tuple(size[2:]) for size in BATCHES]
    assert compiled == [(size, precision) for size in (*sizes, sizes[0]) for precision in precisions]


def test_openvino_in_bfloat16_is_right_at_every_size(lively):
    pytest.importorskip("openvino")
    if not machine.has_bfloat16(torch.device("cpu")):
        pytest.skip("needs a processor with instructions for bfloat16")
    model = lively(tiny_model())
    assert_equal_logits(ccnet_hf.optimize(model, "openvino", torch.bfloat16), model, 0.1)


_TWO_PROGRAMS = """
import os, signal
import torch
from ccnet_hf.deployment.programs import load_program, make_program
from ccnet_hf.inference.predictor_arguments import ExportedRuntime
from tiny_models import tiny_model

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
program = make_program(tiny_model().eval(), "openvino")
program.save_pretrained("exported")
first, second = load_program(program), load_program(program)
third = ExportedRuntime("exported", program.config)
second(torch.zeros(1, 3, 97, 129))
del first, second, third
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_openvino_s_programs_are_gone_is_handled(tmp_path):
    """In the order of their making: OpenVINO's cores, one of which each had, left a freed stack for signals behind."""
    pytest.importorskip("openvino")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(
        [sys.executable, "-c", _TWO_PROGRAMS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "handled\n"


def test_check_counts_labels_that_differ(lively, capsys):
    model = lively(tiny_model())
    runtime = ccnet_hf.optimize(model, "eager")
    assert runtime.check(batches()) == 0
    assert "0.0000%" in capsys.readouterr().out
    nn.init.constant_(runtime.network.classifier.bias, 0)
    runtime.network.classifier.bias[3] = 1e6  # everything is of class 3
    with torch.no_grad():
        labels = nn.functional.interpolate(model(batches()[0]).logits, BATCHES[0][2:], mode="bilinear").argmax(1)
    assert runtime.check(batches()[0]) == pytest.approx((labels != 3).float().mean().item())
    with pytest.raises(InputError, match="at least one image"):
        runtime.check([])


class Pretended(OptimizedRuntime):
    """A form that is there and takes a known time."""

    def _logits(self, pixel_values):
        raise AssertionError("nobody asked")


def pretend(monkeypatch, seconds, missing=()):
    made = {name: type(name, (Pretended,), {"backend": name}) for name in RUNTIMES}
    monkeypatch.setattr(optimize, "RUNTIMES", made)
    monkeypatch.setattr(optimize, "measure", lambda made, example: {name: seconds[name] for name in made})
    monkeypatch.setattr(optimize, "missing_packages", lambda name: [name] if name in missing else [])


@pytest.fixture
def said(caplog):
    """What the package's logger says."""
    logger = logging.getLogger("ccnet_hf")
    logger.addHandler(caplog.handler)
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.removeHandler(caplog.handler)


def test_auto_takes_the_fastest_of_those_installed(monkeypatch, said):
    seconds = {"eager": 0.3, "openvino": 0.1, "onnx": 0.2}
    pretend(monkeypatch, seconds)
    assert ccnet_hf.optimize(tiny_model(), example=batches()[0]).backend == "openvino"
    assert "measured on the example in ms: openvino 100, onnx 200, eager 300" in said()
    pretend(monkeypatch, seconds, missing=["openvino"])
    assert ccnet_hf.optimize(tiny_model(), example=batches()[0]).backend == "onnx"
    assert "pip install 'ccnet-hf[export]'" in said()


@pytest.mark.parametrize(
    ("name", "instructions", "dtype", "backend", "chosen"),
    [
        ("resnet", (), None, "eager", torch.float32),
        ("resnet", (), "auto", "eager", torch.float32),
        ("resnet", ("avx512_bf16",), "auto", "eager", torch.bfloat16),
        ("mobile", ("avx512_bf16",), "auto", "openvino", torch.bfloat16),
        ("mobile", ("avx512_bf16",), None, "eager", torch.float32),
        ("mobile", (), torch.bfloat16, "eager", torch.bfloat16),
        ("efficientnet", (), None, "openvino", torch.float32),
        ("efficientnet", (), torch.bfloat16, "eager", torch.bfloat16),
        ("resnet", ("amx_bf16",), "auto", "openvino", torch.bfloat16),
        ("resnet", ("amx_bf16",), None, "eager", torch.float32),
    ],
)
def test_auto_without_an_example_goes_by_the_machine(monkeypatch, name, instructions, dtype, backend, chosen):
    if name in ("mobile", "efficientnet"):
        pytest.importorskip("timm")
    pretend(monkeypatch, {})
    monkeypatch.setattr(machine, "_has_instructions", lambda *names: any(name in instructions for name in names))
    runtime = ccnet_hf.optimize(tiny_model(**MODELS[name]), dtype=dtype)
    assert (runtime.backend, runtime.dtype) == (backend, chosen)


def test_measuring_takes_all_in_turn():
    calls = []

    class Counting:
        def __init__(self, name):
            self.name = name

        def logits(self, pixel_values):
            calls.append(self.name)
            return pixel_values

    seconds = optimize.measure({"a": Counting("a"), "b": Counting("b")}, torch.zeros(1))
    assert calls == ["a", "b"] * 4 and seconds.keys() == {"a", "b"} and max(seconds.values()) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": nn.Linear(2, 2)},
            "takes a CCNetForSemanticSegmentation or .*, of images, not a Linear",
        ),
        ({"model": CCNetForVideoSegmentation(VIDEO)}, "of images, not a CCNetForVideoSegmentation"),
        ({"model": tiny_instance_model()}, "of images, not a CCNetForInstanceSegmentation"),
        ({"backend": "tensorrt"}, "backend must be one of auto, eager"),
        ({"dtype": torch.int8}, "dtype must be None"),
        ({"dtype": torch.float16}, "take torch.bfloat16"),
        ({"example": torch.zeros(3, 4, 4)}, "example must be a tensor"),
        ({"backend": "cuda_graphs"}, "needs a model on CUDA"),
        ({"backend": "onnx", "dtype": torch.bfloat16}, "ONNX Runtime computes in float32"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        ccnet_hf.optimize(**{"model": tiny_model(), **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("backend", "package"), [("openvino", "openvino"), ("onnx", "onnx")])
def test_a_missing_runtime_names_the_extra(backend, package, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"^{package}, which {backend} needs, .*ccnet-hf\[export\]"):
        ccnet_hf.optimize(tiny_model(), backend)


def test_bfloat16_in_openvino_needs_the_instructions(monkeypatch):
    monkeypatch.setattr(machine, "_has_instructions", lambda *names: False)
    with pytest.raises(InputError, match="OpenVINO computes in bfloat16 where the processor does"):
        ccnet_hf.optimize(tiny_model(), "openvino", torch.bfloat16)


@pytest.mark.parametrize("amx", [False, True])
def test_where_winograd_wins(monkeypatch, amx):
    monkeypatch.setattr(runtimes, "has_amx", lambda: amx)
    cpu = torch.device("cpu")
    assert runtimes.winograd_wins(cpu, torch.float32)
    assert runtimes.winograd_wins(cpu, torch.bfloat16) != amx
    assert not runtimes.winograd_wins(torch.device("cuda"), torch.float32)


def test_a_predictor_takes_it(lively):
    model = lively(tiny_model())
    processor = ccnet_hf.CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 72})
    image = (torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    expected = Predictor(model, processor).label_map(image)
    assert (
        Predictor(ccnet_hf.optimize(model, "eager"), processor).label_map(image) == expected
    ).float().mean() > 0.999
