"""`ccnet-hf export`: a folder that other runtimes run as the checkpoint, or one line and no folder."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import (
    tiny_backbone_config,
    tiny_instance_model,
    tiny_model,
    tiny_parsing_config,
    tiny_parsing_model,
)
from transformers import AutoConfig, AutoImageProcessor

from ccnet_hf import (
    CCNetForSemanticSegmentation,
    CCNetForVideoSegmentation,
    CCNetImageProcessor,
    CCNetInstanceImageProcessor,
    CCNetVideoConfig,
    CCNetVideoProcessor,
    InputError,
)
from ccnet_hf.cli import main
from ccnet_hf.deployment.machine import has_bfloat16
from ccnet_hf.exporting import export as export_module
from ccnet_hf.exporting import javascript
from ccnet_hf.exporting.calibration import Pictures


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(num_labels=3).save_pretrained(folder)
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder but for six pictures in `pictures`."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    generator = np.random.RandomState(0)
    for number in range(6):
        noise = Image.fromarray(generator.randint(0, 256, (6, 8, 3), np.uint8))
        noise.resize((90 + number, 60), Image.Resampling.BICUBIC).save(f"pictures/{number}.png")
    return tmp_path


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


def labels(model: str, image: str, output: str, *options: str) -> np.ndarray:
    assert main(["segment", image, "--model_name_or_path", model, "--output_dir", output, *options]) == 0
    return np.asarray(Image.open(f"{output}/{Path(image).stem}_labels.png"))


@pytest.mark.parametrize(("program_format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_folder_segments_as_its_checkpoint(checkpoint, here, program_format, package, capsys):
    needs(package, "onnxscript")
    assert main(["export", checkpoint, "--format", program_format, "--output", "exported"]) == 0
    assert "its logits are those of the checkpoint within" in capsys.readouterr().out
    found = labels("exported", "pictures/0.png", "a")
    assert (found == labels(checkpoint, "pictures/0.png", "b", "--device", "cpu")).mean() > 0.999
    assert "ExportedModel.from_pretrained" in Path("exported/README.md").read_text()
    words = ["segment", "pictures/0.png", "--model_name_or_path", "exported", "--output_dir", "c"]
    assert main([*words, "--runtime", "eager"]) == 1
    assert "exported is exported: its runtime and device are set" in capsys.readouterr().err
    assert main([*words, "--dtype", "float16"]) == 1
    assert "not in float16" in capsys.readouterr().err


def test_openvino_computes_in_bfloat16_where_the_processor_does(checkpoint, here, capsys):
    needs("openvino")
    assert main(["export", checkpoint, "--format", "openvino", "--output", "exported"]) == 0
    if has_bfloat16(torch.device("cpu")):
        found = labels("exported", "pictures/0.png", "a", "--dtype", "bfloat16")
        assert (found == labels("exported", "pictures/0.png", "b")).mean() > 0.9
    else:
        words = ["--model_name_or_path", "exported", "--output_dir", "a", "--dtype", "bfloat16"]
        assert main(["segment", "pictures/0.png", *words]) == 1
        assert "this one does not" in capsys.readouterr().err


def test_a_pt2_runs_where_it_is_trusted(checkpoint, here, capsys):
    exporters = pytest.importorskip("transformers.exporters")
    pytest.importorskip("torch", minversion="2.11", reason="the exporters need PyTorch 2.11")
    assert main(["export", checkpoint, "--format", "torch", "--output", "exported"]) == 0
    program = exporters.ExportedModel.from_pretrained("exported", device="cpu", trust_remote_code=True)
    model = CCNetForSemanticSegmentation.from_pretrained(checkpoint).eval()
    pixel_values = torch.randn(1, 3, 80, 72, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            program(pixel_values=pixel_values).logits, model(pixel_values).logits, atol=1e-4, rtol=1e-4
        )
    assert main(["segment", "pictures/0.png", "--model_name_or_path", "exported", "--output_dir", "out"]) == 1
    assert "whose loading may run code" in capsys.readouterr().err


def test_weights_that_overflow_are_one_line(here, capsys):
    needs("onnxruntime", "onnxscript")
    model = tiny_model(num_labels=3)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    model.save_pretrained("model")
    CCNetImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained("model")
    assert main(["export", "model", "--output", "exported"]) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: the checkpoint's logits are not finite: its weights are damaged, or overflow")
    assert not Path("exported").exists()


KILLED = """
import os, signal, sys
from ccnet_hf.cli import main
from ccnet_hf.exporting import export

class Program:  # making one takes most of the time
    def save_pretrained(self, folder):
        (folder / "model.onnx").write_bytes(b"program")

export.make_program = lambda *arguments: Program()
export._verify = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_a_kill_leaves_no_folder(checkpoint, here):
    """Not even where all that is missing is the comparison with the checkpoint."""
    needs("onnxruntime", "onnxscript")
    words = [sys.executable, "-c", KILLED, "export", checkpoint, "--output", "exported"]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
    assert not Path("exported").exists() and len(list(here.glob(".exported.*/model.onnx"))) == 1
    assert all(path.name.startswith(".exported.") for path in here.iterdir() if path.name != "pictures")


@pytest.mark.parametrize(("program_format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_int8_is_smaller_and_nearly_the_same(checkpoint, here, program_format, package, capsys):
    needs(package, "nncf", "onnxscript")
    words = ["export", checkpoint, "--format", program_format, "--int8", "--calibration", "pictures"]
    assert main([*words, "--output", "exported"]) == 0
    assert "of the labels of calibration pictures are as in float32" in capsys.readouterr().out
    if program_format == "onnx":
        import onnx

        kinds = [node.op_type for node in onnx.load("exported/model.onnx", load_external_data=False).graph.node]
        assert "QuantizeLinear" in kinds and "DequantizeLinear" in kinds
    else:
        assert "FakeQuantize" in Path("exported/openvino_model.xml").read_text()
    found = labels("exported", "pictures/0.png", "a")
    assert (found == labels(checkpoint, "pictures/0.png", "b", "--device", "cpu")).mean() > 0.8


def test_javascript_is_laid_out_as_a_segformer(checkpoint, here):
    needs("onnxruntime", "onnxscript")
    assert main(["export", checkpoint, "--javascript", "--output", "exported"]) == 0
    files = sorted(str(path.relative_to("exported")) for path in Path("exported").rglob("*") if path.is_file())
    assert files == ["README.md", "config.json", "onnx/model.onnx", "preprocessor_config.json"]
    config = AutoConfig.from_pretrained("exported")
    assert config.model_type == "segformer" and config.num_labels == 3
    processor = AutoImageProcessor.from_pretrained("exported", use_fast=False)
    original = CCNetImageProcessor.from_pretrained(checkpoint)
    assert list(processor.image_mean) == list(original.image_mean)
    assert json.loads(Path("exported/preprocessor_config.json").read_text())["size"] == {
        "shortest_edge": 48,
        "longest_edge": 96,
    }
    assert 'dtype: "fp32"' in Path("exported/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--int8"], 2, "only 52 % of the labels"),
        (["--calibration", "pictures"], 2, "--calibration is for --int8"),
        (["--format", "openvino", "--javascript"], 2, "--javascript needs --format onnx"),
        (["--format", "torch", "--int8", "--calibration", "pictures"], 2, "--int8 is for --format onnx and openvino"),
        (["--int8", "--calibration", "none"], 1, "no such file or folder: none"),
        (["--int8", "--calibration", "pictures", "--calibration_images", "0"], 1, "--calibration_images"),
        (["--output", "pictures"], 1, "pictures exists; name a new folder"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line_and_no_folder(checkpoint, here, options, status, message, capsys):
    needs("onnxruntime", "onnxscript")
    try:
        found = main(["export", checkpoint, "--output", "exported", *options])
    except SystemExit as exit_:
        found = exit_.code
    error = capsys.readouterr().err
    assert (found, error.count("\n")) == (status, 1) and message in error
    assert not Path("exported").exists()


def video_folder(folder: Path) -> None:
    config = CCNetVideoConfig(backbone_config=tiny_backbone_config(), hidden_size=32, auxiliary_channels=16)
    CCNetForVideoSegmentation(config).save_pretrained(folder)
    CCNetVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)


def instance_folder(folder: Path) -> None:
    tiny_instance_model().save_pretrained(folder)
    CCNetInstanceImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(video_folder, "CCNetForVideoSegmentation"), (instance_folder, "CCNetForInstanceSegmentation")],
    ids=["video", "instances"],
)
def test_models_of_video_and_instances_are_refused_in_one_line(make, kind, here, capsys):
    needs("onnxruntime", "onnxscript")
    make(Path("other"))
    assert main(["export", "other", "--output", "exported"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(f"of images, not a {kind}\n")
    assert not Path("exported").exists()


@pytest.mark.parametrize(
    ("program_format", "package", "context_module"),
    [
        ("onnx", "onnxruntime", "pyramid"),
        pytest.param("openvino", "openvino", "rcca", marks=pytest.mark.nightly),
    ],
)
def test_a_human_parser_segments_as_its_checkpoint(here, program_format, package, context_module):
    needs(package, "onnxscript")
    tiny_parsing_model(context_module=context_module).save_pretrained("parser")
    CCNetImageProcessor(size={"height": 65, "width": 65}, do_letterbox=True).save_pretrained("parser")
    assert main(["export", "parser", "--format", program_format, "--output", "exported"]) == 0
    found = labels("exported", "pictures/0.png", "a")
    assert (found == labels("parser", "pictures/0.png", "b", "--device", "cpu")).mean() > 0.999


def test_transformers_js_has_no_letterbox(here, capsys):
    needs("onnxruntime", "onnxscript")
    processor = CCNetImageProcessor(size={"height": 65, "width": 65}, do_letterbox=True)
    with pytest.raises(InputError, match="no letterbox"):
        javascript.write(None, tiny_parsing_config(), processor, Path("folder"), int8=False)


def test_a_missing_runtime_names_the_extra(checkpoint, here, monkeypatch, capsys):
    monkeypatch.setattr("ccnet_hf.deployment.machine.find_spec", lambda name: None)
    assert main(["export", checkpoint, "--format", "openvino", "--output", "exported"]) == 1
    assert "pip install 'ccnet-hf[export]'" in capsys.readouterr().err


def test_an_older_pytorch_cannot_export(checkpoint, here, monkeypatch, capsys):
    pytest.importorskip("transformers.exporters")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    assert main(["export", checkpoint, "--format", "torch", "--output", "exported"]) == 1
    assert "the exporters need PyTorch 2.11 or newer, and this is 2.10.0" in capsys.readouterr().err


def test_a_program_that_computes_something_else_gets_no_name(checkpoint, here, monkeypatch):
    pytest.importorskip("transformers.exporters")
    pytest.importorskip("torch", minversion="2.11", reason="the exporters need PyTorch 2.11")
    monkeypatch.setattr(export_module, "run_folder", lambda *_: lambda pixel_values: torch.zeros(1))
    with pytest.raises(RuntimeError, match="gives logits"):
        main(["export", checkpoint, "--format", "torch", "--output", "exported"])
    assert [path.name for path in here.iterdir() if not path.name.startswith(".")] == ["pictures"]


def test_pictures_are_taken_evenly_and_read_anew(checkpoint, here):
    paths = sorted(Path("pictures").iterdir())
    pictures = Pictures(paths, CCNetImageProcessor.from_pretrained(checkpoint), 3)
    assert len(pictures) == 3 and pictures.paths == paths[::2]
    first, second = (torch.cat([inputs["pixel_values"].flatten() for inputs in pictures]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(Pictures(paths, pictures.image_processor, 100)) == 6
