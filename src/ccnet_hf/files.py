"""The one way to write: a file or a folder that appears complete or not at all.

What is written lies under a hidden name of its own beside its target, `.NAME.XXXXXXXX.unfinished`, until it is
complete, and then takes the target's name in one step. So neither kill -9 nor a full disk nor a second process leaves
half of anything under a name that somebody reads.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ccnet_hf.errors import InputError


DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)  # it is full, or cannot be written
_UNFINISHED, _REPLACED = ".unfinished", ".replaced"


@contextmanager
def atomic_file(file: str | os.PathLike) -> Iterator[Path]:
    """Write a file so that readers find the old one, or all of the new one.

    Args:
        file: what to write or replace. Its folder is made.

    Yields:
        A path in the same folder to write to, with the same suffix. It takes the file's name when the block ends
        without an error, and is removed otherwise.

    Raises:
        OSError: it cannot be written; one sentence that names `file` and says why.
    """
    file = Path(file)
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_name(file).with_suffix(f"{_UNFINISHED}{file.suffix}")
        try:
            yield unfinished
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8; raises as [`atomic_file`]."""
    with atomic_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Write a folder so that readers find all of it or nothing, and make sure that it is on the disk by then.

    Args:
        folder: what to write; an empty folder there is replaced.
        replace: replace a folder that holds files, too.

    Yields:
        A new empty folder beside it, which takes its name when the block ends without an error, and is removed
        otherwise.

    Raises:
        InputError: the folder holds files, or another process is writing it.
        OSError: it cannot be written; one sentence that names `folder` and says why.
    """
    folder = Path(folder)
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            remove_leftovers(folder.parent, folder.name)
            if not replace:
                check_new(folder)
            unfinished = unfinished_name(folder)
            unfinished.mkdir()
            try:
                yield unfinished
                publish_folder(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_name(target: Path) -> Path:
    """A hidden name of its own beside `target`, for what will take the target's name when it is complete."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")


def check_new(folder: str | os.PathLike) -> None:
    """Raise `InputError` unless there is no such folder yet, or an empty one."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists; name a new folder")


def publish_folder(unfinished: Path, folder: Path) -> None:
    """Give a complete folder its name, in place of the one that has it, after its files have reached the disk."""
    _flush_all(unfinished)
    replaced = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_REPLACED}")
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def publish_files(unfinished: Path, folder: Path, last: str) -> None:
    """Move the files of a complete folder into another one, each in place of its namesake, after they have reached the
    disk. The one called `last` comes after all others: without it the folder does not read as complete."""
    _flush_all(unfinished)
    for file in sorted(unfinished.iterdir(), key=lambda file: (file.name == last, file.name)):
        os.replace(file, folder / file.name)
    _flush(folder)
    unfinished.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no reader meets a part of it."""
    removed = unfinished_name(folder)
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(parent: Path, name: str = "*") -> None:
    """Remove what a killed writer of `parent / name` left there, and give a folder back its name that was about to be
    replaced. To be called by whoever has the place to itself (see [`exclusive`])."""
    for replaced in parent.glob(f".{name}.*{_REPLACED}"):
        folder = parent / replaced.name[1 : -len(f".xxxxxxxx{_REPLACED}")]
        if not folder.exists():
            replaced.rename(folder)
    for pattern in (f".{name}.*{_REPLACED}", f".{name}.*{_UNFINISHED}*"):
        for leftover in parent.glob(pattern):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def exclusive(path: str | os.PathLike, inside: bool = False) -> Iterator[None]:
    """Keep other processes from writing the same file or folder meanwhile. The lock ends with the process, however it
    ends; its file, `.NAME.lock` beside the target, stays.

    Args:
        path: what is written.
        inside: it is a folder that is written piece by piece, and the lock's file lies in it as `.lock`: whoever may
            write there may not be allowed to write beside it.

    Raises:
        InputError: another process holds it.
    """
    path = Path(path).absolute()
    file = path / ".lock" if inside else path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(file, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is writing {path}; wait for it, or name another place") from error
    try:
        yield
    finally:
        lock.release()


def check_writable(folder: str | os.PathLike) -> None:
    """Find out before the work, not after it, that a folder cannot be made or written.

    Raises:
        OSError: as [`atomic_file`].
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trial = unfinished_name(folder / "trial")
        try:
            trial.write_bytes(b"\0" * 4096)  # a file system that is full still makes empty files
        finally:
            trial.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written, and why, whichever library found out.

    torch reports a full disk as `RuntimeError`, safetensors with a class of its own; both are told from other faults
    by their text.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in DISK_ERRNOS):
            raise
        raise OSError(error.errno, f"{path} cannot be written: {os.strerror(error.errno).lower()}") from error
    except (RuntimeError, SafetensorError) as error:
        said = str(error).lower()
        if not any(words in said for words in ("no space left", "writing file", "file write", "i/o error")):
            raise
        raise OSError(errno.ENOSPC, f"{path} cannot be written: {' '.join(str(error).split())}") from error


def _flush_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that do not know it
            raise
    finally:
        os.close(descriptor)
