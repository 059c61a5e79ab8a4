"""What the simulated kernels must agree with: brute force in float64, and the einsum form's own error in the dtype."""

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import torch
from simulator.runner import Simulator

from ccnet_hf.benchmark.forms import einsum_attention


# Relative to the einsum form's own error in half precision, and relative L2 in fp32.
HALF_PRECISION_FACTOR = 1.25
FLOAT_ERROR = 1e-5


@dataclass
class Case:
    """Inputs of one size, channels_last, with scores of standard deviation 1."""

    batch: int
    height: int
    width: int
    query_channels: int
    value_channels: int
    dtype: torch.dtype
    inputs: tuple[torch.Tensor, ...] = field(init=False)
    grad: torch.Tensor = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(0)

        def draw(channels: int, scale: float = 1.0) -> torch.Tensor:
            numbers = torch.randn(self.batch, self.height, self.width, channels, generator=generator) * scale
            return numbers.to(self.dtype).permute(0, 3, 1, 2)

        scale = self.query_channels**-0.25
        self.inputs = (draw(self.query_channels, scale), draw(self.query_channels, scale), draw(self.value_channels))
        self.grad = draw(self.value_channels)

    @cached_property
    def reference(self) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output, logsumexp and the three gradients in float64."""
        inputs = tuple(tensor.double().requires_grad_() for tensor in self.inputs)
        output, logsumexp = brute_force(*inputs)
        return output.detach(), logsumexp.detach(), torch.autograd.grad(output, inputs, self.grad.double())

    @cached_property
    def einsum(self) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Output and gradients of the einsum form in the case's dtype."""
        inputs = tuple(tensor.clone().requires_grad_() for tensor in self.inputs)
        output = einsum_attention(*inputs)
        return output.detach(), torch.autograd.grad(output, inputs, self.grad)


def brute_force(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Position by position: the softmax over its column without itself and its row, as the paper states it."""
    batch, _, height, width = query.shape
    outputs, logsumexps = [], []
    for image, row, column in itertools.product(range(batch), range(height), range(width)):
        places = [(i, column) for i in range(height) if i != row] + [(row, j) for j in range(width)]
        rows, columns = map(list, zip(*places, strict=True))
        scores = query[image, :, row, column] @ key[image][:, rows, columns]
        outputs.append(value[image][:, rows, columns] @ scores.softmax(0))
        logsumexps.append(scores.logsumexp(0))
    output = torch.stack(outputs).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    return output, torch.stack(logsumexps).reshape(batch, height, width)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the L2 norm; absolute where everything expected is 0, as the gradient of a lone position's query."""
    return ((found.double() - expected).norm() / (expected.norm() or 1)).item()


def check_error(name: str, found: torch.Tensor, expected: torch.Tensor, yardstick: torch.Tensor) -> None:
    """Fail where `found` is further from `expected` than its dtype allows."""
    allowed = FLOAT_ERROR
    if found.dtype != torch.float32:
        allowed = max(allowed, HALF_PRECISION_FACTOR * relative_error(yardstick, expected))
    error = relative_error(found, expected)
    if not error <= allowed:  # NaN is wrong as well
        raise AssertionError(f"{name}: relative error {error:.2e}, allowed {allowed:.2e}")


def check_case(simulator: Simulator, case: Case, seed: int = 0) -> None:
    """Forward, logsumexp, gradients, and the forward with residual."""
    expected, expected_logsumexp, expected_grads = case.reference
    yardstick, yardstick_grads = case.einsum
    output, logsumexp = simulator.forward(*case.inputs, seed=seed)
    check_error("output", output, expected, yardstick)
    torch.testing.assert_close(logsumexp.double(), expected_logsumexp, rtol=0, atol=1e-5)
    grads = simulator.backward(case.grad, *case.inputs, output, logsumexp, seed=seed)
    for name, found, *others in zip("query key value".split(), grads, expected_grads, yardstick_grads, strict=True):
        check_error(f"gradient of {name}", found, *others)
    gamma = torch.tensor([-0.75], dtype=case.dtype)
    output, _ = simulator.forward(*case.inputs, gamma, case.grad, seed=seed)
    check_error("output with residual", output, expected * -0.75 + case.grad, yardstick * gamma + case.grad)
