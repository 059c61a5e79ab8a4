"""Depthwise convolutions in the forms that CPUs train several times faster."""

from __future__ import annotations

import torch
from torch import nn


class _Float32DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast: oneDNN's gradient of its weights in bfloat16 takes
    several times as long, and with one product per weight and pixel there is nothing for bfloat16 to win."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_state.device.type, enabled=False):
            return self.convolve(hidden_state.to(self.weight.dtype))

    def convolve(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_state)


class _PhasedDepthwiseConv2d(_Float32DepthwiseConv2d):
    """A depthwise convolution with dilation d as a plain one over the d * d interleaved subgrids of the image.

    Every output pixel sees only inputs of its own subgrid, so the two are equal (up to the order of summation).
    """

    def convolve(self, hidden_state: torch.Tensor) -> torch.Tensor:
        step = self.dilation[0]
        batch, channels, height, width = hidden_state.shape
        # Zeros up to a multiple of the dilation act as the convolution's own padding.
        padded = nn.functional.pad(hidden_state, (0, -width % step, 0, -height % step))
        rows, columns = padded.shape[2] // step, padded.shape[3] // step
        grids = padded.permute(0, 2, 3, 1).reshape(batch, rows, step, columns, step, channels)
        grids = grids.permute(2, 4, 0, 1, 3, 5).reshape(step * step * batch, rows, columns, channels)
        padding = tuple(size // 2 for size in self.kernel_size)
        grids = nn.functional.conv2d(grids.permute(0, 3, 1, 2), self.weight, self.bias, 1, padding, 1, self.groups)
        grids = grids.permute(0, 2, 3, 1).reshape(step, step, batch, rows, columns, channels)
        merged = grids.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * step, columns * step, channels)
        return merged.permute(0, 3, 1, 2)[:, :, :height, :width]


def speed_up_depthwise(model: nn.Module) -> None:
    """Let the depthwise convolutions of `model` run in float32 also under autocast, and the dilated ones that keep the
    image's size on interleaved subgrids.

    Only the way of computing changes: parameters, state dict and configuration stay as they are.
    """
    for module in model.modules():
        if type(module) is not nn.Conv2d or not module.groups == module.in_channels == module.out_channels > 1:
            continue
        keeps_size = (
            module.stride == (1, 1)
            and module.padding_mode == "zeros"
            and all(size % 2 for size in module.kernel_size)
            and module.padding == tuple(module.dilation[0] * (size // 2) for size in module.kernel_size)
        )
        dilated = module.dilation[0] == module.dilation[1] > 1
        module.__class__ = _PhasedDepthwiseConv2d if dilated and keeps_size else _Float32DepthwiseConv2d
