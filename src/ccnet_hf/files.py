"""The one way to write: a file or a folder that appears complete or not at all.

What is written lies under a hidden name of its own beside its target, `.NAME.XXXXXXXX.unfinished`, until it is
complete and on the disk, and then takes the target's name in one step. So neither kill -9 nor a full disk nor a second
process nor a power cut leaves half of anything under a name that somebody reads.
"""

import errno
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ccnet_hf.errors import InputError


DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)  # it is full, or cannot be written
_UNFINISHED, _REPLACED = ".unfinished", ".replaced"
_LONGEST_NAME = 200  # bytes of a target's name in hidden ones


@contextmanager
def atomic_file(file: str | os.PathLike) -> Iterator[Path]:
    """Write a file so that readers find the old one, or all of the new one.

    Args:
        file: what to write or replace; of a link, what it leads to. Its folder is made.

    Yields:
        A path in the same folder to write to, with the same suffix. It takes the file's name when the block ends
        without an error, and is removed otherwise.

    Raises:
        InputError: there is something that is no file, such as a pipe or a device.
        OSError: it cannot be written; one sentence that names `file` and says why.
    """
    file = Path(file)
    with explained(file):
        target = _end_of_links(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_name(target).with_suffix(f"{_UNFINISHED}{file.suffix}")
        try:
            yield unfinished
            flush(unfinished)
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(file: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8; raises as `atomic_file`."""
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
    return target.with_name(f".{_shortened(target.name)}.{secrets.token_hex(4)}{_UNFINISHED}")


def check_new(folder: str | os.PathLike) -> None:
    """Find out before the work, not after it, that a new folder cannot appear there; makes nothing.

    Raises:
        InputError: there is something already, other than an empty folder, or it is the current folder.
        OSError: the folder around it cannot be written.
    """
    folder = Path(folder)
    _check_name(folder)
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists; name a new folder")
    if folder.name in ("", "..") or (folder.exists() and folder.samefile(Path.cwd())):
        raise InputError(f"{folder} cannot be replaced by a new folder; name one in it")
    _try_to_write(_folder_above(folder), folder)


def publish_folder(unfinished: Path, folder: Path) -> None:
    """Give a complete folder its name, in place of the one that has it, after its files have reached the disk."""
    _flush_all(unfinished)
    replaced = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_REPLACED}")
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def publish_files(unfinished: Path, folder: Path, last: str) -> None:
    """Move the files of a complete folder into another one, each in place of its namesake, after they have reached the
    disk. The one called `last` comes after all others: without it the folder does not read as complete."""
    _flush_all(unfinished)
    for file in sorted(unfinished.iterdir(), key=lambda file: (file.name == last, file.name)):
        os.replace(file, folder / file.name)
    flush(folder)
    unfinished.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no reader meets a part of it."""
    removed = unfinished_name(folder)
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what a killed writer of `parent / name`, or of anything there, left behind, and give a folder back its
    name that was about to be replaced. To be called by whoever has locked it (see `exclusive`)."""
    name = "*" if name is None else glob.escape(_shortened(name))
    replaced_pattern, unfinished_pattern = (f".{name}.{'[0-9a-f]' * 8}{end}" for end in (_REPLACED, _UNFINISHED))
    for replaced in parent.glob(replaced_pattern):
        folder = parent / replaced.name[1 : -len(f".xxxxxxxx{_REPLACED}")]
        if not folder.exists():
            replaced.rename(folder)
    for pattern in (replaced_pattern, f"{unfinished_pattern}*"):
        for leftover in parent.glob(pattern):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


@contextmanager
def exclusive(path: str | os.PathLike, inside: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing the same file or folder meanwhile. The lock ends with the process, however it
    ends; its file, `.NAME.lock` beside the target, stays.

    Args:
        path: what is written.
        inside: it is a folder that is written piece by piece, and the lock's file lies in it as `.lock`: whoever may
            write there may not be allowed to write beside it.
        wait: wait for the other process, whose result serves as well.

    Raises:
        InputError: another process holds it, and `wait` is not set.
        OSError: the lock's file cannot be written, as for `atomic_file`.
    """
    path = Path(path)
    place = path.absolute()
    file = place / ".lock" if inside else place.with_name(f".{_shortened(place.name)}.lock")
    lock = FileLock(file, timeout=-1 if wait else 0)
    try:
        with explained(path):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is writing {path}; wait for it, or name another one") from error
    try:
        yield
    finally:
        lock.release()


def check_writable(folder: str | os.PathLike) -> None:
    """Find out before the work, not after it, that a folder cannot be made or written; makes nothing.

    Raises:
        InputError: no file can have its name.
        OSError: as `atomic_file`.
    """
    folder = Path(folder)
    _check_name(folder)
    _try_to_write(folder if os.path.lexists(folder) else _folder_above(folder), folder)


def check_file(file: str | os.PathLike) -> None:
    """Find out before the work, not after it, that a file cannot be written; makes nothing.

    Raises:
        InputError: as `atomic_file`.
        OSError: as `atomic_file`.
    """
    file = Path(file)
    _check_name(file)
    _try_to_write(_folder_above(_end_of_links(file)), file)


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is no name of a file or folder: it holds a NUL character")


def _end_of_links(file: Path) -> Path:
    """Where a file is written: where it is or, where it is a link, where that leads.

    Raises:
        InputError: there is something that is no file.
        OSError: there is a folder, or links that lead nowhere.
    """
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):  # whoever writes there will see
        mode = None
    except OSError as error:
        raise _not_written(file, error.errno) from error
    if mode is not None and stat.S_ISDIR(mode):
        raise _not_written(file, errno.EISDIR)
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"{file} is a pipe, a device or a socket, which would be replaced; name a file")
    return Path(os.path.realpath(file)) if file.is_symlink() else file


def _folder_above(path: Path) -> Path:
    """The innermost folder around `path` that exists, or a link in its place that leads nowhere."""
    return next(folder for folder in path.absolute().parents if os.path.lexists(folder))


def _try_to_write(folder: Path, path: Path) -> None:
    """Raise the error of `path` if nothing can be written in `folder`."""
    trial = unfinished_name(folder / "trial")
    try:
        trial.write_bytes(b"\0" * 4096)  # a file system that is full still makes empty files
    except OSError as error:
        raise _not_written(path, error.errno) from error
    finally:
        with suppress(OSError):
            trial.unlink()


def _not_written(path: Path, number: int) -> OSError:
    return OSError(number, f"{path} cannot be written: {os.strerror(number).lower()}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence that `path` cannot be written, and why, whichever library found out.

    torch reports a full disk as `RuntimeError`, safetensors with a class of its own; both are told from other faults
    by their text. Errors of other files pass as they are.

    Raises:
        InputError: no file can have this name.
        OSError: as said.
    """
    _check_name(path)
    try:
        yield
    except shutil.Error as error:  # of copying folders: a list of file, copy, reason
        raise OSError(errno.EIO, f"{path} cannot be written: {error.args[0][0][-1]}") from error
    except OSError as error:
        named = [name for name in (error.filename, error.filename2) if name is not None]  # two where files are copied
        is_ours = any(_belongs(name, path) for name in named) if named else error.errno in DISK_ERRNOS
        if error.errno is None or not is_ours:
            raise
        raise _not_written(path, error.errno) from error
    except (RuntimeError, SafetensorError) as error:
        said = str(error).lower()
        if not any(words in said for words in _DISK_WORDS):
            raise
        told = f"the disk is full or fails ({' '.join(str(error).split())})"
        raise OSError(errno.ENOSPC, f"{path} cannot be written: {told}") from error


# "Unexpected pos": what PyTorch says when it closes an archive after a failed write.
_DISK_WORDS = ("no space left", "writing file", "file write", "i/o error", "iostream error", "unexpected pos")


def _belongs(filename: str | bytes | int, path: Path) -> bool:
    """Whether a file is `path`, in it, above it, or one of its hidden neighbours; links are followed."""
    if isinstance(filename, int):  # a descriptor
        return False
    file, path = Path(os.fsdecode(filename)).absolute(), path.absolute()
    if path.is_symlink() and (end := Path(os.path.realpath(path))) != path and _belongs(filename, end):
        return True
    neighbours = f".{_shortened(path.name)}."
    return (
        file.is_relative_to(path)
        or path.is_relative_to(file)
        or any(part.parent == path.parent and part.name.startswith(neighbours) for part in (file, *file.parents))
    )


def _shortened(name: str) -> str:
    """As much of a file's name as leaves room for what a hidden name adds; file systems take 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def _flush_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that do not know it
            raise
    finally:
        os.close(descriptor)
