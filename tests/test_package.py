"""What is published: the source distribution, the wheel that is built from it, and their description."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ccnet_hf


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(project: Path, kind: str, output: Path) -> Path:
    """Build in a process of its own, with the setuptools that is installed here."""
    command = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=project, check=True, capture_output=True)
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[list[str], list[str]]:
    """Names of the files in the source distribution, and in the wheel built from it."""
    work = tmp_path_factory.mktemp("package")
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, work / "clone", ignore=leave_out)
    for name in ("sdist", "wheel"):
        (work / name).mkdir()
    with tarfile.open(build(work / "clone", "sdist", work / "sdist")) as archive:
        source = archive.getnames()
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    wheel = zipfile.ZipFile(build(unpacked, "wheel", work / "wheel")).namelist()
    return [name.partition("/")[2] for name in source], wheel


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    _, wheel = distributions
    expected = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "ccnet_hf").rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so", ".lock")
    }
    assert {name for name in wheel if ".dist-info/" not in name} == expected
    assert {"ccnet_hf/py.typed", "ccnet_hf/kernels/csrc/forward.cu"} <= expected


def test_the_source_distribution_holds_no_tests_pictures_or_weights(distributions):
    source, _ = distributions
    folders = {name.split("/")[0] for name in source if "/" in name}
    assert folders == {"src"}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= set(source)


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == ccnet_hf.__version__ == citation["version"]
    latest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert latest.split()[1] == PROJECT["version"]


@pytest.mark.parametrize(
    "tag, heading, succeeds",
    [
        ("v1.2.3", "## 1.2.3 (2026-01-31)", True),
        ("v1.2.4", "## 1.2.3 (2026-01-31)", False),
        ("v1.2.3", "## 1.2.3 (unreleased)", False),
    ],
)
def test_only_a_dated_version_is_published_under_its_tag(tag, heading, succeeds, tmp_path):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())
    (check,) = (
        step["run"] for step in workflow["jobs"]["build"]["steps"] if step.get("name") == "The tag is the version"
    )
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    environment = {"GITHUB_REF_NAME": tag, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-e", "-c", check], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode == 0) == succeeds


def test_the_training_script_brings_its_requirements():
    """`uv run scripts/train.py`: inline metadata (PEP 723) that names this clone, and extras that exist."""
    text = (ROOT / "scripts" / "train.py").read_text()
    (block,) = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text)
    metadata = tomllib.loads(re.sub("(?m)^# ?", "", block))
    (requirement,) = map(Requirement, metadata["dependencies"])
    assert requirement.extras <= PROJECT["optional-dependencies"].keys() and "train" in requirement.extras
    source = metadata["tool"]["uv"]["sources"][requirement.name]
    assert (ROOT / "scripts" / source["path"] / "pyproject.toml").resolve() == ROOT / "pyproject.toml"
    assert (requirement.name, metadata["requires-python"]) == (PROJECT["name"], PROJECT["requires-python"])


@pytest.mark.nightly
def test_the_requirements_of_the_training_script_can_be_met():
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is None:
        pytest.skip("needs uv")
    done = subprocess.run(
        [uv, "sync", "--dry-run", "--script", "scripts/train.py"], cwd=ROOT, capture_output=True, text=True
    )
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip("needs a package index")
    # Versions of uv say it in two ways.
    assert done.returncode == 0 and re.search(r"ccnet-hf(==\S+ \(from| @) file:", done.stderr)
