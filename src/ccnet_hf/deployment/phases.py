"""Dilated depthwise convolutions as plain ones over interleaved subgrids of the image: processors have fast code for
these alone."""

import torch
from torch import nn


def has_phases(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, dilated alike along both axes, and keeps the image's size, so that every
    output pixel sees only inputs of its own subgrid."""
    dilation = convolution.dilation[0]
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels > 1
        and convolution.stride == (1, 1)
        and convolution.dilation == (dilation, dilation)
        and dilation > 1
        and convolution.padding_mode == "zeros"
        and all(size % 2 for size in convolution.kernel_size)
        and convolution.padding == tuple(dilation * (size // 2) for size in convolution.kernel_size)
    )


def is_faster_by_phases(convolution: nn.Conv2d) -> bool:
    """Whether `has_phases` and the kernel is larger than 3x3: oneDNN has code for 3x3 that takes less than copying the
    subgrids apart and together."""
    return has_phases(convolution) and convolution.kernel_size > (3, 3)


def split_phases(hidden_state: torch.Tensor, step: int) -> torch.Tensor:
    """(B, C, H, W) -> (step * step * B, C, ceil(H / step), ceil(W / step)) in channels_last: the subgrids of every
    `step`-th row and column. Zeros fill them up, which act as the convolution's own padding."""
    batch, channels, height, width = hidden_state.shape
    padded = nn.functional.pad(hidden_state, (0, -width % step, 0, -height % step))
    rows, columns = padded.shape[2] // step, padded.shape[3] // step
    grids = padded.permute(0, 2, 3, 1).reshape(batch, rows, step, columns, step, channels)
    grids = grids.permute(2, 4, 0, 1, 3, 5).reshape(step * step * batch, rows, columns, channels)
    return grids.permute(0, 3, 1, 2)


def merge_phases(grids: torch.Tensor, step: int, height: int, width: int) -> torch.Tensor:
    """The inverse of `split_phases`: (step * step * B, C, h, w) -> (B, C, height, width) in channels_last."""
    number, channels, rows, columns = grids.shape
    batch = number // step**2
    grids = grids.permute(0, 2, 3, 1).reshape(step, step, batch, rows, columns, channels)
    merged = grids.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * step, columns * step, channels)
    return merged.permute(0, 3, 1, 2)[:, :, :height, :width]


__all__ = ["has_phases", "is_faster_by_phases", "merge_phases", "split_phases"]
