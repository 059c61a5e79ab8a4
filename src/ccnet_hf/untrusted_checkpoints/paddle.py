"""Reads what `paddle.save` writes of a state dict, a `.pdparams` file: a bare pickle of NumPy arrays.

Such a pickle asks for five functions and classes by name. None of them is called: each name stands for something
here that takes what NumPy's own would take, checks it, and makes an array of the bytes that the file holds.
"""

import math
import pickle
import pickletools
import reprlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ccnet_hf.errors import InputError


# Last entry of such a file: Paddle's names of the parameters, by ours.
_NAME_TABLE = "StructuredToParameterName@@"

_DTYPES = ("f2", "f4", "f8", "i8")  # with the letter and the size that NumPy gives them in a pickle
_BYTE_ORDERS = ("<", "|", "=")

# What protocols 2, 3 and 4 write of a dict of arrays: nothing that makes objects of classes, nothing that can ask for
# more memory than the file has bytes.
_OPCODES = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 GLOBAL STACK_GLOBAL "
    "REDUCE BUILD MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET".split()
)
_MEMORIES = ("MEMOIZE", "BINPUT", "LONG_BINPUT")


def read_paddle_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a `.pdparams` file by their names, as views of the file's bytes.

    Args:
        file: such a file, opened at its start; the protocols 2, 3 and 4 of NumPy 1 and 2 are known.

    Raises:
        InputError: the pickle asks for anything but the five names, or holds anything but arrays of numbers under
            their names. No code of the file is run.
        Exception: the file is damaged or no pickle.
    """
    _check_opcodes(file)
    length = file.tell()
    file.seek(0)
    content = _Unpickler(file, length).load()
    if not isinstance(content, dict):
        raise InputError("it holds no dictionary, as `paddle.save` makes one of a state dict")
    names = content.pop(_NAME_TABLE, {})
    if not isinstance(names, dict) or not all(isinstance(text, str) for pair in names.items() for text in pair):
        raise InputError(f"{_NAME_TABLE} maps no names to names")
    arrays = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Array) or value.content is None:
            raise InputError(f"entry {reprlib.repr(name)} is no array under its name")
        arrays[name] = value.content
    # Entries may share their bytes, but must not become larger than the file once each has its own.
    claimed = sum(array.nbytes for array in arrays.values())
    if claimed > length:
        raise InputError(f"its arrays claim {claimed:,} bytes, more than it has")
    return arrays


def _check_opcodes(file: BinaryIO) -> None:
    """Refuse what no dictionary of arrays needs, before anything is made of it.

    Raises:
        InputError: as above.
        Exception: the file is damaged or no pickle.
    """
    tuples, remembered, previous = set(), 0, ""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in _OPCODES:
            raise InputError(f"its pickle uses {opcode.name}, which a state dict of arrays has no need of")
        if opcode.name in _MEMORIES:
            index = remembered if argument is None else argument
            if index > remembered:  # the memory of an unpickler is as long as the largest index
                raise InputError(f"its pickle remembers object {index} after {remembered} others")
            if previous.startswith("TUPLE"):
                tuples.add(index)
            remembered += 1
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in tuples:
            # A tuple of twice the same tuple of ...: nothing would see the end of it.
            raise InputError("its pickle uses a tuple more than once, which a state dict of arrays has no need of")
        previous = opcode.name


class _Unpickler(pickle.Unpickler):
    """Knows five names, and for each of them a stand-in."""

    def __init__(self, file: BinaryIO, length: int):
        super().__init__(file)
        self._left_to_encode = length  # characters; of protocol 2, which has bytes as text
        array, reconstruct = _Name(), _Name(self._reconstruct)
        self._names = {
            ("numpy", "ndarray"): array,
            ("numpy", "dtype"): _Name(_DType),
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("_codecs", "encode"): _Name(self._encode),
        }

    def find_class(self, module: str, name: str) -> "_Name":
        if (module, name) not in self._names:
            asked = reprlib.repr(f"{module}.{name}")[1:-1]
            raise InputError(f"its pickle asks for {asked}, and only arrays of numbers are accepted")
        return self._names[module, name]

    def _reconstruct(self, kind: Any, shape: tuple, type_code: bytes) -> "_Array":
        if kind is not self._names["numpy", "ndarray"]:
            raise InputError("its pickle makes an array of another class than NumPy's")
        return _Array()

    def _encode(self, text: str, encoding: str) -> bytes:
        self._left_to_encode -= len(text)
        if encoding != "latin1" or self._left_to_encode < 0:
            raise InputError("its pickle encodes text that no bytes of an array are")
        return text.encode("latin1")


class _Name:
    """What a name of the pickle stands for: something to call, or nothing but the name."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any] | None = None):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        if self._function is None:
            raise InputError("its pickle calls a class that arrays only name")
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise InputError("its pickle changes what it only asked for")


class _DType:
    """Stands for `numpy.dtype`: numbers of one of a few kinds, in this machine's or no order of bytes."""

    def __init__(self, code: str, align: bool, copy: bool):
        if code not in _DTYPES:
            raise InputError(f"it holds an array of type {reprlib.repr(code)}, {', '.join(_DTYPES)} are accepted")
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state: tuple) -> None:
        version, byte_order, *_ = state
        if version != 3 or byte_order not in _BYTE_ORDERS:
            raise InputError(f"it holds numbers in the byte order {reprlib.repr(byte_order)}, not the usual one")


class _Array:
    """Stands for an array: nothing until it is given its shape, its type and its bytes."""

    def __init__(self) -> None:
        self.content: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _DType) or not isinstance(content, bytes):
            raise InputError("it holds an array of something else than numbers")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise InputError(f"it holds an array of shape {reprlib.repr(shape)}")
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            raise InputError(f"it holds an array of shape {reprlib.repr(shape)} in {len(content):,} bytes")
        values = np.frombuffer(content, kind.dtype)
        self.content = values.reshape(shape, order="F" if is_fortran else "C")
