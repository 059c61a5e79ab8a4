"""transformers' own exporters and PyTorch's make programs that give the model's logits, for any number and size of
images, and that `pipeline` runs."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model
from transformers import pipeline

from ccnet_hf import CCNetImageProcessor
from ccnet_hf.deployment.programs import float32_options, quiet


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
exporters = pytest.importorskip("transformers.exporters", reason="transformers has exporters from 5.24 on")

EXPORTERS = {
    "onnx": ("OnnxExporter", "OnnxConfig"),
    "openvino": ("OpenVINOExporter", "OpenVINOConfig"),
    "dynamo": ("DynamoExporter", "DynamoConfig"),
}
BATCHES = [(2, 3, 64, 96), (1, 3, 97, 65), (3, 3, 96, 160)]


def batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in BATCHES]


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.fixture(scope="module")
def model():
    return tiny_model(id2label={label: f"class {label}" for label in range(5)})


@pytest.fixture(scope="module", params=EXPORTERS)
def folder(request, model, tmp_path_factory):
    exporter, config = (getattr(exporters, name) for name in EXPORTERS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    with quiet():
        exported = exporter().export(model, {"pixel_values": batches()[0]}, config(dynamic=True))
    exported.save_pretrained(folder)
    return folder


def load(folder):
    is_pickled = (folder / "model.pt2").exists()
    # OpenVINO takes bfloat16 where the processor has it, unless told otherwise.
    options = float32_options("openvino") if (folder / "openvino_model.xml").exists() else {}
    return exporters.ExportedModel.from_pretrained(folder, device="cpu", trust_remote_code=is_pickled, **options)


def test_exported_programs_give_the_model_s_logits(folder, model):
    exported = load(folder)
    for pixel_values in batches():
        with torch.no_grad():
            assert_equal(exported(pixel_values=pixel_values).logits, model(pixel_values).logits)


def test_exported_programs_run_in_the_pipeline(folder, model):
    processor = CCNetImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    generator = np.random.RandomState(0)
    image = Image.fromarray(generator.randint(0, 256, (6, 8, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    segments = [
        pipeline("image-segmentation", model=network, image_processor=processor)(image)
        for network in (load(folder), model)
    ]
    found, expected = ({segment["label"]: np.asarray(segment["mask"]) for segment in each} for each in segments)
    assert found.keys() == expected.keys() and len(found) > 1
    assert all((found[label] == expected[label]).mean() > 0.999 for label in found)


def test_no_program_holds_an_operator_of_ours(folder):
    if (folder / "model.pt2").exists():
        program = torch.export.load(folder / "model.pt2")
        assert "ccnet_hf" not in str(program.graph)
    if (folder / "model.onnx").exists():
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}


def test_the_torchscript_exporter(model, tmp_path):
    """The exporter of before `torch.export`, whose files ONNX Runtime loads."""
    file = tmp_path / "model.onnx"
    axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    with quiet(), torch.no_grad():
        torch.onnx.export(
            Logits().eval(),
            (batches()[0],),
            str(file),
            dynamo=False,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    session = onnxruntime.InferenceSession(str(file))
    for pixel_values in batches():
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        with torch.no_grad():
            assert_equal(torch.from_numpy(logits), model(pixel_values).logits)


def test_torch_compile_keeps_the_operator(model):
    operators = []

    def backend(graph, example):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(batches()[0])
    assert sum("criss_cross_attention" in name for name in operators) == model.config.recurrence
