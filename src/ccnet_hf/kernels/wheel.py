"""A wheel of this package with a compiled library in it: for machines without a compiler."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file

from .build import platform_tag


_PROJECT = Path(__file__).parents[3]  # of a clone
_NEEDED = ("pyproject.toml", "README.md", "LICENSE")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "*.lock")


def build_wheel(library: Path, output: str | os.PathLike) -> Path:
    """Have pip pack this clone and a library into a wheel for this platform and every Python.

    Without a network where the build's requirements are installed here.

    Args:
        library: what `ccnet_hf.kernels.build.build` has returned.
        output: folder for the wheel.

    Returns:
        The wheel. It appears complete or not at all.

    Raises:
        InputError: the package does not run from a clone, this is no Linux, or pip fails.
        OSError: the wheel cannot be written.
    """
    if not all((_PROJECT / name).is_file() for name in _NEEDED):
        raise InputError("a wheel is made from a clone of the repository, and this package does not run from one")
    platform = platform_tag()
    with tempfile.TemporaryDirectory() as work:
        project, built = Path(work) / "project", Path(work) / "built"
        shutil.copytree(_PROJECT / "src", project / "src", ignore=_NOT_COPIED)
        for name in _NEEDED:
            shutil.copyfile(_PROJECT / name, project / name)
        shutil.copyfile(library, project / "src" / "ccnet_hf" / "kernels" / library.name)
        options = [f"--config-settings=--build-option=--plat-name={platform}", "--wheel-dir", str(built)]
        _run_pip("wheel", "--no-deps", "--disable-pip-version-check", *_isolation(), *options, str(project))
        (wheel,) = built.glob("*.whl")
        target = Path(output) / wheel.name
        with atomic_file(target) as unfinished:
            shutil.copyfile(wheel, unfinished)
    return target


def _isolation() -> list[str]:
    """Nothing where pip has to download what builds the package; otherwise the option not to."""
    requirements = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    for requirement in map(Requirement, requirements):
        try:
            if importlib.metadata.version(requirement.name) not in requirement.specifier:
                return []
        except importlib.metadata.PackageNotFoundError:
            return []
    return ["--no-build-isolation"]


def _run_pip(*arguments: str) -> None:
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise InputError(f"pip failed with status {result.returncode}: {told[0] if told else 'it said nothing'}")
