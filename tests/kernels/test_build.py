"""Building the CUDA library: what is compiled, where it is kept, and what is said when it cannot be."""

import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

from ccnet_hf.errors import InputError
from ccnet_hf.kernels import build as build_module
from ccnet_hf.kernels import libraries
from ccnet_hf.kernels import wheel as wheel_module
from ccnet_hf.kernels.__main__ import main
from ccnet_hf.kernels.build import build, default_architectures
from ccnet_hf.kernels.wheel import build_wheel


ROOT = Path(__file__).parents[2]

# Says its version; else notes its arguments, takes its time, and writes something where the library belongs.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.48" && exit
echo "$@" >> "$(dirname "$0")/calls"
sleep 0.3
while [ $# -gt 1 ]; do
  [ "$1" = -o ] && echo library > "$2"
  shift
done
"""


@pytest.fixture
def toolkit(tmp_path, monkeypatch) -> Path:
    """A CUDA toolkit with a compiler that only pretends, a C++ compiler, a PyTorch with CUDA, and an empty cache."""
    home = tmp_path / "toolkit"
    root = tmp_path / "torch"
    (home / "bin").mkdir(parents=True)
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "libtorch_cuda.so").touch()
    write_nvcc(home, NVCC)
    monkeypatch.setattr(torch, "__file__", str(root / "__init__.py"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setenv("CCNET_HF_CACHE", str(tmp_path / "cache"))
    return home


def write_nvcc(home: Path, text: str) -> None:
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(text)
    nvcc.chmod(0o755)


def calls(home: Path) -> list[str]:
    path = home / "bin" / "calls"
    return path.read_text().splitlines() if path.exists() else []


def only_message(capsys) -> str:
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_an_older_pytorch_is_refused(toolkit, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    with pytest.raises(InputError, match=r"the library cannot be compiled: it needs PyTorch 2\.11 or newer"):
        build(["8.0"])


def test_targets():
    assert libraries.code_targets(["9.0+PTX", "8.0", "8.0"]) == ["sm_80", "sm_90", "compute_90"]
    assert set(libraries.code_targets(["12.0", "9.0a"])) == {"sm_120", "sm_90a"}
    for wrong in ("sm_90", "90", "9.0b", ""):
        with pytest.raises(ValueError, match="is written like"):
            libraries.code_targets([wrong])
    with pytest.raises(ValueError, match=r"8\.0 or newer, got 7\.5"):
        libraries.code_targets(["7.5"])


@pytest.mark.parametrize(
    ("targets", "capability", "expected"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 9), True),
        (["sm_89"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (9, 2), False),
        (["compute_90"], (12, 0), True),
        (["compute_90"], (8, 9), False),
        (["sm_120"], (12, 1), True),
        ([], (9, 0), False),
    ],
)
def test_which_gpus_a_library_runs_on(targets, capability, expected):
    assert libraries.runs_on(targets, capability) is expected


def test_choice_of_a_library():
    def named(toolkit, *architectures):
        return Path(libraries.library_name(architectures, toolkit))

    portable, native = named("13.0", "8.0", "9.0+PTX"), named("13.0", "12.0")
    choose = libraries.choose_library
    assert choose([portable, native], [(9, 0)], (13, 1)) == portable
    assert choose([portable, native], [(12, 0)], (13, 1)) == native  # rather than PTX, though it comes later
    assert choose([portable], [(12, 0)], (13, 0)) == portable
    assert choose([portable, native], [(9, 0), (12, 0)], (13, 0)) == portable
    # A driver older than the toolkit: machine code within one major version, PTX not even there.
    newer = named("13.2", "9.0+PTX")
    assert choose([newer], [(9, 0)], (13, 0)) == newer and choose([newer], [(9, 0)], (12, 8)) is None
    assert choose([newer], [(12, 0)], (13, 0)) is None and choose([newer], [(12, 0)], (13, 2)) == newer


def test_default_architectures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_architectures() == ["8.0", "9.0+PTX"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6), (9, 0)][index])
    assert default_architectures() == ["8.6", "9.0"]


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("CCNET_HF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert libraries.cache_folder() == Path.home() / ".cache" / "ccnet_hf" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert libraries.cache_folder() == Path("/elsewhere/ccnet_hf/kernels")
    monkeypatch.setenv("CCNET_HF_CACHE", "/mine")
    assert libraries.cache_folder() == Path("/mine/kernels")


def test_sources_decide_the_name(tmp_path, monkeypatch):
    name = libraries.library_name(["8.0"], "13.0")
    shutil.copytree(libraries.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(libraries, "SOURCES", tmp_path / "csrc")
    assert libraries.library_name(["8.0"], "13.0") == name
    assert libraries.library_name(["9.0"], "13.0") != name
    with open(tmp_path / "csrc" / "binding.cu", "a") as source:
        source.write("// changed\n")
    assert libraries.library_name(["8.0"], "13.0") != name


def test_build_once(toolkit):
    library = build(["9.0+PTX"])
    assert library.read_text() == "library\n" and library.parent == libraries.cache_folder()
    assert libraries.library_targets(library) == ["sm_90", "compute_90"]
    assert libraries.library_toolkit(library) == (13, 0)
    assert build(["9.0+PTX"]) == library and list(libraries.find_libraries()) == [library]
    (call,) = calls(toolkit)
    assert "arch=compute_90,code=sm_90" in call and "arch=compute_90,code=compute_90" in call
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000ULL" in call and "binding.cu" in call
    assert build(["8.0"]) != library and len(calls(toolkit)) == 2


def test_build_after_a_change_of_the_sources(toolkit, tmp_path, monkeypatch):
    first = build(["8.0"])
    shutil.copytree(libraries.SOURCES, tmp_path / "csrc")
    (tmp_path / "csrc" / "more.cu").write_text("// another kernel\n")
    for module in (libraries, build_module):
        monkeypatch.setattr(module, "SOURCES", tmp_path / "csrc")
    assert build(["8.0"]) != first and "more.cu" in calls(toolkit)[1]


def test_build_from_several_processes(toolkit):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build, args=(["8.0"],)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(calls(toolkit)) == 1 and len(list(libraries.find_libraries())) == 1


def test_a_killed_build_leaves_no_library(toolkit):
    version = '[ "$1" = --version ] && echo "release 13.0," && exit'
    half = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo half > "$2"; shift; done'
    write_nvcc(toolkit, f"#!/bin/sh\n{version}\n{half}\nkill -9 $PPID\n")
    process = multiprocessing.get_context("fork").Process(target=build, args=(["8.0"],))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert list(libraries.find_libraries()) == [] and list(libraries.cache_folder().glob(".*.unfinished.so"))
    write_nvcc(toolkit, NVCC)
    library = build(["8.0"])
    assert library.read_text() == "library\n"
    assert sorted(path.suffix for path in library.parent.iterdir()) == [".lock", ".so"]


@pytest.mark.parametrize("options", [[], ["--wheel"]])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(options, toolkit, tmp_path, capsys, full_disk):
    with full_disk(1000):
        assert main(["build", "--arch", "8.0", "--output", str(tmp_path / "here"), *options]) == 1
    assert "here cannot be written: file too large" in only_message(capsys)
    assert calls(toolkit) == [] and not (tmp_path / "here").exists()


def test_a_full_disk_leaves_no_wheel(toolkit, tmp_path, full_disk):
    library = build(["8.0"])
    with full_disk(10_000), pytest.raises((InputError, OSError), match=r"(?i)file too large"):
        build_wheel(library, tmp_path / "dist")
    assert not (tmp_path / "dist").exists() or list((tmp_path / "dist").iterdir()) == []


def test_build_into_a_folder(toolkit, tmp_path, capsys):
    assert main(["build", "--arch", "8.0", "9.0", "--output", str(tmp_path / "here")]) == 0
    library = Path(capsys.readouterr().out.strip())
    assert library.parent == tmp_path / "here" and libraries.library_targets(library) == ["sm_80", "sm_90"]


def test_sources_that_do_not_compile(toolkit, capsys):
    version = '[ "$1" = --version ] && echo "release 12.9," && exit'
    write_nvcc(
        toolkit, f'#!/bin/sh\n{version}\necho "in file one"\necho "binding.cu(7): error: no such thing" >&2\nexit 2\n'
    )
    assert main(["build", "--arch", "8.0"]) == 1
    assert "binding.cu(7): error: no such thing" in only_message(capsys)
    assert [path.suffix for path in libraries.cache_folder().iterdir()] == [".lock"]


def test_no_nvcc(toolkit, capsys, monkeypatch):
    (toolkit / "bin" / "nvcc").unlink()
    monkeypatch.setenv("PATH", str(toolkit))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["build", "--arch", "8.0"]) == 1
    assert "no nvcc was found" in only_message(capsys)


def test_nvcc_without_a_version(toolkit, capsys):
    write_nvcc(toolkit, "#!/bin/sh\necho something else\n")
    assert main(["build", "--arch", "8.0"]) == 1
    assert "--version does not say" in only_message(capsys)


def test_no_compiler(toolkit, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["build", "--arch", "8.0"]) == 1
    assert "no-such-compiler" in only_message(capsys)


def test_pytorch_without_cuda(toolkit, capsys):
    (Path(torch.__file__).parent / "lib" / "libtorch_cuda.so").unlink()
    assert main(["build", "--arch", "8.0"]) == 1
    assert "built without CUDA" in only_message(capsys)


def test_help(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("build", "info", "hub"))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 2), (["compile"], 2), (["build", "--colour", "red"], 2), (["build", "--arch", "7.0"], 1), (["hub"], 2)],
)
def test_bad_arguments(toolkit, capsys, arguments, status):
    try:
        found = main(arguments)
    except SystemExit as stop:
        found = stop.code
    assert found == status
    only_message(capsys)


def _need_pip() -> None:
    """Not by importing it, which puts the standard library's distutils in the place of setuptools' in this process."""
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs pip")


def test_wheel(toolkit, tmp_path, capsys):
    _need_pip()
    assert main(["build", "--arch", "8.0", "--wheel", "--output", str(tmp_path / "dist")]) == 0
    wheel = Path(capsys.readouterr().out.strip())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert wheel.name.startswith(f"ccnet_hf-{version}-py3-none-linux_") and wheel.parent == tmp_path / "dist"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
        names = archive.namelist()
    here = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "ccnet_hf").rglob("*.py")}
    assert here <= set(names) and "ccnet_hf/kernels/csrc/binding.cu" in names
    assert not any("__pycache__" in name for name in names)

    # The unpacked package finds its library before the cache's.
    path = tmp_path / "unpacked" / "ccnet_hf" / "kernels" / "libraries.py"
    specification = importlib.util.spec_from_file_location("unpacked_libraries", path)
    unpacked = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(unpacked)
    beside, cached = unpacked.find_libraries()
    assert beside.parent == path.parent and cached.parent == libraries.cache_folder() and beside.name == cached.name


def test_wheel_needs_a_clone(toolkit, monkeypatch, tmp_path):
    monkeypatch.setattr(wheel_module, "_PROJECT", tmp_path)
    with pytest.raises(InputError, match="made from a clone"):
        build_wheel(build(["8.0"]), tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_pip_that_fails_is_quoted(toolkit, monkeypatch, tmp_path):
    _need_pip()
    monkeypatch.setattr(wheel_module, "_isolation", lambda: ["--no-such-option"])
    with pytest.raises(InputError, match=r"pip failed with status 2: .*no such option"):
        build_wheel(build(["8.0"]), tmp_path / "dist")


# --- the real compiler ---------------------------------------------------------------------------------------------

# What the library does in a process of its own: loading replaces the operator's CUDA implementation for good.
LOADED = """
import json, sys
from pathlib import Path
import torch
import ccnet_hf
from ccnet_hf.kernels import load

operator = torch.ops.ccnet_hf.criss_cross_attention
on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
load._find_library = lambda: (Path(sys.argv[1]), None)
query, value = torch.randn(1, 8, 3, 4, 5), torch.randn(1, 16, 3, 4, 5)
found, expected = operator.default.redispatch(on_cuda, query, query, value), operator(query, query, value)
try:
    operator.default.redispatch(on_cuda, query[..., 0], query[..., 0], value[..., 0])
    error = None
except RuntimeError as raised:
    error = str(raised)
information = ccnet_hf.kernels.info()
print(json.dumps({
    "fallback": all(map(torch.equal, found, expected)), "error": error, "path": information.path,
    "loaded": information.loaded, "library": str(information.library), "launches": ccnet_hf.kernels.launches(),
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        pytest.skip("needs nvcc to compile the CUDA library")
    return build(["8.0"], tmp_path_factory.mktemp("library"))


@pytest.mark.nightly
def test_library_uses_the_stable_interface_only(library):
    lines = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [(line.split()[-2], line.split()[-1].split("@")[0]) for line in lines]
    undefined = [name for kind, name in symbols if kind == "U"]
    assert "torch_call_dispatcher" in undefined and "aoti_torch_get_current_cuda_stream" in undefined
    # Mangled names of c10, at, torch and caffe2.
    assert not [name for name in undefined if any(space in name for space in ("3c10", "2at", "5torch", "6caffe2"))]
    defined = [name for kind, name in symbols if kind == "T"]
    assert "ccnet_hf_launches" in defined


@pytest.mark.nightly
def test_library_loads_without_a_gpu(library):
    result = subprocess.run([sys.executable, "-c", LOADED, str(library)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    error = found.pop("error")
    assert error.startswith("criss_cross_attention needs one CUDA device") and "query (1, 8, 3, 4)" in error
    assert found == {"fallback": True, "path": "cuda", "loaded": True, "library": str(library), "launches": 0}
