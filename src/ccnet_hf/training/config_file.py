"""Options of a command from a YAML file."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ccnet_hf.errors import InputError, reading
from ccnet_hf.limits import read_settings


_LARGEST_CONFIG = 2**20  # bytes


class _Loader(yaml.SafeLoader):
    """Reads plain values only, as `yaml.safe_load`, and no field twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [name for name in names if isinstance(name, str) and names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def with_config_file(argv: Sequence[str], classes: Sequence[type]) -> list[str]:
    """A command line with the fields of the YAML file that its `--config` names put in front, so that it wins.

    Args:
        argv: the command line.
        classes: the dataclasses whose fields may stand in the file.

    Raises:
        InputError: the file cannot be read, is no mapping, has a key that is no field, or a value of the wrong type.
    """
    argv = list(argv)
    files = [value for name, value in pairwise(argv) if name == "--config"]
    files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if not files:
        return argv
    file = files[-1]
    content = _read_yaml(Path(file))
    kinds = {name: kind for each in classes for name, kind in get_type_hints(each).items()}
    words: list[str] = []
    for name, value in content.items():
        if name not in kinds or name == "config":
            raise InputError(f"{file}: there is no field {reprlib.repr(name)}")
        if value is None or (value == [] and get_origin(_required(kinds[name])) is list):
            continue  # on a command line a list has a value at least; a tuple may have none
        given = _words(value, kinds[name])
        if given is None:
            raise InputError(f"{file}: {name} is {_described(kinds[name])}, got {reprlib.repr(value)}")
        if kinds[name] is bool:
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(given, list):
            words += [f"--{name}", *given]
        else:
            words.append(f"--{name}={given}")  # in one word, for it may begin with a dash
    return words + argv


def _read_yaml(file: Path) -> dict:
    with reading(file):
        content = yaml.load(read_settings(file, _LARGEST_CONFIG), _Loader)
    if not isinstance(content, dict):
        raise InputError(f"{file} does not map fields to values")
    return content


def _words(value: Any, kind: Any) -> str | list[str] | None:
    """What a command line says for a value of a YAML file, or `None` if the value is not of this kind."""
    kind = _required(kind)
    if get_origin(kind) in (list, tuple):
        words = [_words(part, get_args(kind)[0]) for part in (value if isinstance(value, list) else [value])]
        if _length(kind) not in (None, len(words)):
            return None
        # A word that begins with a dash would be read as an option.
        return None if any(word is None or re.match(r"-\D", word) for word in words) else words
    if kind is bool:
        return str(value).lower() if isinstance(value, bool) else None
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if kind is int:
        return str(value) if isinstance(value, int) else None
    if kind is float:  # YAML takes 1e-3 for text
        return str(value) if not isinstance(value, str) or _is_decimal(value) else None
    return str(value) if not isinstance(value, float) and "\0" not in str(value) else None


def _required(kind: Any) -> Any:
    """The kind of what is given, of an option that may be left out."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if NoneType in get_args(kind) else kind


def _length(kind: Any) -> int | None:
    """How many values a list or tuple has, or `None` if any number."""
    is_any = get_origin(kind) is list or Ellipsis in get_args(kind)
    return None if is_any else len(get_args(kind))


def _is_decimal(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII) is not None


def _described(kind: Any) -> str:
    kind = _required(kind)
    if get_origin(kind) in (list, tuple):
        length = _length(kind)
        many = "a list" if length is None else f"a list of {length}"
        return f"{many}, each {_described(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a text"}[kind]
