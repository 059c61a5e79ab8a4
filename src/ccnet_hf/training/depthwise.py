"""Depthwise convolutions in the forms that CPUs train several times faster."""

from __future__ import annotations

import torch
from torch import nn

from ccnet_hf.deployment.phases import has_phases, merge_phases, split_phases


class _Float32DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that stays in float32 under autocast: oneDNN's gradient of its weights in bfloat16 takes
    several times as long, and with one product per weight and pixel there is nothing for bfloat16 to win."""

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_state.device.type, enabled=False):
            return self.convolve(hidden_state.to(self.weight.dtype))

    def convolve(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_state)


class _PhasedDepthwiseConv2d(_Float32DepthwiseConv2d):
    """A depthwise convolution with dilation d as a plain one over the d * d interleaved subgrids of the image; the two
    are equal (up to the order of summation)."""

    def convolve(self, hidden_state: torch.Tensor) -> torch.Tensor:
        step = self.dilation[0]
        padding = tuple(size // 2 for size in self.kernel_size)
        grids = split_phases(hidden_state, step)
        grids = nn.functional.conv2d(grids, self.weight, self.bias, 1, padding, 1, self.groups)
        return merge_phases(grids, step, *hidden_state.shape[2:])


def speed_up_depthwise(model: nn.Module) -> None:
    """Let the depthwise convolutions of `model` run in float32 also under autocast, and the dilated ones that keep the
    image's size on interleaved subgrids.

    Only the way of computing changes: parameters, state dict and configuration stay as they are.
    """
    for module in model.modules():
        if type(module) is not nn.Conv2d or not module.groups == module.in_channels == module.out_channels > 1:
            continue
        module.__class__ = _PhasedDepthwiseConv2d if has_phases(module) else _Float32DepthwiseConv2d
