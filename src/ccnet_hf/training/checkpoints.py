"""Folders that are written whole or not at all, and the training states among them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from ccnet_hf.errors import InputError


BEST_CHECKPOINT, SCORES_FILE = "checkpoint-best", "scores.json"


@contextmanager
def whole_folder(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Let all processes write a folder together, so that a reader finds all of it or nothing.

    Yields:
        A new empty folder beside `folder`, which takes its name when the block ends without an error, and otherwise is
        removed.

    Raises:
        OSError: the folder cannot be written, e.g. because the disk is full.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        yield unfinished
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch reports a full disk as RuntimeError, safetensors with its own class.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{folder} cannot be written ({error})") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    accelerator.wait_for_everyone()


def tidy(output_dir: Path) -> None:
    """Clear away what a killed training left half done: bring a folder back that was about to be replaced, remove the
    rest."""
    for replaced in output_dir.glob(".*.replaced"):
        folder = output_dir / replaced.name[1 : -len(".replaced")]
        if not folder.exists():
            replaced.rename(folder)
    for pattern in (".*.replaced", ".*.unfinished", ".*.removed"):
        for leftover in output_dir.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one, each replacing its namesake at once, and remove the folder."""
    for file in sorted(source.iterdir()):
        os.replace(file, target / file.name)
    source.rmdir()


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders a training can resume from, fewest steps first."""
    found = {}
    for folder in output_dir.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / "state").is_dir():
            found[int(match[1])] = folder
    return [found[step] for step in sorted(found)]


def find_checkpoint(output_dir: Path, which: str | None) -> Path | None:
    """The folder to resume from: `"last"` is the one with most steps in `output_dir`, anything else is a path.

    Raises:
        InputError: it is not there; or checkpoints of another training, or later ones, would be mixed with this one's.
    """
    found = list_checkpoints(output_dir)
    if which == "last":
        if not found:
            raise InputError(f"{output_dir} holds no checkpoint to resume from")
        return found[-1]
    if which is not None and not (Path(which) / "state").is_dir():
        raise InputError(f"{which} is not a checkpoint of a training")
    if found and (which is None or not found[-1].samefile(which)):
        raise InputError(
            f"{output_dir} holds {found[-1].name} of an earlier training: resume that with --resume_from_checkpoint "
            "last, or name another --output_dir"
        )
    return None if which is None else Path(which)


def remove_old_checkpoints(output_dir: Path, limit: int) -> None:
    """Keep the `limit` checkpoints with most steps; each of the others disappears at once, never by halves."""
    for folder in list_checkpoints(output_dir)[:-limit]:
        removed = folder.with_name(f".{folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
