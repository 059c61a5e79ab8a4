"""What the machine and the installation have that decides how a network runs fastest."""

import functools
from importlib.util import find_spec

import torch
from packaging.version import Version

from ccnet_hf.errors import InputError


# By runtime: the packages that make a program for it and run that; all of the extra `export`.
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_OLDEST_TORCH = Version("2.11")  # for transformers' exporters


@functools.cache
def _has_instructions(*names: str) -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in names)


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16, which no saving of multiplications comes near."""
    return _has_instructions("amx_bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself; a processor without the instructions emulates it, slowly."""
    if device.type == "cpu":
        return _has_instructions("amx_bf16", "avx512_bf16", "bf16")
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def missing_packages(runtime: str) -> list[str]:
    """The packages that a runtime, "onnx" or "openvino", needs and that are not installed."""
    return [name for name in _PACKAGES.get(runtime, ()) if find_spec(name) is None]


def require_packages(runtime: str) -> None:
    """Raise InputError, with the extra that brings it, where what makes or runs a program is not installed."""
    if missing := missing_packages(runtime):
        raise InputError(f"{missing[0]}, which {runtime} needs, is not installed: pip install 'ccnet-hf[export]'")
    if find_spec("transformers.exporters") is None:
        raise InputError("the exporters are part of transformers 5.24: pip install 'ccnet-hf[export]'")
    if Version(torch.__version__).release < _OLDEST_TORCH.release:
        raise InputError(f"the exporters need PyTorch {_OLDEST_TORCH} or newer, and this is {torch.__version__}")
