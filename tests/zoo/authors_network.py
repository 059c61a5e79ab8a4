"""The authors' CCNet as their repository states it, slow and in plain formulas, with its own parameter names.

Nothing of ccnet_hf is used. The state dict of `AuthorsNetwork` is laid out as the published files are.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


ABN_EPS = 1e-5
SMALL_SIZES = {"depths": (1, 2, 2, 1), "widths": (4, 8, 8, 16), "channels": 16}


class InPlaceABN(nn.Module):
    """Scale |weight| + eps; with `slope`, leaky ReLU."""

    def __init__(self, channels: int, slope: float | None = None):
        super().__init__()
        self.slope = slope
        # Of both signs: half of the scales would be wrong without the absolute value.
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1.2, 1.2))
        self.bias = nn.Parameter(0.3 * torch.randn(channels))
        self.register_buffer("running_mean", 0.2 * torch.randn(channels))
        self.register_buffer("running_var", torch.empty(channels).uniform_(0.5, 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (
            tensor[:, None, None] for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        x = (x - mean) / (var + ABN_EPS).sqrt() * (weight.abs() + ABN_EPS) + bias
        return x if self.slope is None else torch.where(x > 0, x, self.slope * x)


def convolution(in_channels: int, out_channels: int, kernel: int, bias: bool = False, **options) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, kernel, bias=bias, **options)
    nn.init.normal_(layer.weight, std=1.4 / math.sqrt(in_channels * kernel**2))
    if bias:
        nn.init.normal_(layer.bias, std=0.5)
    return layer


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1, self.bn1 = convolution(in_channels, width, 1), InPlaceABN(width)
        self.conv2 = convolution(width, width, 3, stride=stride, padding=dilation, dilation=dilation)
        self.bn2 = InPlaceABN(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), InPlaceABN(4 * width)
        self.conv3.weight.data *= 0.3  # the residual stream must not blow up over 33 blocks
        self.downsample = None
        if stride != 1 or in_channels != 4 * width:
            self.downsample = nn.Sequential(
                convolution(in_channels, 4 * width, 1, stride=stride), InPlaceABN(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).clamp(min=0)
        x = self.bn2(self.conv2(x)).clamp(min=0)
        return (self.bn3(self.conv3(x)) + residual).clamp(min=0)


def max_pooling_in_ceil_mode(x: torch.Tensor) -> torch.Tensor:
    """3x3, stride 2, padding 1, window by window; a last window that holds at least one pixel counts."""
    heights, widths = (math.ceil((side - 1) / 2) + 1 for side in x.shape[-2:])
    rows = []
    for i in range(heights):
        row = x[..., max(2 * i - 1, 0) : 2 * i + 2, :].amax(-2)
        rows.append(torch.stack([row[..., max(2 * j - 1, 0) : 2 * j + 2].amax(-1) for j in range(widths)], -1))
    return torch.stack(rows, -2)


class CrissCrossAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.query_conv = convolution(channels, channels // 8, 1, bias=True)
        self.key_conv = convolution(channels, channels // 8, 1, bias=True)
        self.value_conv = convolution(channels, channels, 1, bias=True)
        self.gamma = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        gathered = torch.empty_like(x)
        height, width = x.shape[-2:]
        for i in range(height):
            for j in range(width):
                column = [row for row in range(height) if row != i]
                keys = torch.cat([key[:, :, i, :], key[:, :, column, j]], 2)
                values = torch.cat([value[:, :, i, :], value[:, :, column, j]], 2)
                weights = torch.einsum("bc,bcn->bn", query[:, :, i, j], keys).softmax(1)
                gathered[:, :, i, j] = torch.einsum("bn,bcn->bc", weights, values)
        return self.gamma * gathered + x


class Head(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.conva = _conv_abn(in_channels, channels)
        self.cca = CrissCrossAttention(channels)
        self.convb = _conv_abn(channels, channels)
        self.bottleneck = nn.Sequential(
            *_conv_abn(in_channels + channels, channels), nn.Identity(), convolution(channels, num_classes, 1, True)
        )

    def forward(self, x: torch.Tensor, recurrence: int) -> torch.Tensor:
        output = self.conva(x)
        for _ in range(recurrence):
            output = self.cca(output)
        return self.bottleneck(torch.cat([x, self.convb(output)], 1))


def _conv_abn(in_channels: int, out_channels: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        convolution(in_channels, out_channels, 3, bias, padding=1), InPlaceABN(out_channels, slope=0.01)
    )


class AuthorsNetwork(nn.Module):
    """Takes BGR in 0..255 minus the mean, gives the logits of the head and of the auxiliary one."""

    def __init__(
        self,
        num_classes: int = 19,
        depths: tuple[int, ...] = (3, 4, 23, 3),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        channels: int = 512,
    ):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 3, stride=2, padding=1), InPlaceABN(64)
        self.conv2, self.bn2 = convolution(64, 64, 3, padding=1), InPlaceABN(64)
        self.conv3, self.bn3 = convolution(64, 128, 3, padding=1), InPlaceABN(128)
        self.conv1.weight.data /= 100  # its input spans hundreds
        in_channels = 128
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stride, dilation = ((1, 1), (2, 1), (1, 2), (1, 4))[index]
            blocks = [Bottleneck(in_channels, width, stride, dilation)]
            blocks += [Bottleneck(4 * width, width, 1, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            in_channels = 4 * width
        self.head = Head(in_channels, channels, num_classes)
        self.dsn = nn.Sequential(
            *_conv_abn(4 * widths[2], 512, bias=True), nn.Identity(), convolution(512, num_classes, 1, True)
        )

    def forward(self, x: torch.Tensor, recurrence: int) -> tuple[torch.Tensor, torch.Tensor]:
        for index in (1, 2, 3):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)).clamp(min=0)
        x = self.layer3(self.layer2(self.layer1(max_pooling_in_ceil_mode(x))))
        return self.head(self.layer4(x), recurrence), self.dsn(x)


def slide(network: AuthorsNetwork, x: torch.Tensor, recurrence: int, tile: int) -> torch.Tensor:
    """The authors' test: overlapping square tiles, their logits upsampled and averaged."""
    stride = math.ceil(tile * 2 / 3)
    height, width = x.shape[-2:]
    total, count = 0, torch.zeros(height, width, dtype=x.dtype)
    for row in range(math.ceil((height - tile) / stride) + 1):
        for column in range(math.ceil((width - tile) / stride) + 1):
            bottom, right = min(row * stride + tile, height), min(column * stride + tile, width)
            window = (..., slice(bottom - tile, bottom), slice(right - tile, right))
            logits = F.interpolate(
                network(x[window], recurrence)[0], (tile, tile), mode="bilinear", align_corners=True
            )
            if isinstance(total, int):
                total = torch.zeros(*logits.shape[:2], height, width, dtype=x.dtype)
            total[window] += logits
            count[window[1:]] += 1
    return total / count
