"""The largest numbers that are taken from a user. Beyond them memory or processes would run out, and the system would
end this process, or another one, without a word."""

from math import inf
from numbers import Integral
from pathlib import Path
from typing import Any

from ccnet_hf.errors import InputError


MAX_PIXELS = 2**28  # of one image, or of all images of one pass: 3 GB as float32, before the network has begun
MAX_BATCH_SIZE = 65_536  # images
MAX_PROCESSES = 256  # that read, check or encode at the same time
MAX_THREADS = 1024
MAX_SEED = 2**32 - 1  # what NumPy takes


def check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Refuse a number outside of `least` to `most`, or none at all (NaN); `None` stands for not given.

    Raises:
        InputError: the message names the number, its value and the bound.
    """
    if value is None:
        return
    if not value >= least:
        raise InputError(f"{name} must be at least {least:,}, got {value}")
    if value > most:
        raise InputError(f"{name} must be at most {most:,}, got {value}")


def check_integer(name: str, value: Any, least: int, most: float = inf) -> None:
    """Refuse what is no integer from `least` to `most`.

    Raises:
        InputError: the message names the number, its value and the bound.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"`{name}` must be an integer, got {value!r}")
    check_range(f"`{name}`", value, least, most)


def read_settings(file: Path, most: int) -> str:
    """The text of a file of settings, in UTF-8, which cannot have more than `most` bytes.

    Raises:
        ValueError: it has more, or is no text.
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        content = opened.read(most + 1)  # and no more, for a device or a pipe has no size and perhaps no end
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes, which no settings have")
    return content.decode("utf-8-sig")
