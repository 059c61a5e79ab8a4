"""The files of a distribution as it was downloaded: folders, tar and zip archives and archives inside them.

Members are read where they lie; only what cannot be read at a place (gzip, an archive in an archive) is copied once.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import posixpath
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from ccnet_hf.errors import InputError


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class RawFile:
    """A file on the disk or in an archive.

    Attributes:
        path: its path inside the folder or the archive, with `/`.
        container: the file itself, or the zip or tar file that holds it.
        size: number of bytes.
        offset: where its bytes start in a tar file; `None` elsewhere.
    """

    path: str
    container: Path
    size: int
    offset: int | None = None

    def read(self) -> bytes:
        """Read the bytes; `InputError` naming the file if the archive is damaged there."""
        if self.offset is not None:
            with open(self.container, "rb") as archive:
                archive.seek(self.offset)
                return archive.read(self.size)
        if not _is_archive(self.container):
            return self.container.read_bytes()
        try:
            return _open_zip(self.container).read(self.path)
        except Exception as error:  # zipfile and its decompressors raise a dozen kinds for damage and encryption
            raise InputError(f"{self}: cannot be read ({error})") from error

    def __str__(self) -> str:
        return f"{self.container}:{self.path}" if _is_archive(self.container) else str(self.container)


def _is_archive(path: PurePath) -> bool:
    return path.name.lower().endswith(_ARCHIVES)


@lru_cache(maxsize=16)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Every process reads the table of contents once, not once per member."""
    return zipfile.ZipFile(path)


def close_archives() -> None:
    """Forget the archives that reading has opened."""
    _open_zip.cache_clear()


def list_files(sources: Sequence[str | Path], scratch: Path) -> list[RawFile]:
    """List every file of folders and archives, those inside archives included; hidden files are left out.

    Args:
        sources: folders and archives (.zip, .tar, .tar.gz, .tgz).
        scratch: folder for copies of what cannot be read at a place; it must live as long as the files are read.

    Raises:
        InputError: a source is missing or is no archive, or an archive is damaged or points out of itself.
    """
    files: list[RawFile] = []
    for source in map(Path, sources):
        if source.is_dir():
            for file in _walk(source):
                if _is_archive(file.container):
                    files += _list_archive(file.container, scratch)
                else:
                    files.append(file)
        elif source.is_file() and _is_archive(source):
            files += _list_archive(source, scratch)
        elif source.exists():
            raise InputError(f"{source} is neither a folder nor an archive ({', '.join(_ARCHIVES)})")
        else:
            raise InputError(f"{source} does not exist")
    return files


def _is_hidden(path: PurePath) -> bool:
    """Whether a file is a by-product of an operating system, as `__MACOSX/._x.jpg`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _walk(folder: Path) -> Iterator[RawFile]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if any(os.path.realpath(above) == real for above in Path(parent).parents):  # a link back to a folder above
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            path = file.relative_to(folder)
            if not _is_hidden(path) and file.is_file():
                yield RawFile(path.as_posix(), file, file.stat().st_size)


def _list_archive(archive: Path, scratch: Path) -> list[RawFile]:
    name = archive.name.lower()
    if name.endswith((".tar.gz", ".tgz")):
        with gzip.open(archive) as stream:
            archive = _copy_once(stream, archive, str(archive), scratch, suffix=".tar")
    try:
        members = list(_zip_members(archive) if name.endswith(".zip") else _tar_members(archive))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} is not a whole {archive.suffix[1:]} archive ({error})") from error
    files = []
    for member in members:
        # Members are never written under their own names, but an archive that tries this is not the official one.
        parts = PurePosixPath(member.path.replace("\\", "/"))
        if not parts.parts:  # the folder itself
            continue
        if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", parts.parts[0]):
            raise InputError(f"{archive} is refused: its member {member.path!r} points outside the archive")
        if _is_hidden(parts):
            continue
        if _is_archive(parts):
            with _open_member(member) as stream:
                inner = _copy_once(stream, archive, str(member), scratch, suffix=parts.name)
            files += _list_archive(inner, scratch)
        else:
            files.append(member)
    return files


def _zip_members(archive: Path) -> Iterator[RawFile]:
    for info in _open_zip(archive).infolist():
        if not info.is_dir():
            yield RawFile(info.filename, archive, info.file_size)


def _tar_members(archive: Path) -> Iterator[RawFile]:
    length = archive.stat().st_size
    files, links = {}, {}
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            if info.isfile():
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"it ends within {info.name}")
                files[posixpath.normpath(info.name)] = file = RawFile(info.name, archive, info.size, info.offset_data)
                yield file
            elif info.islnk():
                links[info.name] = info.linkname
            elif info.issym():
                links[info.name] = posixpath.join(posixpath.dirname(info.name), info.linkname)
    for name, target in links.items():
        if file := files.get(posixpath.normpath(target)):
            yield replace(file, path=name)


@contextmanager
def _open_member(member: RawFile) -> Iterator[BinaryIO]:
    if member.offset is None:
        with _open_zip(member.container).open(member.path) as stream:
            yield stream
    else:
        with tarfile.open(member.container, "r:") as tar, tar.extractfile(member.path) as stream:
            yield stream


def _copy_once(stream: BinaryIO, archive: Path, source: str, scratch: Path, suffix: str) -> Path:
    """Copy a stream into a file of `scratch`, whole or not at all; a copy made before by the same source serves."""
    state = archive.stat()
    key = hashlib.sha256(f"{source} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = scratch / f"{key}{suffix}"
    if not copy.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        try:
            with open(unfinished, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise InputError(f"{source} is not a whole archive ({error})") from error
        unfinished.replace(copy)
    return copy
