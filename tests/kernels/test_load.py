"""Which implementation runs on CUDA. The dispatcher is sent there with CPU tensors, so that no GPU is needed."""

import importlib.util
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ccnet_hf
from ccnet_hf.errors import InputError
from ccnet_hf.kernels import libraries, load
from ccnet_hf.kernels.__main__ import main


ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
OPERATORS = ("criss_cross_attention", "criss_cross_attention_residual", "criss_cross_attention_backward")


def make_inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, channels, 4, 5, generator=generator) for channels in (8, 8, 16))


def call_on_cuda() -> tuple[torch.Tensor, ...]:
    return torch.ops.ccnet_hf.criss_cross_attention.default.redispatch(ON_CUDA, *make_inputs())


def has_cuda_kernel(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ccnet_hf::{name}", "CUDA")


@pytest.fixture(autouse=True)
def undecided(monkeypatch, tmp_path, caplog):
    """Before the first CUDA call, with an empty cache; and again afterwards."""
    monkeypatch.delenv("CCNET_HF_KERNELS", raising=False)
    monkeypatch.setenv("CCNET_HF_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.WARNING)
    if load._loaded is not None:
        pytest.skip("the compiled library is loaded in this process already, which cannot be undone")
    load.attach()
    yield
    monkeypatch.undo()
    load.attach()


@pytest.fixture
def gpu(monkeypatch) -> None:
    """As on a machine with an H200, as far as the choice looks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(load, "_driver_version", lambda: (13, 1))


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def put_library(folder: Path, *architectures: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / libraries.library_name(architectures, "13.0")
    library.write_text("no library at all")
    return library


@pytest.mark.parametrize("mode", ["auto", "cuda"])
def test_with_an_older_pytorch_there_is_nothing_to_choose(mode, gpu, monkeypatch, tmp_path):
    put_library(tmp_path / "cache" / "kernels", "9.0")
    load._detach()
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu126")
    monkeypatch.setenv("CCNET_HF_KERNELS", mode)
    reason = "it needs PyTorch 2.11 or newer, and this is 2.6.0+cu126"
    if mode == "cuda":
        with pytest.raises(InputError, match=re.escape(reason)):
            load.attach()
        return
    load.attach()
    assert not any(map(has_cuda_kernel, OPERATORS))
    assert call_on_cuda()[0].shape == (1, 16, 4, 5)
    assert (load.info().path, load.info().reason) == ("torch", reason)


# --- before the first call -----------------------------------------------------------------------------------------


def test_import_loads_nothing():
    """In a process of its own, where asking for CUDA fails."""
    code = """
import torch
def forbidden(*args, **kwargs):
    raise AssertionError("asked for CUDA")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = forbidden
import ccnet_hf, sys
assert not torch.cuda.is_initialized()
assert "ccnet_hf.kernels.build" not in sys.modules and "ccnet_hf.kernels.kernel_builder" not in sys.modules
assert "criss_cross_attention-" not in open("/proc/self/maps").read()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_attached_once():
    assert all(map(has_cuda_kernel, OPERATORS))
    stand_ins = load._stand_ins
    load.attach()
    assert load._stand_ins is stand_ins


def test_copies_of_the_operator_change_nothing():
    """A checkpoint's remote code brings a copy of the file, before this package or after it."""
    stand_ins = load._stand_ins
    path = Path(ccnet_hf.__file__).parent / "models" / "criss_cross_attention.py"
    specification = importlib.util.spec_from_file_location("remote_criss_cross_attention", path)
    copy = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(copy)
    assert load._stand_ins is stand_ins and all(map(has_cuda_kernel, OPERATORS))
    assert torch.equal(copy.criss_cross_attention(*make_inputs()), ccnet_hf.criss_cross_attention(*make_inputs()))


def test_tracing_does_not_choose():
    with FakeTensorMode():
        tensors = [torch.empty(1, channels, 4, 5, device="cuda", requires_grad=True) for channels in (8, 8, 16)]
        output = ccnet_hf.criss_cross_attention(*tensors)
        assert output.device.type == "cuda" and output.shape == (1, 16, 4, 5) and output.requires_grad
    output = ccnet_hf.criss_cross_attention(*(tensor.to("meta") for tensor in make_inputs()))
    assert output.shape == (1, 16, 4, 5)

    class Attention(torch.nn.Module):
        def forward(self, *tensors):
            return ccnet_hf.criss_cross_attention(*tensors)

    expected = ccnet_hf.criss_cross_attention(*make_inputs())
    compiled = torch.compile(Attention(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(*make_inputs()), expected)
    exported = torch.export.export(Attention(), make_inputs())
    torch.testing.assert_close(exported.module()(*make_inputs()), expected)
    assert load._stand_ins is not None


# --- the choice ----------------------------------------------------------------------------------------------------


def test_pytorch_is_chosen_and_says_so_once(gpu, caplog):
    expected = torch.ops.ccnet_hf.criss_cross_attention(*make_inputs())
    for _ in range(3):
        assert all(map(torch.equal, call_on_cuda(), expected))
    (record,) = caplog.records
    assert "python -m ccnet_hf.kernels build" in record.getMessage() and record.levelname == "WARNING"
    # Out of the way: PyTorch's form is called without a detour, even if a library comes later.
    assert not any(map(has_cuda_kernel, OPERATORS))
    put_library(libraries.cache_folder(), "9.0")
    assert load.info().path == "torch" and "no compiled library" in load.info().reason


@pytest.mark.parametrize("name", OPERATORS[1:])
def test_every_operator_chooses(name, gpu):
    query, key, value = make_inputs()
    if name == "criss_cross_attention_residual":
        tensors = query, key, value, torch.ones(1), value
    else:
        tensors = value, query, key, value, *torch.ops.ccnet_hf.criss_cross_attention(query, key, value)
    operator = getattr(torch.ops.ccnet_hf, name)
    assert all(map(torch.equal, operator.default.redispatch(ON_CUDA, *tensors), operator(*tensors)))
    assert not has_cuda_kernel(name)


def test_threads_choose_together(gpu, caplog):
    """As `DataParallel` does on its first batch."""
    expected = torch.ops.ccnet_hf.criss_cross_attention(*make_inputs())
    barrier, results = threading.Barrier(8), []

    def run():
        barrier.wait()
        results.append(call_on_cuda())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(torch.equal(result[0], expected[0]) for result in results)
    assert len(caplog.records) == 1


def test_torch_on_request_is_silent(gpu, monkeypatch, caplog):
    monkeypatch.setenv("CCNET_HF_KERNELS", "torch")
    put_library(libraries.cache_folder(), "9.0")
    call_on_cuda()
    assert not caplog.records and not has_cuda_kernel("criss_cross_attention")


@pytest.mark.parametrize("reason", ["no library", "broken library"])
def test_cuda_on_request_fails_with_the_reason(gpu, monkeypatch, reason):
    monkeypatch.setenv("CCNET_HF_KERNELS", "cuda")
    if reason == "broken library":
        put_library(libraries.cache_folder(), "9.0")
    message = {"no library": "no compiled library was found", "broken library": "cannot be loaded"}[reason]
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            call_on_cuda()
    # The answer can change: after a build, or with another value.
    monkeypatch.setenv("CCNET_HF_KERNELS", "torch")
    call_on_cuda()


def test_a_broken_library_is_passed_over(gpu, caplog):
    library = put_library(libraries.cache_folder(), "9.0")
    expected = torch.ops.ccnet_hf.criss_cross_attention(*make_inputs())
    assert all(map(torch.equal, call_on_cuda(), expected))
    assert str(library) in caplog.text and "cannot be loaded" in caplog.text


def test_unknown_value(gpu, monkeypatch, capsys):
    monkeypatch.setenv("CCNET_HF_KERNELS", "triton")
    with pytest.raises(ValueError, match="one of auto, cuda, torch, got 'triton'"):
        call_on_cuda()
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("error: CCNET_HF_KERNELS is one of auto, cuda, torch")


# --- info ----------------------------------------------------------------------------------------------------------


def test_info_without_a_library(gpu):
    information = load.info()
    assert (information.path, information.library, information.loaded) == ("torch", None, False)
    assert information.torch_version == torch.__version__ and "no compiled library" in information.reason
    assert load.launches() == 0


def test_without_a_library_the_driver_is_not_asked(gpu, monkeypatch):
    """It has another name where there are no libraries, on Windows."""
    monkeypatch.setattr(load, "_driver_version", lambda: pytest.fail("asked the driver"))
    expected = torch.ops.ccnet_hf.criss_cross_attention(*make_inputs())
    assert all(map(torch.equal, call_on_cuda(), expected))


def test_info_with_a_library(gpu, capsys):
    library = put_library(libraries.cache_folder(), "8.0", "9.0+PTX")
    put_library(libraries.cache_folder(), "8.0")
    information = load.info()
    assert (information.path, information.library, information.reason) == ("cuda", library, None)
    assert information.targets == ("sm_80", "sm_90", "compute_90") and not information.loaded
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for part in ("the compiled kernels", str(library), "sm_80 sm_90 compute_90", torch.__version__):
        assert part in shown


def test_a_library_beside_the_package_comes_first(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(libraries, "__file__", str(tmp_path / "package" / "libraries.py"))
    cached = put_library(libraries.cache_folder(), "9.0")
    assert load.info().library == cached
    beside = put_library(tmp_path / "package", "9.0")
    assert load.info().library == beside


def test_info_without_a_gpu(no_gpu, capsys):
    put_library(libraries.cache_folder(), "9.0")
    assert main(["info"]) == 0
    assert "finds no CUDA device" in capsys.readouterr().out


def test_reasons(gpu, monkeypatch):
    put_library(libraries.cache_folder(), "8.0")
    assert "(sm_80 by CUDA 13.0) do not run on compute capability 9.0" in load.info().reason
    put_library(libraries.cache_folder(), "9.0")
    monkeypatch.setattr(load, "_driver_version", lambda: (12, 8))
    assert "with a driver for CUDA 12.8" in load.info().reason
    monkeypatch.setenv("CCNET_HF_KERNELS", "torch")
    assert load.info().reason == "CCNET_HF_KERNELS=torch"
    monkeypatch.delenv("CCNET_HF_KERNELS")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    assert "8.0 or newer, and here are 7.5" in load.info().reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in load.info().reason


def test_a_library_of_other_sources_is_not_used(gpu, monkeypatch):
    library = put_library(libraries.cache_folder(), "9.0")
    assert load.info().library == library
    monkeypatch.setattr(libraries, "NVCC_FLAGS", ("-O0",))
    assert load.info().library is None
