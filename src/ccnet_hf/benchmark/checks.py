"""Is the operator right on this device? Every dtype and kind of shape against float64, and the tools around it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ccnet_hf import kernels
from ccnet_hf.benchmark.forms import Attention, einsum_attention
from ccnet_hf.benchmark.measuring import captured
from ccnet_hf.errors import InputError
from ccnet_hf.models.criss_cross_attention import (
    criss_cross_attention,
    criss_cross_attention_residual,
    criss_cross_attention_with_weights,
)


# Batch, query and key channels, value channels, height, width: lines of one position, tails of every tile, both of the
# kernels' directions longer than a tile, channels that are padded.
SHAPES = (
    (1, 64, 512, 97, 97),
    (2, 64, 512, 64, 128),
    (1, 64, 512, 128, 256),
    (2, 8, 16, 1, 7),
    (2, 8, 16, 7, 1),
    (1, 16, 40, 1, 1),
    (3, 32, 72, 65, 33),
    (1, 128, 136, 31, 130),
    (1, 12, 20, 9, 70),
    (2, 5, 7, 17, 3),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What the compiled kernels leave to PyTorch, and one axis, which they take as an image of one row.
OTHERS = (
    ((2, 16, 24, 40), torch.float32),
    ((1, 16, 24, 5, 6, 7), torch.float32),
    ((2, 136, 24, 9, 14), torch.float32),
    ((2, 16, 24, 9, 14), torch.float64),
)
# Relative L2 errors: fp32 absolutely, half precision relative to the einsum form's own error.
_FLOAT32_ERROR, _HALF_PRECISION_FACTOR = 1e-5, 1.25
# Of another way to compute the same in bfloat16: a few roundings. A position counted twice changes more.
_YARDSTICK_ERROR = 2e-2


@dataclass(frozen=True)
class Check:
    """One comparison: passed if `found` is at most `allowed`."""

    name: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.found <= self.allowed  # False for NaN


def check_operator(device: torch.device, yardsticks: Mapping[str, Attention]) -> None:
    """Print every check with what was found and what is allowed.

    Args:
        device: where the operator is checked.
        yardsticks: name -> what else computes criss-cross attention and is to be compared with.

    Raises:
        InputError: some checks failed; the message says how many.
    """
    launches = kernels.launches()
    checks = []
    for check in itertools.chain(numerical_checks(device), tool_checks(device), yardstick_checks(yardsticks, device)):
        checks.append(check)
        verdict = "ok    " if check.passed else "FAILED"
        print(f"{verdict} {check.name}: {check.found:.2e}, allowed {check.allowed:.2e}")
    print(
        f"{len(checks)} checks; the compiled kernels were launched {kernels.launches() - launches} times", end="\n\n"
    )
    failed = sum(not check.passed for check in checks)
    if failed:
        raise InputError(f"{failed} of {len(checks)} checks of the operator failed on {device}")


def _relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    norm = exact.norm()
    return ((actual.double() - exact).norm() / norm.clamp_min(1e-300)).item() if actual.numel() else 0.0


def _with_gradients(function: Callable[..., torch.Tensor], inputs, grad_output) -> tuple[torch.Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    return output.detach(), *torch.autograd.grad(output, inputs, grad_output)


def _explicit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return criss_cross_attention_with_weights(query, key, value)[0]


def _random_inputs(shape, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Query, key and value with scores of unit variance, and a gradient of the output; channels_last."""
    batch, query_key_size, channels, *size = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (query_key_size, query_key_size, channels, channels)
    tensors = [torch.randn(batch, channels, *size, generator=generator) for channels in sizes]
    tensors[0] *= query_key_size**-0.5
    memory_format = torch.channels_last if len(size) == 2 else torch.contiguous_format
    return [tensor.to(device, dtype).contiguous(memory_format=memory_format) for tensor in tensors]


def _name(shape, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}"


def _largest_error(actual, exact) -> float:
    return max(_relative_error(*pair) for pair in zip(actual, exact, strict=True))


def numerical_checks(device: torch.device) -> Iterator[Check]:
    """Output and gradients of every shape and dtype, the form with residual, views, large scores, determinism."""
    for shape in SHAPES:
        for dtype in DTYPES:
            name = _name(shape, dtype)
            *inputs, grad_output = _random_inputs(shape, dtype, device)
            exact = _with_gradients(_explicit, [tensor.double() for tensor in inputs], grad_output.double())
            ours = _with_gradients(criss_cross_attention, inputs, grad_output)
            theirs = _with_gradients(einsum_attention, inputs, grad_output)
            for part, actual, plain, expected in zip(("output", *"qkv"), ours, theirs, exact, strict=True):
                allowed = _FLOAT32_ERROR
                if dtype != torch.float32:
                    # Where the plain form happens to be exact, one rounding of the result is still due.
                    rounding = torch.finfo(dtype).eps / 2
                    allowed = max(_HALF_PRECISION_FACTOR * _relative_error(plain, expected), rounding)
                if part in "qk" and expected.norm() == 0:  # one position: two terms that cancel
                    terms = grad_output.double().norm() * inputs[2].double().norm()
                    yield Check(f"{name} gradient of {part}", (actual.double().norm() / terms).item(), _FLOAT32_ERROR)
                    continue
                yield Check(
                    f"{name} {part if part == 'output' else f'gradient of {part}'}",
                    _relative_error(actual, expected),
                    allowed,
                )

            gamma = torch.full((1,), 0.7, dtype=dtype, device=device)
            fused = criss_cross_attention_residual(*inputs, gamma, grad_output)
            expected = gamma.double() * exact[0] + grad_output.double()
            plain = gamma * theirs[0] + grad_output
            allowed = max(_FLOAT32_ERROR, _HALF_PRECISION_FACTOR * _relative_error(plain, expected))
            yield Check(f"{name} with residual", _relative_error(fused, expected), allowed)
            again = _with_gradients(criss_cross_attention, inputs, grad_output)
            differing = sum(not torch.equal(*pair) for pair in zip(ours, again, strict=True))
            yield Check(f"{name} results that differ between two runs", differing, 0)

    for dtype in DTYPES:
        yield _check_views(dtype, device)
        yield _check_large_scores(dtype, device)
    for shape, dtype in OTHERS:
        *inputs, grad_output = _random_inputs(shape, dtype, device)
        exact = _with_gradients(_explicit, [tensor.double() for tensor in inputs], grad_output.double())
        found = _largest_error(_with_gradients(criss_cross_attention, inputs, grad_output), exact)
        yield Check(f"{_name(shape, dtype)} forward and backward", found, _FLOAT32_ERROR)


def _check_views(dtype: torch.dtype, device: torch.device) -> Check:
    """Views of larger tensors, and NCHW memory, against dense channels_last tensors."""
    inputs = _random_inputs((2, 16, 24, 9, 14), dtype, device)[:3]
    wider = torch.cat([torch.cat([tensor, tensor], 1) for tensor in inputs], 1).contiguous(
        memory_format=torch.channels_last
    )
    views = [wider[:, :16], wider[:, 32:48], wider[:, 64:88]]
    expected = criss_cross_attention(*inputs).double()
    found = max(
        _relative_error(criss_cross_attention(*others), expected)
        for others in (views, [tensor.contiguous() for tensor in inputs])
    )
    # In PyTorch's form a matrix library may sum another layout in another order.
    return Check(f"{_name((2, 16, 24, 9, 14), dtype)} in other layouts", found, torch.finfo(dtype).eps)


def _check_large_scores(dtype: torch.dtype, device: torch.device) -> Check:
    """Scores of up to 6e4, near the largest number of fp16, give no NaN or infinity."""
    query, key, value, grad_output = _random_inputs((1, 8, 16, 12, 13), torch.float32, device)
    query, key = (tensor * (6e4 / 8) ** 0.5 / tensor.abs().max() for tensor in (query, key))
    inputs = [tensor.to(dtype) for tensor in (query, key, value)]
    results = _with_gradients(criss_cross_attention, inputs, grad_output.to(dtype))
    bad = sum((~result.isfinite()).sum().item() for result in results)
    return Check(f"{_name((1, 8, 16, 12, 13), dtype)} large scores: numbers that are not finite", bad, 0)


def tool_checks(device: torch.device) -> Iterator[Check]:
    """`opcheck`, `torch.compile`, autocast and, on CUDA, CUDA graphs."""
    yield from _opchecks(device)
    compiled = torch.compile(criss_cross_attention, fullgraph=True)
    # From its second size on torch.compile takes heights and widths as variables.
    for size in ((9, 14), (12, 10)):
        *inputs, grad_output = _random_inputs((2, 16, 24, *size), torch.float32, device)
        expected = [tensor.double() for tensor in _with_gradients(criss_cross_attention, inputs, grad_output)]
        found = _largest_error(_with_gradients(compiled, inputs, grad_output), expected)
        yield Check(f"torch.compile {'x'.join(map(str, size))}, forward and backward", found, 1e-6)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = _relative_error(criss_cross_attention(*inputs), expected[0])
    yield Check("under autocast", found, 1e-6)
    if device.type == "cuda":
        replay = captured(lambda: _with_gradients(criss_cross_attention, inputs, grad_output))
        yield Check("CUDA graph, forward and backward", _largest_error(replay(), expected), 1e-6)


def _opchecks(device: torch.device) -> Iterator[Check]:
    operators = torch.ops.ccnet_hf
    *inputs, grad_output = _random_inputs((2, 16, 24, 9, 14), torch.float32, device)
    saved = operators.criss_cross_attention(*inputs)
    gamma = torch.full((1,), 0.7, device=device, requires_grad=True)
    learning = [tensor.detach().requires_grad_() for tensor in inputs]
    samples = {
        operators.criss_cross_attention: (*learning,),
        operators.criss_cross_attention_residual: (*learning, gamma, grad_output),
        operators.criss_cross_attention_backward: (grad_output, *inputs, *saved),
    }
    for operator, arguments in samples.items():
        for test, result in torch.library.opcheck(operator, arguments, raise_exception=False).items():
            passed = result == "SUCCESS"
            name = f"opcheck {operator} {test}" if passed else f"opcheck {operator} {test}: {result}"
            yield Check(name, not passed, 0)


def yardstick_checks(yardsticks: Mapping[str, Attention], device: torch.device) -> Iterator[Check]:
    """Whether what the operator is measured against computes the same."""
    inputs = _random_inputs((2, 64, 128, 33, 65), torch.bfloat16, device)[:3]
    expected = _explicit(*(tensor.double() for tensor in inputs))
    for name, attention in yardsticks.items():
        with torch.inference_mode():
            found = _relative_error(attention(*inputs), expected)
        yield Check(f"{name} computes the same", found, _YARDSTICK_ERROR)
