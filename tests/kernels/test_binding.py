"""The binding on CPU tensors, over the simulated kernels: views, padding, fallbacks and checks as on a GPU.

It is built as kernel-builder builds it: with operators in a namespace of its own, under the Python side of the project
that `python -m ccnet_hf.kernels hub` writes.
"""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from simulator.runner import SIMULATOR, SOURCES, find_compiler

from ccnet_hf.kernels.kernel_builder import write_project


NAMESPACE = "_criss_cross_attention_simulated"

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs g++ to run the CUDA kernels on the host")


def import_package(folder: Path, name: str):
    """Import a package from its folder under a name of its own, as the `kernels` library does."""
    specification = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("binding")
    root = Path(torch.__file__).parent
    flags = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]
    flags += ["-DCRISS_CROSS_SIMULATOR", f"-DTORCH_EXTENSION_NAME={NAMESPACE}"]
    flags += [f"-I{SIMULATOR}", f"-I{SOURCES}", "-isystem", str(root / "include")]
    files = [*SOURCES.glob("*.cu"), SIMULATOR / "simulator.cpp"]

    def compile_one(file: Path) -> str:
        target = str(folder / f"{file.stem}.o")
        subprocess.run([find_compiler(), *flags, "-x", "c++", "-c", str(file), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, files))
    library = folder / "simulated.so"
    subprocess.run(
        [find_compiler(), "-shared", *objects, "-o", str(library), f"-L{root / 'lib'}", "-ltorch_cpu"], check=True
    )
    package = write_project(folder / "project") / "torch-ext" / "criss_cross_attention"
    (package / "_ops.py").write_text(f"import torch\n\nops = torch.ops.{NAMESPACE}\n")
    module = import_package(package, NAMESPACE)
    # Only now: on the CPU the library takes the place of the PyTorch form, which the package has kept by then.
    torch.ops.load_library(str(library))
    return module


def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_inputs(batch: int, query_channels: int, value_channels: int, *spatial: int, dtype=torch.float32):
    channels = (query_channels, query_channels, value_channels)
    return [make(batch, count, *spatial, dtype=dtype, seed=seed) for seed, count in enumerate(channels)]


def run(kernel, tensors, grad=None):
    """Output and gradients through the binding and through the explicit form in float64."""
    found = [tensor.detach().requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output = kernel.criss_cross_attention(*found)
    expected, _ = kernel.criss_cross_attention_with_weights(*exact)
    grad = make(*output.shape, dtype=output.dtype, seed=9) if grad is None else grad.to(output.dtype)
    grads = torch.autograd.grad(output, found, grad)
    return [output, *grads], [expected, *torch.autograd.grad(expected, exact, grad.double())]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-12)).item()


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 8, 16, 5, 7), (1, 3, 5, 4, 6), (2, 13, 8, 6, 3), (1, 8, 19, 1, 9), (1, 8, 8, 9, 1), (2, 5, 11, 12)],
    ids=str,
)
def test_agrees_with_the_explicit_form(kernel, shape, dtype):
    """Channels that have to be padded, rows of one position, and one spatial axis."""
    found, expected = run(kernel, make_inputs(*shape, dtype=dtype))
    for result, truth in zip(found, expected, strict=True):
        assert result.dtype == dtype and result.shape == truth.shape
        assert relative_error(result, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "view",
    [
        lambda tensor: tensor.contiguous(),
        lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
        lambda tensor: torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]],
        lambda tensor: torch.cat([tensor, tensor], 2).to(memory_format=torch.channels_last)[:, :, : tensor.shape[2]],
        # One element off the 16 bytes that the kernels read at once.
        lambda tensor: torch.cat([tensor[:, :1], tensor], 1).to(memory_format=torch.channels_last)[:, 1:],
        lambda tensor: tensor.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["contiguous", "channels_last", "slice of channels", "slice of rows", "unaligned", "transposed"],
)
def test_reads_every_layout(kernel, view):
    tensors = make_inputs(2, 8, 24, 5, 7)
    expected = kernel.criss_cross_attention(*tensors)
    assert torch.equal(kernel.criss_cross_attention(*map(view, tensors)), expected)


def test_gradient_with_expanded_strides(kernel):
    found, expected = run(kernel, make_inputs(1, 8, 8, 4, 5), grad=torch.ones(1, 1, 1, 1).expand(1, 8, 4, 5))
    for result, truth in zip(found, expected, strict=True):
        assert relative_error(result, truth) < 1e-5


@pytest.mark.parametrize("channels", [16, 19])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gamma_and_residual(kernel, channels, dtype):
    tensors = make_inputs(2, 8, channels, 5, 7, dtype=dtype)
    gamma, residual = torch.tensor([0.7], dtype=dtype), make(2, channels, 5, 7, dtype=dtype, seed=5)
    expected, _ = kernel.criss_cross_attention_with_weights(*(tensor.double() for tensor in tensors))
    found = kernel.criss_cross_attention_residual(*tensors, gamma, residual)
    assert relative_error(found, gamma.double() * expected + residual.double()) < TOLERANCE[dtype]


def test_layout_of_the_results(kernel):
    """What the fake implementation promises to torch.compile, padding or not."""
    for channels in (16, 19):
        tensors = make_inputs(2, 8, channels, 5, 7)
        output, logsumexp = getattr(torch.ops, NAMESPACE).criss_cross_attention(*tensors)
        assert output.is_contiguous(memory_format=torch.channels_last) and logsumexp.is_contiguous()
        operator = getattr(torch.ops, NAMESPACE).criss_cross_attention.default
        torch.library.opcheck(operator, tensors, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 8, 8, 3, 4, 5), torch.float32), ((1, 8, 8, 4, 5), torch.float64), ((1, 130, 8, 4, 5), torch.float32)],
    ids=["three axes", "float64", "130 query channels"],
)
def test_what_the_kernels_do_not_take_runs_in_pytorch(kernel, shape, dtype):
    found, expected = run(kernel, make_inputs(*shape, dtype=dtype))
    for result, truth in zip(found, expected, strict=True):
        assert relative_error(result, truth) < 1e-5
    gamma, residual = torch.ones(1, dtype=dtype), torch.zeros_like(found[0].detach())
    fused = kernel.criss_cross_attention_residual(*make_inputs(*shape, dtype=dtype), gamma, residual)
    assert relative_error(fused, expected[0].detach()) < 1e-5


def test_empty_batch(kernel):
    output = kernel.criss_cross_attention(*make_inputs(0, 8, 16, 5, 7))
    assert output.shape == (0, 16, 5, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": make(1, 8, 4, 6)}, "same batch and spatial sizes"),
        ({"key": make(1, 8, 4, 5, dtype=torch.float16)}, "one dtype"),
        ({"query": make(1, 8), "key": make(1, 8), "value": make(1, 8)}, "1 to 3 spatial axes"),
        ({"value": make(1, 8, 4, 5).to("meta")}, "one CUDA device"),
    ],
    ids=["shape", "dtype", "axes", "device"],
)
def test_bad_input_is_shown(kernel, change, message):
    tensors = dict(zip(("query", "key", "value"), make_inputs(1, 8, 8, 4, 5), strict=True)) | change
    operator = getattr(torch.ops, NAMESPACE).criss_cross_attention.default
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError, match=message) as caught:
        operator.redispatch(on_cpu, *tensors.values())
    for name, tensor in tensors.items():
        sizes = ", ".join(map(str, tensor.shape))
        strides = ", ".join(map(str, tensor.stride()))
        assert f"{name} ({sizes}) with strides ({strides})" in str(caught.value)
