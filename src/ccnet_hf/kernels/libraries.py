"""Compiled libraries on disk: their names, their folders, and the GPUs they run on."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from packaging.version import Version

from ccnet_hf.errors import InputError


SOURCES = Path(__file__).parent / "csrc"
# The oldest PyTorch a library runs with: what it may use of the stable ABI.
TORCH_TARGET = "2.11"
NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    "-lineinfo",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-gnu-unique",
    "-cudart=static",
)

_STEM = "criss_cross_attention"
_ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")
_OLDEST = (8, 0)


def why_torch_is_too_old() -> str | None:
    """Why no library runs with this PyTorch, or `None` where one may."""
    if Version(torch.__version__).release >= Version(TORCH_TARGET).release:
        return None
    return f"it needs PyTorch {TORCH_TARGET} or newer, and this is {torch.__version__}"


def sources() -> list[Path]:
    """The files that make a library, in a fixed order."""
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cu", ".cuh", ".h"))


def sources_hash() -> str:
    """What a library was compiled from: changes with every source, flag, target and kind of processor."""
    digest = hashlib.sha256(" ".join((TORCH_TARGET, platform.machine(), *NVCC_FLAGS)).encode())
    for path in sources():
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Where compiled libraries are kept: `$CCNET_HF_CACHE/kernels`, by default `~/.cache/ccnet_hf/kernels`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccnet_hf"
    return Path(os.environ.get("CCNET_HF_CACHE") or default) / "kernels"


def code_targets(architectures: Sequence[str]) -> list[str]:
    """What nvcc is to generate: `["8.0", "9.0+PTX"]` gives `["sm_80", "sm_90", "compute_90"]`.

    Args:
        architectures: CUDA compute capabilities, with `a` or `f` for features of one generation and `+PTX` for code
            that later GPUs compile when they load it.

    Returns:
        Sorted nvcc code names without duplicates.

    Raises:
        InputError: a name of another form, or a capability below 8.0.
    """
    targets = set()
    for architecture in architectures:
        match = _ARCHITECTURE.fullmatch(architecture)
        if match is None:
            raise InputError(f"an architecture is written like 8.0, 9.0a or 9.0+PTX, got {architecture!r}")
        major, minor, features, with_ptx = match.groups()
        if (int(major), int(minor)) < _OLDEST:
            raise InputError(f"the kernels need compute capability 8.0 or newer, got {architecture}")
        targets.add(f"sm_{major}{minor}{features}")
        if with_ptx:
            targets.add(f"compute_{major}{minor}{features}")
    return sorted(targets, key=lambda target: (target.startswith("compute"), len(target), target))


def library_name(architectures: Sequence[str], toolkit: str) -> str:
    """File name of a library; it holds all that decides whether the library can be used.

    Args:
        architectures: as for `code_targets`.
        toolkit: version of the CUDA toolkit that compiles it, e.g. `"13.0"`.
    """
    parts = (_STEM, sources_hash(), f"torch{TORCH_TARGET}", f"cuda{toolkit}", *code_targets(architectures))
    return "-".join(parts) + ".so"


def library_targets(library: Path) -> list[str]:
    """The code a library holds, read from its name."""
    return library.name.removesuffix(".so").split("-")[4:]


def library_toolkit(library: Path) -> tuple[int, int]:
    """Version of the CUDA toolkit a library was compiled with, read from its name."""
    major, minor = library.name.split("-")[3].removeprefix("cuda").split(".")
    return int(major), int(minor)


def find_libraries() -> Iterator[Path]:
    """Libraries compiled from these sources: first those beside the package, then those of the cache."""
    for folder in (Path(__file__).parent, cache_folder()):
        yield from sorted(folder.glob(f"{_STEM}-{sources_hash()}-torch{TORCH_TARGET}-cuda*.so"))


def choose_library(
    libraries: Sequence[Path], capabilities: Sequence[tuple[int, int]], driver: tuple[int, int]
) -> Path | None:
    """The first library that runs on GPUs of all these compute capabilities, before them one that need not compile.

    Machine code needs a driver of the major version of the toolkit that made it, PTX one that knows the toolkit.

    Args:
        libraries: what `find_libraries` gives.
        capabilities: of the GPUs, e.g. `[(9, 0)]`.
        driver: version of CUDA the driver was made for.
    """
    machine_code = [
        (library, [target for target in library_targets(library) if target.startswith("sm_")])
        for library in libraries
        if library_toolkit(library)[0] <= driver[0]
    ]
    with_ptx = [(library, library_targets(library)) for library in libraries if library_toolkit(library) <= driver]
    for library, targets in machine_code + with_ptx:
        if all(runs_on(targets, capability) for capability in capabilities):
            return library
    return None


def runs_on(targets: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a library with this code runs on a GPU of this compute capability.

    Machine code runs on GPUs of its generation from its own revision on, code with features (`sm_90a`) on its own
    revision only; PTX (`compute_90`) runs on everything from its revision on.
    """
    for target in targets:
        kind, number = target.split("_")
        plain = number.rstrip("af")
        compiled = (int(plain[:-1]), int(plain[-1]))
        if plain != number:
            suits = compiled == capability
        elif kind == "sm":
            suits = compiled[0] == capability[0] and compiled <= capability
        else:
            suits = compiled <= capability
        if suits:
            return True
    return False
