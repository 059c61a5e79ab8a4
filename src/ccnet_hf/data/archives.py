"""The files of a distribution as it was downloaded: folders, tar and zip archives and archives inside them.

Members are read where they lie; only what allows no random access (gzip, an archive in an archive) is copied once.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import posixpath
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath

from ccnet_hf.errors import InputError, describe, reading
from ccnet_hf.files import atomic_file


_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 1  # a flag of a zip file's member

# What no distribution comes near, and what would fill memory or disk.
_MAX_FILE_BYTES = 1 << 30  # of an image, a label map or a list, which are read as a whole
_MAX_DEPTH = 4  # archives in archives
_MAX_RATIO = 100  # bytes unpacked from one of an archive's bytes,
_ALWAYS_UNPACKED = 1 << 30  # unless it is no more than this anyway
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class RawFile:
    """A file on the disk or in an archive.

    Attributes:
        path: its path inside the folder or the archive, with `/`.
        container: the file itself, or the zip or tar file that holds it.
        size: number of bytes.
        offset: where its bytes start in a tar file; `None` elsewhere.
        archive: what people call the archive that holds it; `None` if there is none.
        stamp: what changes with its content and is known without reading it: on the disk the modification time in ns,
            in a zip file the checksum, in a tar file the modification time in s that it states.
    """

    path: str
    container: Path
    size: int
    offset: int | None = None
    archive: str | None = None
    stamp: float = 0

    def read(self) -> bytes:
        """Read the bytes; `InputError` naming the file if it is damaged, larger than 1 GiB or has changed."""
        with reading(str(self)):
            if self.size > _MAX_FILE_BYTES:
                raise ValueError(f"it has {self.size:,} bytes, and at most {_MAX_FILE_BYTES:,} are read")
            if self.archive is None:
                content = self.container.read_bytes()
            elif self.offset is None:
                content = _open_zip(self.container).read(self.path)
            else:
                with open(self.container, "rb") as archive:
                    archive.seek(self.offset)
                    content = archive.read(self.size)
            if len(content) != self.size:
                raise ValueError(f"it has {len(content):,} bytes where {self.size:,} were listed")
        return content

    def __str__(self) -> str:
        return str(self.container) if self.archive is None else f"{self.archive}:{self.path}"


def _archive_suffix(path: str | PurePath) -> str | None:
    return next((suffix for suffix in _ARCHIVES if str(path).lower().endswith(suffix)), None)


@lru_cache(maxsize=16)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Every process reads the table of contents once, not once per member."""
    return zipfile.ZipFile(path)


def close_archives() -> None:
    """Forget the archives that reading has opened."""
    _open_zip.cache_clear()


def check_sources(sources: Sequence[str | Path]) -> None:
    """Raise `InputError` unless every source is a folder or has the name of an archive."""
    for source in map(Path, sources):
        if not source.exists():
            raise InputError(f"{source} does not exist")
        if not source.is_dir() and not (source.is_file() and _archive_suffix(source)):
            raise InputError(f"{source} is neither a folder nor an archive ({', '.join(_ARCHIVES)})")


def list_files(sources: Sequence[str | Path], scratch: Path) -> list[RawFile]:
    """List every file of folders and archives, those inside archives included; hidden files are left out.

    Args:
        sources: folders and archives (.zip, .tar, .tar.gz, .tgz).
        scratch: folder for copies of what allows no random access; it must live as long as the files are read.

    Raises:
        InputError: a source is missing or is no archive, or an archive is damaged, encrypted, points out of itself,
            holds one name twice with different content, unpacks to more than 100 times its size (and 1 GiB), or is
            nested more than four deep.
        OSError: `scratch` cannot be written.
    """
    check_sources(sources)
    files: list[RawFile] = []
    for source in map(Path, sources):
        for file in _walk(source) if source.is_dir() else [_on_disk(source.name, source)]:
            if _archive_suffix(file.container):
                files += _list_archive(file.container, str(file.container), scratch)
            else:
                files.append(file)
    return files


def _is_hidden(path: PurePath) -> bool:
    """Whether a file is a by-product of an operating system, as `__MACOSX/._x.jpg`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _walk(folder: Path) -> Iterator[RawFile]:
    def fail(error: OSError):
        raise InputError(f"{error.filename} cannot be read: {describe(error)}") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if any(os.path.realpath(above) == real for above in Path(parent).parents):  # a link back to a folder above
            folders.clear()
            continue
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            path = file.relative_to(folder)
            if not _is_hidden(path) and file.is_file():
                yield _on_disk(path.as_posix(), file)


def _on_disk(path: str, file: Path) -> RawFile:
    state = file.stat()
    return RawFile(path, file, state.st_size, stamp=state.st_mtime_ns)


def _list_archive(archive: Path, name: str, scratch: Path, depth: int = 1) -> list[RawFile]:
    """List the files of an archive that people call `name`, `depth` - 1 archives inside of a source."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{name}: more than {_MAX_DEPTH} archives lie in each other")
    if _archive_suffix(name) in (".tar.gz", ".tgz"):
        archive = _copy_once(_gzip_blocks(archive), archive, name, scratch, ".tar")
    with reading(name):
        members = _zip_members(archive, name) if _archive_suffix(name) == ".zip" else _tar_members(archive, name)
        members = list(_each_once(members, name))
    files = []
    for member in members:
        # Members are never written under their own names, but an archive that tries this is not the official one.
        parts = PurePosixPath(member.path.replace("\\", "/"))
        if not parts.parts:  # the folder itself
            continue
        if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", parts.parts[0]):
            raise InputError(f"{name} is refused: its member {member.path!r} points outside the archive")
        if _is_hidden(parts):
            continue
        if suffix := _archive_suffix(parts):
            inner = _copy_once(_member_blocks(member), archive, str(member), scratch, suffix)
            files += _list_archive(inner, str(member), scratch, depth + 1)
        else:
            files.append(member)
    return files


def _zip_members(archive: Path, name: str) -> Iterator[tuple[RawFile, int | None]]:
    """The members of a zip file with their checksums."""
    for info in _open_zip(archive).infolist():
        if info.is_dir():
            continue
        if info.flag_bits & _ENCRYPTED:
            raise ValueError(f"its member {info.filename} is encrypted; unpack the archive")
        if info.compress_type not in _METHODS:
            raise ValueError(
                f"its member {info.filename} is compressed by method {info.compress_type}, which is not known here; "
                "unpack the archive"
            )
        yield RawFile(info.filename, archive, info.file_size, archive=name, stamp=info.CRC), info.CRC


def _tar_members(archive: Path, name: str) -> Iterator[tuple[RawFile, int | None]]:
    """The members of a tar file, which has no checksums; a link is a member with the content of its target."""
    length = archive.stat().st_size
    files, links = {}, []
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            if info.issparse():
                raise ValueError(f"its member {info.name} is stored as a sparse file; pack it without --sparse")
            if info.isfile():
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"it ends within {info.name}")
                file = RawFile(info.name, archive, info.size, info.offset_data, name, info.mtime)
                files[posixpath.normpath(info.name)] = file
                yield file, None
            elif info.islnk():
                links.append((info.name, info.linkname))
            elif info.issym():
                links.append((info.name, posixpath.join(posixpath.dirname(info.name), info.linkname)))
    for path, target in links:
        if file := files.get(posixpath.normpath(target)):
            yield replace(file, path=path), None


def _each_once(members: Iterable[tuple[RawFile, int | None]], name: str) -> Iterator[RawFile]:
    """Members of an archive, equal ones of one name once.

    Raises:
        InputError: two members of one name differ; nobody knows which is meant.
    """
    found: dict[str, tuple[RawFile, int | None]] = {}
    for member, checksum in members:
        path = posixpath.normpath(member.path.replace("\\", "/"))
        first, first_checksum = found.setdefault(path, (member, checksum))
        if first is member:
            yield member
        elif (
            member.size != first.size
            or checksum != first_checksum
            or (checksum is None and member.read() != first.read())
        ):
            raise InputError(f"{name} holds {member.path} twice with different content; remove the wrong one")


def _gzip_blocks(archive: Path) -> Iterator[bytes]:
    with gzip.open(archive) as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _member_blocks(member: RawFile) -> Iterator[bytes]:
    if member.offset is None:
        with _open_zip(member.container).open(member.path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    else:
        with open(member.container, "rb") as stream:
            stream.seek(member.offset)
            left = member.size
            while block := stream.read(min(left, _BLOCK_BYTES)):
                yield block
                left -= len(block)


def _copy_once(blocks: Iterator[bytes], archive: Path, name: str, scratch: Path, suffix: str) -> Path:
    """Copy what is inside of an archive into a file of `scratch`; a copy made before of the same serves.

    Args:
        blocks: its content.
        archive: the file it is read from.
        name: what people call it.
        scratch: folder for the copy.
        suffix: of the copy's name.
    """
    state = archive.stat()
    key = hashlib.sha256(os.fsencode(f"{archive} {name} {state.st_size} {state.st_mtime_ns}")).hexdigest()[:16]
    copy = scratch / f"{key}{suffix}"
    if not copy.exists():
        limit = max(_ALWAYS_UNPACKED, _MAX_RATIO * state.st_size)
        with atomic_file(copy) as unfinished, open(unfinished, "wb") as file:
            for block in _bounded(blocks, name, limit):
                file.write(block)
    return copy


def _bounded(blocks: Iterator[bytes], name: str, limit: int) -> Iterator[bytes]:
    """Blocks of an archive, which is refused when they are more than `limit` bytes, or cannot be read."""
    total = 0
    while True:
        with reading(name):
            block = next(blocks, b"")
        if not block:
            return
        total += len(block)
        if total > limit:
            raise InputError(f"{name} is refused: it unpacks to more than {limit:,} bytes, far more than it has")
        yield block
