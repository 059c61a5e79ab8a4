"""Finding the images that a user names, and naming the results."""

from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

from ccnet_hf.errors import InputError


# What a folder is searched for. A file named by the user, or matched by a pattern, is read whatever its suffix.
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())


def find_images(inputs: Sequence[str], exclude: Path | None = None) -> list[Path]:
    """The images that `inputs` name, in the order given, each once.

    Args:
        inputs: files, folders (the images directly inside, by name) and patterns (`**` reaches into subfolders).
        exclude: a folder that must not be among `inputs`, because results are written to it.

    Raises:
        InputError: an input does not exist, or a folder or pattern has no image; the message names it.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            if exclude is not None and path.resolve() == exclude.resolve():
                raise InputError(f"{name} is both input and output folder: a second run would read its own results")
            paths = sorted(p for p in path.iterdir() if _is_image(p))
            if not paths:
                raise InputError(f"no images in folder {name}")
        elif path.exists():
            paths = [path]
        elif any(character in name for character in "*?["):
            paths = sorted(p for p in map(Path, glob(name, recursive=True)) if p.is_file())
            if not paths:
                raise InputError(f"no file matches {name}")
        else:
            raise InputError(f"no such file or folder: {name}")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def unique_stems(paths: Iterable[Path]) -> list[str]:
    """One name per path to call its results by: the file's stem, numbered where several files have the same.

    Upper and lower case count as the same, as they do on some file systems.
    """
    paths = list(paths)
    taken = {path.stem.lower() for path in paths}
    seen: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 2
        if stem.lower() in seen:
            while f"{stem}_{number}".lower() in taken:
                number += 1
            stem = f"{stem}_{number}"
        seen.add(stem.lower())
        taken.add(stem.lower())
        stems.append(stem)
    return stems
