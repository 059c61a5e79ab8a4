"""The files of a distribution as it was downloaded: folders, tar and zip archives and archives inside them.

Members are read where they lie; only what allows no random access (gzip, an archive in an archive) is copied once.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import posixpath
import re
import stat
import tarfile
import unicodedata
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
_MAX_LINKS = 40  # that lead to each other, as on Linux
_MAX_LINK_BYTES = 4096  # of the path that a link leads to


@dataclass(frozen=True)
class RawFile:
    """A file on the disk or in an archive.

    Attributes:
        path: its path inside the folder or the archive, with `/` and in Unicode's form NFC.
        container: the file itself, or the zip or tar file that holds it.
        size: number of bytes.
        offset: where its bytes start in a tar file; `None` elsewhere.
        archive: what people call the archive that holds it; `None` if there is none.
        stamp: what changes with its content and is known without reading it: on the disk the modification time in ns,
            in a zip file the checksum, in a tar file the modification time in s that it states.
        member: its name in a zip file, as it is written there; `None` elsewhere.
        target: where a link leads at whose end there is no file; `None` where there is one.
    """

    path: str
    container: Path
    size: int
    offset: int | None = None
    archive: str | None = None
    stamp: float = 0
    member: str | None = None
    target: str | None = None

    def read(self) -> bytes:
        """Read the bytes; `InputError` naming the file if it is damaged, larger than 1 GiB, has changed, or is a link
        that leads nowhere."""
        with reading(str(self)):
            self.check_target()
            if self.size > _MAX_FILE_BYTES:
                raise ValueError(f"it has {self.size:,} bytes, and at most {_MAX_FILE_BYTES:,} are read")
            if self.archive is None:
                content = self.container.read_bytes()
            elif self.offset is None:
                content = _open_zip(self.container).read(self.member)
            else:
                with open(self.container, "rb") as archive:
                    archive.seek(self.offset)
                    content = archive.read(self.size)
            if len(content) != self.size:
                raise ValueError(f"it has {len(content):,} bytes where {self.size:,} were listed")
        return content

    def check_target(self) -> None:
        """Raise ValueError if it is a link that leads nowhere."""
        if self.target is not None:
            raise ValueError(f"it is a link to {self.target}, where there is no file")

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
            holds one name twice with different content or a link to a folder, unpacks to more than 100 times its size
            (and 1 GiB), or is nested more than four deep.
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
            if _is_hidden(path):
                continue
            if file.is_file():
                yield _on_disk(path.as_posix(), file)
            elif file.is_symlink():
                yield RawFile(normal_form(path.as_posix()), file, size=0, target=os.readlink(file))


def _on_disk(path: str, file: Path) -> RawFile:
    state = file.stat()
    return RawFile(normal_form(path), file, state.st_size, stamp=state.st_mtime_ns)


def normal_form(name: str) -> str:
    """A name in Unicode's form NFC: macOS takes accents from their letters, and the same name would be another."""
    return unicodedata.normalize("NFC", name)


def _member_path(name: str) -> str:
    """The path of a member of an archive, which old packers for Windows write with backslashes."""
    return normal_form(name.replace("\\", "/"))


def _list_archive(archive: Path, name: str, scratch: Path, depth: int = 1) -> list[RawFile]:
    """List the files of an archive that people call `name`, `depth` - 1 archives inside of a source."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{name}: more than {_MAX_DEPTH} archives lie in each other")
    if _archive_suffix(name) in (".tar.gz", ".tgz"):
        archive = _copy_once(_gzip_blocks(archive), archive, name, scratch, ".tar")
    with reading(name):
        members = _zip_members(archive, name) if _archive_suffix(name) == ".zip" else _tar_members(archive, name)
        members = list(_each_once(_followed(members), name))
    files = []
    for member in members:
        # Members are never written under their own names, but an archive that tries this is not the official one.
        parts = PurePosixPath(member.path)
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
    """The members of a zip file with their checksums; links by their `target`."""
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
        path, target = _member_path(info.filename), None
        if stat.S_ISLNK(info.external_attr >> 16):
            if info.file_size > _MAX_LINK_BYTES:
                raise ValueError(f"its member {info.filename} is a link of {info.file_size:,} bytes")
            target = _link_target(path, os.fsdecode(_open_zip(archive).read(info)))
        file = RawFile(path, archive, info.file_size, None, name, info.CRC, member=info.filename, target=target)
        yield file, info.CRC


def _tar_members(archive: Path, name: str) -> Iterator[tuple[RawFile, int | None]]:
    """The members of a tar file, which has no checksums; links by their `target`."""
    length = archive.stat().st_size
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            if info.issparse():
                raise ValueError(f"its member {info.name} is stored as a sparse file; pack it without --sparse")
            path, target = _member_path(info.name), None
            if info.isfile():
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"it ends within {info.name}")
            elif info.islnk():
                target = _link_target("", info.linkname)
            elif info.issym():
                target = _link_target(path, info.linkname)
            else:
                continue
            yield RawFile(path, archive, info.size, info.offset_data, name, info.mtime, target=target), None
        _check_end(archive, tar.offset)


def _check_end(archive: Path, offset: int) -> None:
    """Raise ValueError unless a tar file has nothing but zeros, and a block of them, where `tarfile` has ended. That
    takes damage between two members, or a cut there, for the end."""
    with open(archive, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if any(block):
            raise ValueError(f"it is damaged at byte {offset:,}")
        if len(block) < tarfile.BLOCKSIZE:
            raise ValueError(f"it has no end, but is cut off at byte {offset:,}")
        while block := file.read(_BLOCK_BYTES):
            if any(block):
                raise ValueError(f"something follows its end at byte {offset:,}")


def _link_target(path: str, target: str) -> str:
    """Where a link in an archive leads, by the path from its top."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), _member_path(target)))


def _followed(members: Iterable[tuple[RawFile, int | None]]) -> Iterator[tuple[RawFile, int | None]]:
    """Members of an archive, links with the content of the file that they lead to. One that leads to none is left as
    it is: reading it, if anybody does, tells.

    Raises:
        ValueError: a link leads to a folder.
    """
    files: dict[str, tuple[RawFile, int | None]] = {}
    links: list[RawFile] = []
    for member, checksum in members:
        if member.target is not None:
            links.append(member)
        else:
            files[posixpath.normpath(member.path)] = member, checksum
            yield member, checksum
    targets = {posixpath.normpath(link.path): link.target for link in links}
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents} if links else set()
    for link in links:
        target = link.target
        for _ in range(_MAX_LINKS):
            if target not in files:
                target = targets.get(target, target)
        if target in files:
            file, checksum = files[target]
            yield replace(file, path=link.path), checksum
        elif target not in folders:
            yield link, None
        elif not _is_hidden(PurePosixPath(link.path)):
            raise ValueError(f"its member {link.path} is a link to the folder {target}; unpack the archive")


def _each_once(members: Iterable[tuple[RawFile, int | None]], name: str) -> Iterator[RawFile]:
    """Members of an archive, equal ones of one name once.

    Raises:
        InputError: two members of one name differ; nobody knows which is meant.
    """
    found: dict[str, tuple[RawFile, int | None]] = {}
    for member, checksum in members:
        path = posixpath.normpath(member.path)
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
    member.check_target()
    if member.offset is None:
        with _open_zip(member.container).open(member.member) as stream:
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
    with reading(name):
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
