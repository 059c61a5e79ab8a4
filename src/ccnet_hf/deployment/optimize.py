"""One call from a model to its fastest form on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from transformers.utils import logging

from ccnet_hf.deployment.fusion import Rewritable
from ccnet_hf.deployment.machine import has_amx, has_bfloat16, missing_packages
from ccnet_hf.deployment.runtimes import RUNTIMES, OptimizedRuntime, check_model, has_large_phases, is_mobile
from ccnet_hf.errors import InputError


logger = logging.get_logger(__name__)

Backend = Literal["auto", "eager", "compile", "onnx", "openvino", "cuda_graphs"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROUNDS = 3  # of measuring; the fastest counts


def optimize(
    model: Rewritable,
    backend: Backend = "auto",
    dtype: torch.dtype | Literal["auto"] | None = None,
    example: torch.Tensor | None = None,
) -> OptimizedRuntime:
    """Make the form of a model that computes its logits fastest here.

    Every form starts from exact rewrites: batch norms folded, convolutions that read the same map merged, nothing left
    that only training needs; on processors, wide 3x3 convolutions by Winograd's method, with errors of 1e-5 of the
    activations in float32. `Predictor` and `predict_logits` take the result as they take a model.

    Args:
        model: a `CCNetForSemanticSegmentation` or `CCNetForHumanParsing`, with any backbone; is left as it is.
        backend: "eager" is PyTorch, "compile" `torch.compile` (minutes at the first call), "onnx" ONNX Runtime and
            "openvino" OpenVINO (on the CPU; a minute to make), "cuda_graphs" PyTorch on CUDA without Python between
            the kernels. "auto" measures what is installed if there is an `example`, and otherwise goes by what the
            machine has; one line says what it took.
        dtype: of the computation; `None` is float32, "auto" takes bfloat16 where the device multiplies it.
        example: (B, 3, H, W) network input of the size that matters.

    Returns:
        The runtime, with `config`, `logits(pixel_values)`, and `check(images)`, which compares labels with float32.

    Raises:
        InputError: another kind of model, an unknown backend or dtype, a package that is not installed, or what the
            machine does not have.
    """
    check_model(model)
    if backend not in get_args(Backend):
        raise InputError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if example is not None and not (isinstance(example, torch.Tensor) and example.dim() == 4):
        raise InputError("example must be a tensor (batch, channels, height, width)")
    chosen_dtype = _dtype(dtype, model.device)
    if backend != "auto":
        return RUNTIMES[backend](model, chosen_dtype)
    if example is None:
        runtime = RUNTIMES[backend_by_machine(model, chosen_dtype)](model, chosen_dtype)
        reason = "for this kind of processor" if model.device.type == "cpu" else "for this device"
    else:
        runtime, reason = _by_measuring(model, chosen_dtype, example)
    others = ["openvino"] if example is None or chosen_dtype != torch.float32 else ["openvino", "onnx"]
    hints = "".join(f"; {hint}" for hint in _hints(runtime, dtype, others))
    logger.warning(f"optimize took {runtime.backend} in {str(chosen_dtype).removeprefix('torch.')}, {reason}{hints}.")
    return runtime


def _dtype(dtype: torch.dtype | Literal["auto"] | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be None, 'auto', torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}")
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError("processors compute no faster in float16; take torch.bfloat16 or 'auto'")
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        logger.warning_once("This processor has no instructions for bfloat16: it is emulated, slower than float32.")
    return dtype


def backend_by_machine(model: Rewritable, dtype: torch.dtype) -> str:
    """What "auto" takes without an example to measure.

    On processors PyTorch: Winograd's method saves multiplications there that the other runtimes do; and where it
    cannot, as with depthwise convolutions, they are ahead by a few percent at best, which the half minute that a
    program takes to make seldom pays for. In bfloat16 OpenVINO where matrix tiles make the multiplications nearly
    free, so that the runtime counts that handles everything around them best, and for depthwise convolutions, which
    PyTorch leaves in float32. In float32 OpenVINO for large dilated depthwise convolutions, which PyTorch computes on
    subgrids that have to be copied together and apart.
    """
    device = model.device
    if device.type == "cuda":
        return "cuda_graphs"
    if device.type == "cpu" and not missing_packages("openvino"):
        if dtype == torch.bfloat16 and has_bfloat16(device) and (has_amx() or is_mobile(model)):
            return "openvino"
        if dtype == torch.float32 and has_large_phases(model):
            return "openvino"
    return "eager"


def _by_measuring(model: Rewritable, dtype: torch.dtype, example: torch.Tensor) -> tuple[OptimizedRuntime, str]:
    """The fastest of the forms that can be made in about a minute, and what was found."""
    names = ["eager"]
    if model.device.type == "cuda":
        names.append("cuda_graphs")
    elif model.device.type == "cpu":
        names += [name for name in ("openvino", "onnx") if not missing_packages(name)]
    runtimes = {}
    for name in names:
        try:
            runtimes[name] = RUNTIMES[name](model, dtype)
        except InputError:  # of a dtype that this one does not compute in
            if name == "eager":
                raise
    seconds = measure(runtimes, example)
    fastest = min(seconds, key=seconds.get)
    found = ", ".join(f"{name} {1e3 * seconds[name]:.0f}" for name in sorted(seconds, key=seconds.get))
    return runtimes[fastest], f"measured on the example in ms: {found}"


@torch.no_grad()
def measure(runtimes: Mapping[str, OptimizedRuntime], example: torch.Tensor) -> dict[str, float]:
    """The seconds that each runtime takes for an example at its best, taken in turn so that what else the machine does
    meets all alike."""
    best = dict.fromkeys(runtimes, float("inf"))
    for counted in [False] + [True] * _ROUNDS:
        for name, runtime in runtimes.items():
            start = time.perf_counter()
            logits = runtime.logits(example)
            if logits.device.type != "cpu":
                torch.accelerator.synchronize(logits.device)
            if counted:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _hints(runtime: OptimizedRuntime, dtype: torch.dtype | Literal["auto"] | None, others: list[str]) -> list[str]:
    """What would be faster, or might be; `others` would have been considered on a CPU if they were installed."""
    hints = []
    if dtype is None and has_bfloat16(runtime.device):
        hints.append("in bfloat16 it would be faster (dtype='auto'; of a command --dtype bfloat16)")
    if runtime.device.type == "cpu":
        if missing := [package for name in others for package in missing_packages(name)]:
            hints.append(f"without {missing[0]} (pip install 'ccnet-hf[export]') other runtimes were not considered")
        hints.append("int8 is faster still (ccnet-hf export --int8)")
    if runtime.backend != "compile":
        hints.append("backend='compile' may be, after minutes of compiling")
    return hints
