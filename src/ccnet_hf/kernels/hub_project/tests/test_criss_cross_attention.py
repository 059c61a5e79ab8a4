"""Against the explicit form in float64, on a GPU."""

import criss_cross_attention as kernel
import pytest
import torch


# Relative to the largest element: a few roundings of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 512, 33, 65), (1, 8, 24, 1, 40), (1, 13, 19, 7, 5)], ids=str)
def test_forward_and_backward(dtype, shape):
    batch, query_channels, value_channels, *spatial = shape
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(batch, channels, *spatial, generator=generator, device="cuda", dtype=dtype).requires_grad_()
        for channels in (query_channels, query_channels, value_channels)
    ]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected, _ = kernel.criss_cross_attention_with_weights(*exact)
    output = kernel.criss_cross_attention(*tensors)
    weights = torch.randn(expected.shape, generator=generator, device="cuda", dtype=torch.float64)
    (expected * weights).sum().backward()
    (output.double() * weights).sum().backward()
    found = [output.detach(), *(tensor.grad for tensor in tensors)]
    for result, truth in zip(found, [expected.detach(), *(tensor.grad for tensor in exact)], strict=True):
        assert (result.double() - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()
