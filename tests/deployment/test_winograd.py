"""Winograd's convolution against the plain one, in float64, where the transforms are exact up to rounding."""

import pytest
import torch
from torch import nn

from ccnet_hf.deployment import winograd
from ccnet_hf.deployment.winograd import WinogradConv2d, takes_winograd


def convolution(channels=5, out_channels=7, dilation=1, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Conv2d(channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias, dtype=dtype)


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 4), (7, 13), (16, 12), (17, 3), (33, 41)])
def test_it_equals_the_plain_convolution(size, dilation, tile):
    plain = convolution(dilation=dilation)
    images = torch.randn(2, 5, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(WinogradConv2d(plain, tile)(images), plain(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_any_size_give_the_same(memory_format, monkeypatch):
    plain = convolution(dilation=2, bias=False)
    images = torch.randn(2, 5, 30, 26, dtype=torch.float64).to(memory_format=memory_format)
    with torch.no_grad():
        expected = plain(images)
        for tiles in (1, 20, 10_000):
            monkeypatch.setattr(winograd, "_TILES_PER_BLOCK", tiles)
            output = WinogradConv2d(plain)(images)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
            assert output.is_contiguous(memory_format=torch.channels_last)


# The largest error of 36,864 numbers depends on the order in which a processor adds, and is 1.11e-5 with AVX-512; the
# mean one hardly does.
@pytest.mark.parametrize(
    ("dtype", "tile", "mean_bound", "bound"), [(torch.float32, 4, 5e-6, 2e-5), (torch.bfloat16, 2, 1e-2, 2e-2)]
)
def test_rounding(dtype, tile, mean_bound, bound):
    plain = convolution(256, 64, bias=False)
    nn.init.kaiming_normal_(plain.weight)
    images = torch.randn(1, 256, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(images)
        error = WinogradConv2d(plain.to(dtype), tile)(images.to(dtype)).double() - expected
    assert error.square().mean() <= mean_bound**2 * expected.square().mean()
    assert error.abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=(1, 2), dilation=(1, 2)),
        nn.Linear(4, 4),
    ],
    ids=str,
)
def test_others_are_refused(other):
    assert not takes_winograd(other)
    with pytest.raises(ValueError, match="3x3"):
        WinogradConv2d(other)
