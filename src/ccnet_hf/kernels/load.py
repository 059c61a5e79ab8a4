"""Choose what runs the operator on CUDA: the compiled library or PyTorch. The first CUDA call decides."""

import ctypes
import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from ccnet_hf.errors import InputError

from .fallback import keep_pytorch_form
from .libraries import choose_library, find_libraries, library_targets, library_toolkit, why_torch_is_too_old


logger = logging.get_logger(__name__)

_NAMESPACE = "ccnet_hf"
_OPERATORS = ("criss_cross_attention", "criss_cross_attention_residual", "criss_cross_attention_backward")
_MODE_VARIABLE = "CCNET_HF_KERNELS"
_MODES = ("auto", "cuda", "torch")
_HOW_TO_GET = "compile it once with `python -m ccnet_hf.kernels build`"

_lock = threading.RLock()
# The implementations that stand in until the first CUDA call.
_stand_ins: torch.library.Library | None = None
_loaded: Path | None = None
# Why the first CUDA call chose PyTorch.
_refused: str | None = None
# Kernels of the stand-ins that have gone.
_kept: list = []


@dataclass(frozen=True)
class KernelInfo:
    """
    What runs the operator on CUDA tensors.

    Args:
        path: `"cuda"` for the compiled library, `"torch"` for PyTorch.
        library: the compiled library's file, or `None`.
        targets: the code it holds, as nvcc names it (`sm_90`; `compute_90` is PTX).
        loaded: whether it is loaded already; the first call on CUDA tensors loads it.
        mode: the value of `CCNET_HF_KERNELS`.
        torch_version: version of PyTorch.
        reason: why it is not the compiled library, or `None`.
    """

    path: str
    library: Path | None
    targets: tuple[str, ...]
    loaded: bool
    mode: str
    torch_version: str
    reason: str | None


def attach() -> None:
    """Stand in for the operator on CUDA until its first call there, which chooses. Loads nothing; twice is once.

    Where PyTorch is too old for the compiled library there is nothing to choose.

    Raises:
        InputError: it is, and `CCNET_HF_KERNELS=cuda`.
    """
    global _stand_ins, _refused
    with _lock:
        if _stand_ins is not None or _loaded is not None:
            return
        _refused = None
        if reason := why_torch_is_too_old():
            if _mode() == "cuda":
                raise InputError(f"{_MODE_VARIABLE}=cuda, but criss-cross attention cannot be compiled: {reason}")
            return
        _stand_ins = torch.library.Library(_NAMESPACE, "IMPL")
        for name in _defined_operators():
            # Taken where somebody has loaded a library by hand.
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::{name}", "CUDA"):
                _stand_ins.impl(name, functools.partial(_choose_and_run, name), "CUDA")


def info() -> KernelInfo:
    """Say what runs the operator on CUDA tensors in this process, and if it is not the compiled library, why.

    Raises:
        InputError: `CCNET_HF_KERNELS` has a value that is not allowed.
    """
    library, reason = (_loaded, _refused) if _loaded or _refused else _find_library()
    return KernelInfo(
        path="cuda" if library else "torch",
        library=library,
        targets=tuple(library_targets(library)) if library else (),
        loaded=_loaded is not None,
        mode=_mode(),
        torch_version=torch.__version__,
        reason=reason,
    )


def launches() -> int:
    """Kernels that the compiled library has launched in this process; 0 where it is not loaded."""
    if _loaded is None:
        return 0
    count = ctypes.CDLL(str(_loaded)).ccnet_hf_launches
    count.restype = ctypes.c_int64
    return count()


def _defined_operators() -> list[str]:
    # A checkpoint's own copy of the operator may be older than this package, and may have been loaded first.
    return [name for name in _OPERATORS if hasattr(getattr(torch.ops, _NAMESPACE), name)]


def _mode() -> str:
    mode = os.environ.get(_MODE_VARIABLE) or "auto"
    if mode not in _MODES:
        raise InputError(f"{_MODE_VARIABLE} is one of {', '.join(_MODES)}, got {mode!r}")
    return mode


def _find_library() -> tuple[Path | None, str | None]:
    """The library for the GPUs of this process, or why there is none."""
    if _mode() == "torch":
        return None, f"{_MODE_VARIABLE}=torch"
    if reason := why_torch_is_too_old():
        return None, reason
    if torch.version.cuda is None:
        return None, f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} finds no CUDA device"
    capabilities = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    libraries = list(find_libraries())
    driver = _driver_version() if libraries else None  # asked by a name that only Linux knows, as the libraries are
    if driver and (library := choose_library(libraries, capabilities, driver)):
        return library, None
    wanted = ", ".join(map(_version, capabilities))
    if capabilities[0] < (8, 0):
        return None, f"it needs GPUs of compute capability 8.0 or newer, and here are {wanted}"
    if libraries:
        found = "; ".join(
            f"{' '.join(library_targets(library))} by CUDA {_version(library_toolkit(library))}"
            for library in libraries
        )
        return None, (
            f"the libraries found ({found}) do not run on compute capability {wanted} with a driver for CUDA "
            f"{_version(driver)}: {_HOW_TO_GET}"
        )
    return None, f"no compiled library was found: {_HOW_TO_GET}"


def _driver_version() -> tuple[int, int]:
    """The newest CUDA that the driver knows."""
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10  # 13010 is 13.1


def _version(numbers: tuple[int, int]) -> str:
    return "{}.{}".format(*numbers)


def _choose_and_run(name: str, *tensors: torch.Tensor):
    """Stand-in on CUDA: choose once, get out of the way, and call the operator again."""
    with _lock:
        if _stand_ins is not None:
            _choose()
    return getattr(getattr(torch.ops, _NAMESPACE), name)(*tensors)


def _choose() -> None:
    global _refused
    mode = _mode()
    library, reason = _find_library()
    _detach()
    if library is not None:
        try:
            _load(library)
        except OSError as error:
            library, reason = None, f"{library} cannot be loaded ({error})"
    if mode == "cuda" and library is None:
        attach()
        raise InputError(f"{_MODE_VARIABLE}=cuda, but criss-cross attention is not compiled for this GPU: {reason}")
    _refused = reason
    if mode == "auto" and library is None:
        logger.warning(f"Criss-cross attention runs in PyTorch instead of its faster compiled form: {reason}.")


def _detach() -> None:
    global _stand_ins
    # Another thread may be inside a stand-in: its kernel must outlive its registration.
    _kept.extend(torch.library.get_kernel(f"{_NAMESPACE}::{name}", "CUDA") for name in _defined_operators())
    _stand_ins._destroy()
    _stand_ins = None


def _load(library: Path) -> None:
    global _loaded
    keep_pytorch_form(_NAMESPACE, _defined_operators())
    torch.ops.load_library(str(library))
    _loaded = library
    logger.info(f"Criss-cross attention is compiled: {library}")
