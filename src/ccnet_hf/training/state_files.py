"""The files of a training state: tensors in safetensors and values in JSON, so that opening them runs nothing.

A list of their SHA-256 is written last. Of a file that it does not name, or that has changed since, nothing is used.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ccnet_hf.errors import InputError, reading


MANIFEST_FILE = "manifest.json"
# 1 were accelerate's pickles, without a list; 2 has other names for what `training_state` renames when it reads them.
_FORMAT, _OLDEST_FORMAT = 3, 2


def write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values), encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors in safetensors; from any device, in any memory format, which does not come back."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, file)


def write_manifest(folder: Path) -> None:
    """Write down the SHA-256 of all files of a state, which is complete with it."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(folder / MANIFEST_FILE, {"format": _FORMAT, "files": digests})


def _content(file: Path) -> bytes:
    """The bytes of a file; ValueError for what is none, such as a pipe, which would be waited for."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is no regular file")
    return file.read_bytes()


class StateReader:
    """Reads the files of a training state, each of which is what was saved, or refused by its name.

    Args:
        folder: of the state.

    Raises:
        InputError: the list of the files is missing or damaged, or of another version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        file = folder / MANIFEST_FILE
        if not file.exists() and list(folder.glob("random_states_*.pkl")):
            raise InputError(
                f"{folder.parent} was saved by ccnet_hf 0.1, whose training states are pickles and are not opened: "
                "finish that training with ccnet_hf 0.1, or start a new one from its model "
                f"(--model_name_or_path {folder.parent})"
            )
        with reading(file):
            manifest = json.loads(_content(file).decode())
            if manifest["format"] not in range(_OLDEST_FORMAT, _FORMAT + 1):
                known = f"{_OLDEST_FORMAT} to {_FORMAT}"
                raise ValueError(f"it is of format {manifest['format']}, and this version reads {known}")
            self._digests: dict[str, str] = {str(name): str(digest) for name, digest in manifest["files"].items()}

    def has(self, name: str) -> bool:
        """Whether a file, or a folder with files, belongs to the state."""
        return any(file == name or file.startswith(f"{name}/") for file in self._digests)

    def json(self, name: str) -> Any:
        """The values in a JSON file.

        Raises:
            InputError: it is missing, damaged or no JSON.
        """
        content = self._read(name)
        with reading(self.folder / name):
            return json.loads(content.decode())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors in a safetensors file, all of them finite.

        Raises:
            InputError: it is missing, damaged or no safetensors file, or a value is NaN or infinite.
        """
        content = self._read(name)
        with reading(self.folder / name):
            tensors = safetensors.torch.load(content)
            for key, tensor in tensors.items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise ValueError(f"{key} has values that are not finite")
        return tensors

    def verify(self, subfolder: str) -> None:
        """Make sure that the files in a folder of the state are those that were saved; raises as above."""
        for name in sorted(self._digests):
            if name.startswith(f"{subfolder}/"):
                self._read(name)

    def _read(self, name: str) -> bytes:
        file = self.folder / name
        if name not in self._digests:
            raise InputError(f"{file} cannot be read: {self.folder / MANIFEST_FILE} does not name it")
        with reading(file):
            content = _content(file)
        if hashlib.sha256(content).hexdigest() != self._digests[name]:
            raise InputError(f"{file} is damaged: it has changed since it was saved")
        return content
