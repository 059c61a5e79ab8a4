"""Compile the CUDA kernels into one library for every PyTorch from 2.11 on."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file, check_writable, exclusive, remove_leftovers

from .libraries import (
    NVCC_FLAGS,
    SOURCES,
    TORCH_TARGET,
    cache_folder,
    code_targets,
    library_name,
    sources,
    why_torch_is_too_old,
)


def default_architectures() -> list[str]:
    """The GPUs of this machine; without any, 8.0 and 9.0 and PTX for what comes after."""
    if not torch.cuda.is_available():
        return ["8.0", "9.0+PTX"]
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(capabilities)]


def build(architectures: Sequence[str] | None = None, output: str | os.PathLike | None = None) -> Path:
    """Compile the library, unless it lies there already. Safe when several processes start at once.

    Args:
        architectures: CUDA compute capabilities such as `"9.0"` or `"9.0+PTX"`; `None` takes
            `default_architectures`.
        output: folder for the library; `None` takes the cache, where the operator looks for it.

    Returns:
        The library. It appears complete or not at all, under a name that says what it holds.

    Raises:
        InputError: an architecture that is none, or too old; no nvcc, no C++ compiler, a PyTorch without CUDA or
            before 2.11, or sources that do not compile.
        OSError: the folder cannot be written.
    """
    if reason := why_torch_is_too_old():
        raise InputError(f"the library cannot be compiled: {reason}")
    architectures = architectures or default_architectures()
    library = Path(output or cache_folder()) / library_name(architectures, _toolkit_version())
    if library.exists():
        return library
    check_writable(library.parent)
    with exclusive(library, wait=True):
        remove_leftovers(library.parent, library.name)
        if not library.exists():
            with atomic_file(library) as unfinished:
                _compile(_nvcc_command(code_targets(architectures), unfinished))
    return library


def _nvcc_command(targets: list[str], library: Path) -> list[str]:
    root = Path(torch.__file__).parent
    if not any((root / "lib").glob("libtorch_cuda.*")):
        raise InputError(f"PyTorch {torch.__version__} is built without CUDA, and the library needs one that has it")
    code = []
    for target in targets:
        code += ["-gencode", f"arch=compute_{target.split('_')[1]},code={target}"]
    return [
        str(_find_nvcc()),
        *("-ccbin", _find_compiler()),
        *NVCC_FLAGS,
        *code,
        "--threads=0",
        f"-DTORCH_TARGET_VERSION={_version_number(TORCH_TARGET)}",
        *("-I", str(root / "include"), "-L", str(root / "lib")),
        # Relative to the folder of the sources, so that no folder's name is compiled in.
        *(path.name for path in sources() if path.suffix == ".cu"),
        *("-shared", "-o", str(library.resolve())),
        *("-Xlinker", "--as-needed", "-ltorch_cpu", "-ltorch_cuda"),
    ]


def _compile(command: list[str]) -> None:
    result = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, errors="replace")
    if result.returncode != 0:
        lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise InputError(f"nvcc failed with status {result.returncode}: {told[0] if told else 'it said nothing'}")


def _version_number(version: str) -> str:
    major, minor = map(int, version.split("."))
    return f"0x{major:02x}{minor:02x}000000000000ULL"


def _find_nvcc() -> str:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in homes:
        if nvcc := shutil.which(Path(home) / "bin" / "nvcc"):
            return nvcc
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise InputError(
            "no nvcc was found in CUDA_HOME, on PATH or in /usr/local/cuda: install the CUDA toolkit, or use a wheel "
            "that `python -m ccnet_hf.kernels build --wheel` has made elsewhere"
        )
    return nvcc


def _toolkit_version() -> str:
    nvcc = _find_nvcc()
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", said)
    if match is None:
        raise InputError(f"{nvcc} --version does not say which CUDA it belongs to")
    return match[1]


def _find_compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in wanted:
        if compiler := shutil.which(name):
            return compiler
    raise InputError(f"no C++ compiler was found (looked for {', '.join(wanted)}): install one, or name it in CXX")


def platform_tag() -> str:
    """The platform part of a wheel's name, e.g. `linux_x86_64`."""
    if sys.platform != "linux":
        raise InputError(f"the library is built on Linux, not on {sys.platform}")
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
