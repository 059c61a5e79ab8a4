"""Folders that are written whole or not at all, and the training states among them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator


@contextmanager
def whole_folder(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Let all processes write a folder together, so that a reader finds all of it or nothing.

    Yields:
        A new empty folder beside `folder`, which takes its name when the block ends without an error.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield unfinished
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one, each replacing its namesake at once, and remove the folder."""
    for file in sorted(source.iterdir()):
        os.replace(file, target / file.name)
    source.rmdir()


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return output_dir / f"checkpoint-{step}"


def find_checkpoint(output_dir: Path, which: str) -> Path:
    """The folder to resume from: `"last"` is the one with most steps in `output_dir`, anything else is a path.

    Raises:
        ValueError: it is not there.
    """
    if which != "last":
        if not (Path(which) / "state").is_dir():
            raise ValueError(f"{which} is not a checkpoint of a training")
        return Path(which)
    found = {}
    for folder in output_dir.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / "state").is_dir():
            found[int(match[1])] = folder
    if not found:
        raise ValueError(f"{output_dir} holds no checkpoint to resume from")
    return found[max(found)]
