"""Winograd's minimal filtering for 3x3 convolutions, written as matrix products (Lavin & Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016).

F(m x m, 3 x 3) computes m x m outputs from (m + 2) x (m + 2) inputs with (m + 2)^2 multiplications instead of 9 m^2:
a quarter with m = 4, 1 / 2.25 with m = 2. Processors that run plain convolutions at their peak gain what is saved.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn


# By output tile m: the transforms of input (B^T), filter (G) and output (A^T), for the points 0, ±1 (±2) and infinity.
_INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
_FILTER = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
_OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
# Tiles transformed at a time: enough that the transformed filter is read from memory seldom, few enough that the
# temporaries of a block stay at some ten MiB whatever the size of the map.
_TILES_PER_BLOCK = 256


def takes_winograd(convolution: nn.Module) -> bool:
    """Whether [`WinogradConv2d`] can take the place of a module: a 3x3 convolution with stride 1, equal padding and
    dilation, zeros beyond the border, and no groups."""
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.dilation[0] == convolution.dilation[1]
        and convolution.padding == convolution.dilation
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
    )


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and padding equal to its dilation, by F(tile x tile, 3 x 3).

    A dilated convolution is done phase by phase: of dilation d, every d-th row and column make an ordinary one. Works
    through the map in blocks of rows, so that memory beside input and output does not grow with it. Inference only.

    Args:
        convolution: what it computes, see [`takes_winograd`]; is left as it is. The filter is transformed in float64.
        tile: m, 4 (float32: errors of 1e-5 of the activations) or 2 (for bfloat16, where 4 loses too much).
        dtype: of weights, input and output; `None` takes the convolution's.
    """

    def __init__(self, convolution: nn.Conv2d, tile: int = 4, dtype: torch.dtype | None = None):
        super().__init__()
        if not takes_winograd(convolution):
            raise ValueError(f"{convolution} is no 3x3 convolution of stride 1 with padding equal to its dilation")
        self.tile = tile
        self.dilation = convolution.dilation[0]
        self.in_channels, self.out_channels = convolution.in_channels, convolution.out_channels
        weight, dtype = convolution.weight.detach().double(), dtype or convolution.weight.dtype
        input_transform, filter_transform, output_transform = (
            torch.tensor(matrices[tile], dtype=torch.float64, device=weight.device)
            for matrices in (_INPUT, _FILTER, _OUTPUT)
        )
        transformed = torch.einsum("xi,yj,ocij->xyco", filter_transform, filter_transform, weight)
        # Both axes at once: a tile's rows and columns as one axis.
        for name, tensor in {
            "weight": transformed.reshape(-1, self.in_channels, self.out_channels),
            "input_transform": torch.kron(input_transform, input_transform),
            "output_transform": torch.kron(output_transform, output_transform),
        }.items():
            self.register_buffer(name, tensor.to(dtype).contiguous())
        bias = convolution.bias
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype, copy=True))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, tile={self.tile}, dilation={self.dilation}"

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), channels_last; dtype as the weight's."""
        images = hidden_state.permute(0, 2, 3, 1).contiguous()
        output = images.new_empty((*images.shape[:3], self.out_channels))
        for image, result in zip(images, output, strict=True):
            for top, rows in self._blocks(image):
                part = result[top : top + rows.shape[0]]
                part.copy_(rows[: part.shape[0]]) if self.bias is None else torch.add(
                    rows[: part.shape[0]], self.bias, out=part
                )
        return output.permute(0, 3, 1, 2)

    def _blocks(self, image: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """The first row and the rows (n, W, out_channels) of every block of an image (H, W, in_channels); rows beyond
        the border may follow in the last."""
        height, width, channels = image.shape
        tile, reach, step = self.tile, self.dilation, self.tile * self.dilation
        tile_rows, tile_columns = -(-height // step), -(-width // step)
        per_block = max(1, _TILES_PER_BLOCK // (reach * reach * tile_columns))
        side = tile + 2
        for first in range(0, tile_rows, per_block):
            count = min(per_block, tile_rows - first)
            top, bottom = first * step - reach, (first + count) * step + reach
            padding = (reach, tile_columns * step + reach - width, max(0, -top), max(0, bottom - height))
            rows = F.pad(image[max(0, top) : min(height, bottom)], (0, 0, *padding))
            down, right, _ = rows.stride()
            # Row and column within the tile, phase of rows and columns, tile's row and column, channel.
            patches = rows.as_strided(
                (side, side, reach, reach, count, tile_columns, channels),
                (reach * down, reach * right, down, right, step * down, step * right, 1),
                rows.storage_offset(),
            )
            transformed = (self.input_transform @ patches.reshape(side * side, -1)).view(side * side, -1, channels)
            products = torch.bmm(transformed, self.weight)
            tiles = (self.output_transform @ products.view(side * side, -1)).view(
                tile, tile, reach, reach, count, tile_columns, self.out_channels
            )
            tiles = tiles.permute(4, 0, 2, 5, 1, 3, 6).reshape(count * step, tile_columns * step, self.out_channels)
            yield first * step, tiles[:, :width]


def use_winograd(module: nn.Module, tile: int, dtype: torch.dtype | None = None, min_channels: int = 256) -> int:
    """Put [`WinogradConv2d`] in the place of every convolution inside `module` that it can take, in place.

    Args:
        module: is changed.
        tile, dtype: as for [`WinogradConv2d`].
        min_channels: narrower convolutions stay; there the transforms cost more than they save.

    Returns:
        The number of convolutions replaced.
    """
    names = [
        name for name, child in module.named_modules() if takes_winograd(child) and child.in_channels >= min_channels
    ]
    for name in names:
        module.set_submodule(name, WinogradConv2d(module.get_submodule(name), tile, dtype))
    return len(names)
