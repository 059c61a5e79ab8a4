"""A wheel of this package with a compiled library in it: for machines without a compiler."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import os
import zipfile
from pathlib import Path

from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file

from .build import platform_tag


_DISTRIBUTION = "ccnet-hf"
_PACKAGE = Path(__file__).parents[1]
# Bytes do not depend on when and where they were packed.
_DATE = (1980, 1, 1, 0, 0, 0)


def build_wheel(library: Path, output: str | os.PathLike) -> Path:
    """Pack the installed package and a library into a wheel (PEP 427) for this platform and every Python.

    The package is packed as it lies here, so this works from a clone and from an installed wheel, without a network.

    Args:
        library: what [`~ccnet_hf.kernels.build.build`] has returned.
        output: folder for the wheel.

    Returns:
        The wheel. It appears whole or not at all.

    Raises:
        InputError: the package is not installed, so that its metadata is unknown, or this is no Linux.
        OSError: the wheel cannot be written.
    """
    try:
        distribution = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{_DISTRIBUTION} is not installed here, and a wheel takes its metadata from that") from None
    tag = f"py3-none-{platform_tag()}"
    name = f"{_PACKAGE.name}-{distribution.version}"
    files = {
        f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(_PACKAGE.rglob("*"))
        if path.is_file() and path.suffix not in (".pyc", ".so", ".lock")
    }
    files[f"{_PACKAGE.name}/kernels/{library.name}"] = library.read_bytes()
    for part in ("METADATA", "entry_points.txt", "top_level.txt", "licenses/LICENSE"):
        if text := distribution.read_text(part):
            files[f"{name}.dist-info/{part}"] = text.encode()
    wheel = f"Wheel-Version: 1.0\nGenerator: {_DISTRIBUTION}\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files[f"{name}.dist-info/WHEEL"] = wheel.encode()
    files[f"{name}.dist-info/RECORD"] = _record(files, f"{name}.dist-info/RECORD")

    target = Path(output) / f"{name}-{tag}.whl"
    with atomic_file(target) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return target


def _record(files: dict[str, bytes], own_path: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((path, f"sha256={digest}", len(content)))
    rows.writerow((own_path, "", ""))
    return text.getvalue().encode()
