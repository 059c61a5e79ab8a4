"""A model as a program for another runtime, made by transformers' own exporters."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import transformers.utils.logging
from torch import nn
from transformers import PreTrainedConfig

from ccnet_hf.deployment.machine import require_packages
from ccnet_hf.errors import InputError, reading
from ccnet_hf.limits import read_settings


if TYPE_CHECKING:
    import openvino
    from transformers.exporters.base import ExportedModel


Format = Literal["onnx", "openvino", "torch"]
Network = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) -> (B, num_labels, h, w)

MANIFEST = "export.json"  # beside every program that transformers' exporters write
_LARGEST_MANIFEST = 16 * 2**20  # bytes

# Two images, because a single one would be taken for the only number there is; odd sides, for the same reason.
_EXAMPLE_SHAPE = (2, 3, 97, 129)


def make_program(model: nn.Module, program_format: Format, quantizer: Any = None) -> ExportedModel:
    """Export a model for images of any number and size.

    Args:
        model: on the CPU, in eval mode; is left as it is.
        program_format: "torch" is what `torch.export` saves, a `.pt2`.
        quantizer: of `transformers.exporters`, or `None`.

    Returns:
        What transformers' exporter returns; it runs, and `save_pretrained` writes it.

    Raises:
        InputError: no such format, or one whose packages are not installed.
    """
    if program_format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, got {program_format!r}")
    require_packages(program_format)
    from transformers import exporters

    exporter, config = {
        "onnx": (exporters.OnnxExporter, exporters.OnnxConfig),
        "openvino": (exporters.OpenVINOExporter, exporters.OpenVINOConfig),
        "torch": (exporters.DynamoExporter, exporters.DynamoConfig),
    }[program_format]
    free = torch.export.Dim.AUTO
    # Noise: an image of one value would leave a quantizer without an example nothing to measure.
    example = torch.randn(_EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    with quiet():
        return exporter().export(
            model,
            {"pixel_values": example},
            config(dynamic_shapes={"pixel_values": {0: free, 2: free, 3: free}}, quantizer=quantizer),
        )


def load_program(program: ExportedModel, size: tuple[int, int] | None = None, **options: Any) -> Network:
    """Load a program on the CPU with as many threads as PyTorch has.

    Args:
        program: for images of any size.
        size: height and width of the images, or `None` for any; OpenVINO only.
        options: OpenVINO's properties.

    Returns:
        A function from images (B, 3, height, width), float32 and any number of them, to logits.
    """
    if program.export_format == "openvino":
        return _compile(program.program, size, options)
    program.to("cpu", **_runner_options(program.export_format, options))
    return lambda pixel_values: program(pixel_values=pixel_values.contiguous()).logits


@functools.cache
def _openvino_core() -> openvino.Core:
    """The one core of this process.

    A core of OpenVINO 2026.4 lends its thread a stack for signals. Where two of them end in the order of their making,
    the thread is left with the stack of the first, which is freed, and the next signal (Ctrl-C, SIGTERM) kills the
    process.
    """
    import openvino

    return openvino.Core()


def _compile(model: openvino.Model, size: tuple[int, int] | None, options: dict[str, Any]) -> Network:
    if size is not None:
        model = model.clone()
        model.reshape([-1, 3, *size])
    options = {"PERFORMANCE_HINT": "LATENCY", **_runner_options("openvino", options)["config"]}
    compiled = _openvino_core().compile_model(model, "CPU", options)
    # The result lies in memory that the next call writes over.
    return lambda pixel_values: torch.from_numpy(compiled([pixel_values.contiguous().numpy()])["logits"].copy())


def _runner_options(export_format: str, options: dict[str, Any]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    if export_format == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        return {"session_options": session}
    return {"config": {"INFERENCE_NUM_THREADS": threads, **options}} if export_format == "openvino" else {}


def float32_options(export_format: str) -> dict[str, Any]:
    """Options of `ExportedModel.from_pretrained` for a program in float32, with as many threads as PyTorch has. Left
    alone, OpenVINO takes bfloat16 where the processor has it, and is wrong at some sizes then."""
    return _runner_options(export_format, {"INFERENCE_PRECISION_HINT": "f32"})


def is_exported(folder: str | os.PathLike) -> bool:
    """Whether a local folder holds an exported program rather than a checkpoint."""
    return (Path(folder) / MANIFEST).is_file()


class ExportedRuntime:
    """An exported folder as what a `Predictor` asks for, on the CPU.

    Args:
        folder: what `save_pretrained` of transformers' `ExportedModel` wrote, in ONNX or for OpenVINO.
        config: of the model.

    Raises:
        InputError: it cannot be read, its runtime is not installed, or it is a `.pt2`, whose loading runs code.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, folder: str | os.PathLike, config: PreTrainedConfig):
        with reading(Path(folder) / MANIFEST):
            manifest = json.loads(read_settings(Path(folder) / MANIFEST, _LARGEST_MANIFEST))
            kind = manifest["export_format"]
        if kind not in ("onnx", "openvino"):
            raise InputError(f"{folder} is of format {kind}, whose loading may run code; onnx and openvino do not")
        require_packages(kind)
        with reading(folder), quiet():
            self._network = _load_folder(Path(folder), kind, manifest)
        self.config = config

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised images -> (B, num_labels, h, w) logits, on the CPU."""
        return self._network(pixel_values.to(self.device, self.dtype))


def _load_folder(folder: Path, kind: str, manifest: dict[str, Any]) -> Network:
    from transformers.exporters import ExportedModel

    if kind == "openvino":
        (component,) = manifest["components"].values()
        model = _openvino_core().read_model(folder / Path(component["file"]).name)
        return _compile(model, None, {"INFERENCE_PRECISION_HINT": "f32"})
    program = ExportedModel.from_pretrained(folder, device="cpu", **float32_options(kind))
    return lambda pixel_values: program(pixel_values=pixel_values.contiguous()).logits


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from telling about versions and stages, which says nothing to whoever asked for a program."""
    verbosity = transformers.utils.logging.get_verbosity()
    disabled = logging.root.manager.disable
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers.utils.logging.set_verbosity(verbosity)
