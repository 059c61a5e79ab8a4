"""A model as a program for another runtime, made by transformers' own exporters."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import transformers.utils.logging
from torch import nn
from transformers import PreTrainedConfig

from ccnet_hf.deployment.bfloat16 import cut_after_large_maps
from ccnet_hf.deployment.machine import has_bfloat16, require_packages
from ccnet_hf.errors import InputError, reading
from ccnet_hf.limits import read_settings


if TYPE_CHECKING:
    import numpy as np
    import openvino
    from transformers.exporters.base import ExportedModel


Format = Literal["onnx", "openvino", "torch"]
Network = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) -> (B, num_labels, h, w)

MANIFEST = "export.json"  # beside every program that transformers' exporters write
_LARGEST_MANIFEST = 16 * 2**20  # bytes
_MAX_SIZES = 4  # of images, for which a program is kept compiled; each keeps weights of its own

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


def check_dtype(program_format: str, dtype: torch.dtype) -> None:
    """Raise InputError for a dtype that a program's runtime does not compute in on this processor."""
    name = str(dtype).removeprefix("torch.")
    if program_format == "onnx" and dtype != torch.float32:
        raise InputError(f"ONNX Runtime computes in float32 on processors, not in {name}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"OpenVINO computes in float32 or bfloat16 on processors, not in {name}")
    if dtype == torch.bfloat16 and not has_bfloat16(torch.device("cpu")):
        raise InputError("OpenVINO computes in bfloat16 where the processor does; this one does not")


def load_program(program: ExportedModel, dtype: torch.dtype = torch.float32) -> Network:
    """Load a program on the CPU with as many threads as PyTorch has.

    Args:
        program: for ONNX Runtime or OpenVINO, and for images of any size.
        dtype: computed in, as far as it is not int8.

    Returns:
        A function from images (B, 3, H, W), float32 and any number of them, to logits.

    Raises:
        InputError: the runtime does not compute in this dtype here.
    """
    check_dtype(program.export_format, dtype)
    if program.export_format == "openvino":
        return OpenVINONetwork(program.program, dtype)
    program.to("cpu", **_runner_options(program.export_format))
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


class OpenVINONetwork:
    """A network in OpenVINO on the CPU: images (B, 3, H, W), float32, to logits; in bfloat16 compiled once for every
    size of images, and the first layers of MobileNets and their kind in float32 still.

    A program for images of any size goes wrong in bfloat16 with OpenVINO 2026.4: it returns the logits of an earlier
    image, none, or ends the process.

    Args:
        model: for images of any number and size.
        dtype: `torch.float32` or `torch.bfloat16`.
    """

    def __init__(self, model: openvino.Model, dtype: torch.dtype):
        self.model = model
        self.dtype = dtype
        # By height and width; in float32 the only one is for images of any size.
        self._compiled: OrderedDict[tuple[int, int] | None, Callable[[np.ndarray], np.ndarray]] = OrderedDict()
        if dtype == torch.float32:
            self._compiled[None] = self._compile(None)

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = None if self.dtype == torch.float32 else tuple(pixel_values.shape[2:])
        if size not in self._compiled:
            if len(self._compiled) == _MAX_SIZES:
                self._compiled.popitem(last=False)
            self._compiled[size] = self._compile(size)
        self._compiled.move_to_end(size)
        logits = self._compiled[size](pixel_values.contiguous().numpy())
        return torch.from_numpy(logits.copy())  # they lie in memory that the next call writes over

    def _compile(self, size: tuple[int, int] | None) -> Callable[[np.ndarray], np.ndarray]:
        if size is None:
            return _compiled(self.model, "f32")
        model = self.model.clone()
        model.reshape([-1, 3, *size])
        parts = cut_after_large_maps(model)
        if parts is None:
            return _compiled(model, "bf16")
        before, after = _compiled(parts[0], "f32"), _compiled(parts[1], "bf16")
        return lambda images: after(before(images), images)


def _compiled(model: openvino.Model, precision: str) -> Callable[..., np.ndarray]:
    """A model of one output as a function of its inputs; the result lies in memory that the next call writes over."""
    options = _runner_options("openvino", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision})
    compiled = _openvino_core().compile_model(model, "CPU", options["config"])
    return lambda *inputs: compiled(list(inputs))[0]


def _runner_options(export_format: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    threads = torch.get_num_threads()
    if export_format == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        return {"session_options": session}
    return {"config": {"INFERENCE_NUM_THREADS": threads, **(options or {})}} if export_format == "openvino" else {}


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
        dtype: computed in, as far as it is not int8: `torch.float32`, or of OpenVINO `torch.bfloat16`.

    Raises:
        InputError: it cannot be read, its runtime is not installed or computes in another dtype, or it is a `.pt2`,
            whose loading runs code.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike, config: PreTrainedConfig, dtype: torch.dtype = torch.float32):
        with reading(Path(folder) / MANIFEST):
            manifest = json.loads(read_settings(Path(folder) / MANIFEST, _LARGEST_MANIFEST))
            kind = manifest["export_format"]
        if kind not in ("onnx", "openvino"):
            raise InputError(f"{folder} is of format {kind}, whose loading may run code; onnx and openvino do not")
        require_packages(kind)
        check_dtype(kind, dtype)
        with reading(folder), quiet():
            self._network = _load_folder(Path(folder), kind, manifest, dtype)
        self.config = config
        self.dtype = dtype

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised images -> (B, num_labels, h, w) logits, on the CPU."""
        return self._network(pixel_values.to(self.device, torch.float32))


def _load_folder(folder: Path, kind: str, manifest: dict[str, Any], dtype: torch.dtype) -> Network:
    if kind == "openvino":
        (component,) = manifest["components"].values()
        return OpenVINONetwork(_openvino_core().read_model(folder / Path(component["file"]).name), dtype)
    from transformers.exporters import ExportedModel

    program = ExportedModel.from_pretrained(folder, device="cpu", **_runner_options(kind))
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
