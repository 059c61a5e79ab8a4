"""Reads the state dict of a foreign file, PyTorch's or Paddle's, without running code from it."""

import hashlib
import io
import pickletools
import re
import reprlib
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ccnet_hf.errors import InputError, describe
from ccnet_hf.untrusted_checkpoints.paddle import read_paddle_arrays


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
_LONGEST_KEY = 200  # characters of one that is told
_ACCEPTED = "and only tensors and plain containers are accepted"
_PICKLES_OF_THE_OLD_FORMAT = 5  # magic number, version, sizes of types, content, names of storages

PADDLE_SUFFIX = ".pdparams"


class _Ignored:
    """Stands for an object of those classes: takes what it is given and does nothing."""

    def __new__(cls, *arguments):
        return super().__new__(cls)

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        pass


def read_state_dict(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a `.pth` file, wrapped or bare, without the prefix of `DistributedDataParallel`, or that
    of a `.pdparams` file under Paddle's names.

    Raises:
        InputError: the file is damaged, is no checkpoint, claims more numbers than it holds, does not match the hash
            in its name, or its pickle asks for anything but tensors, plain containers and mmengine's log, which is
            left out, and of a `.pdparams` file anything but arrays. No code of the file is run.
        OSError: the file cannot be opened.
    """
    if not checkpoint.is_file():
        raise InputError(f"no such file: {checkpoint}")
    check_hash(checkpoint, checkpoint.name)
    is_paddle = checkpoint.suffix == PADDLE_SUFFIX
    with checkpoint.open("rb") as file:
        try:
            content = _paddle_tensors(file) if is_paddle else _pytorch_content(file)
        except InputError as error:
            raise InputError(f"{checkpoint} was refused: {error}") from error
        except Exception as error:  # a damaged file can raise any
            reason = _reason(error, "file of Paddle's parameters" if is_paddle else "PyTorch checkpoint")
            raise InputError(f"{checkpoint} was refused: {reason}") from error
    state_dict = content
    if isinstance(content, dict):  # mmsegmentation wraps it as "state_dict", the authors' loader knows "model" too
        state_dict = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(state_dict, dict) or not state_dict:
        raise InputError(f"{checkpoint} holds no state dict")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_plain_tensor(value):
            dtype = f", but of dtype {value.dtype}" if isinstance(value, torch.Tensor) else ""
            raise InputError(f"{checkpoint} holds no state dict: entry {_shown(key)} is no plain tensor{dtype}")
    _check_storages(checkpoint, state_dict)
    bare = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if len(bare) < len(state_dict):
        raise InputError(f"{checkpoint} holds entries that differ in nothing but a leading 'module.'")
    return bare


def _pytorch_content(file: BinaryIO) -> Any:
    _check_claims(file)
    with (
        torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED_CLASSES]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about what is refused
        return torch.load(file, map_location="cpu", weights_only=True)


def _paddle_tensors(file: BinaryIO) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in read_paddle_arrays(file).items()}


def _stated_hash(name: str) -> re.Match[str] | None:
    return re.search(r"-([0-9a-f]{8})\.pth$", name)


def has_hash(name: str) -> bool:
    """Whether a file's name ends with eight hexadecimal digits of its SHA-256, as those of the zoo do."""
    return _stated_hash(name) is not None


def check_hash(file: Path, name: str) -> None:
    """Raise `InputError` if `name` ends with eight hexadecimal digits that `file`'s SHA-256 does not start with."""
    stated = _stated_hash(name)
    if stated is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(stated[1]):
        raise InputError(
            f"{file} is not the file its name promises: its SHA-256 starts with {digest[:8]}, not {stated[1]}; "
            "rename it if that is no hash"
        )


def _check_claims(file: BinaryIO) -> None:
    """Refuse what would fill all memory before anything could be said about it: a compressed file, as `torch.save`
    makes none, and arrays of zeros of any length, the one thing that `torch.load` makes out of a mere number.

    Raises:
        InputError: as above.
        Exception: the file is damaged.
    """
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            length = file.seek(0, io.SEEK_END)
            if claimed > length:
                raise InputError(f"its {length:,} bytes unpack to {claimed:,}, and checkpoints are not compressed")
            for member in archive.infolist():
                if member.filename.endswith("/data.pkl"):
                    _check_pickle(io.BytesIO(archive.read(member)))
    else:
        file.seek(0)
        for _ in range(_PICKLES_OF_THE_OLD_FORMAT):
            _check_pickle(file)
    file.seek(0)


def _check_pickle(file: BinaryIO) -> None:
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL" and argument.endswith(" bytearray"):
            raise InputError(f"its pickle asks for bytearray, {_ACCEPTED}")


def _check_storages(checkpoint: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Raise `InputError` if the tensors have more memory than the file has bytes: they are not from the file."""
    storages = [tensor.untyped_storage() for tensor in state_dict.values()]
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if claimed > checkpoint.stat().st_size:
        raise InputError(f"{checkpoint} was refused: its tensors claim {claimed:,} bytes, more than it has")


def _reason(error: Exception, kind: str) -> str:
    """Why reading a file of a kind failed, as `torch.load(weights_only=True)` and the unpickler say it, in one
    clause."""
    if isinstance(error, MemoryError | RecursionError):
        return describe(error)
    forbidden = re.search(r"nsupported (?:global: GLOBAL|GLOBAL|class) (\S+)", str(error))
    if forbidden:
        return f"its pickle asks for {forbidden[1]}, {_ACCEPTED}"
    return f"it is damaged or no {kind} ({type(error).__name__})"


def _shown(key: Any) -> str:
    """A key of a state dict as it is, but for one without end."""
    return repr(key) if isinstance(key, str) and len(key) <= _LONGEST_KEY else reprlib.repr(key)


def _is_plain_tensor(value: Any) -> bool:
    """Whether `value` holds numbers, all of them: not sparse, quantised, complex or without storage."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
        and value.dtype in _DTYPES
    )
