"""Reads the state dict of a foreign `.pth` file without running code from it."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from ccnet_hf.errors import InputError


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
# What mmengine's trainings leave beside the weights: curves of the log, in NumPy's arrays.
_IGNORED_CLASSES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.ndarray",
    "numpy.dtype",
    *(
        f"{module}.multiarray.{name}"
        for module in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ),
)


class _Ignored:
    """Stands for an object of those classes: takes what it is given and does nothing."""

    def __new__(cls, *arguments):
        return super().__new__(cls)

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


def read_state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a `.pth` file, wrapped or bare, without the prefix of `DistributedDataParallel`.

    Raises:
        InputError: the file is damaged, is no checkpoint, does not match the hash in its name, or its pickle asks for
            anything but tensors, plain containers and mmengine's log, which is left out. No code of the file is run.
        OSError: the file cannot be opened.
    """
    check_hash(checkpoint, checkpoint.name)
    with checkpoint.open("rb") as file:
        try:
            with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED_CLASSES]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise any
            raise InputError(f"{checkpoint} was refused: {_reason(error)}") from error
    state_dict = content
    if isinstance(content, dict):  # mmsegmentation wraps it as "state_dict", the authors' loader knows "model" too
        state_dict = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(state_dict, dict) or not state_dict:
        raise InputError(f"{checkpoint} holds no state dict")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_plain_tensor(value):
            raise InputError(f"{checkpoint} holds no state dict: entry {key!r} is no plain tensor")
    bare = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if len(bare) < len(state_dict):
        raise InputError(f"{checkpoint} holds entries that differ in nothing but a leading 'module.'")
    return bare


def check_hash(file: Path, name: str) -> None:
    """Raise `InputError` if `name` ends with eight hexadecimal digits that `file`'s SHA-256 does not start with."""
    stated = re.search(r"-([0-9a-f]{8})\.pth$", name)
    if stated is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(stated[1]):
        raise InputError(
            f"{file} is not the file its name promises: its SHA-256 starts with {digest[:8]}, not {stated[1]}; "
            "rename it if that is no hash"
        )


def _reason(error: Exception) -> str:
    """Why `torch.load(weights_only=True)` failed, in one clause."""
    forbidden = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
    if forbidden:
        return f"its pickle asks for {forbidden[1]}, and only tensors and plain containers are accepted"
    return f"it is damaged or no PyTorch checkpoint ({type(error).__name__})"


def _is_plain_tensor(value: Any) -> bool:
    """Whether `value` holds numbers, all of them: not sparse, quantised, complex or without storage."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in _DTYPES
    )
