"""Dilated depthwise convolutions as plain ones, which CPUs run several times faster."""

from __future__ import annotations

import torch
from torch import nn


class _PhasedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with dilation d as a plain one over the d * d interleaved subgrids of the image.

    Every output pixel sees only inputs of its own subgrid, so the two are equal (up to the order of summation).
    """

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
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


def speed_up_dilated_depthwise(model: nn.Module) -> None:
    """Let every dilated depthwise convolution of `model` that keeps the image's size run on interleaved subgrids.

    Only the way of computing changes: parameters, state dict and configuration stay as they are.
    """
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == module.in_channels == module.out_channels
            and module.dilation[0] == module.dilation[1] > 1
            and module.stride == (1, 1)
            and module.padding_mode == "zeros"
            and all(size % 2 for size in module.kernel_size)
            and module.padding == tuple(module.dilation[0] * (size // 2) for size in module.kernel_size)
        ):
            module.__class__ = _PhasedDepthwiseConv2d
