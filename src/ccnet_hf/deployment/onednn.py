"""Convolution, sum and ReLU of a residual network as one call of oneDNN, on processors."""

import torch
from torch import nn

from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetBackbone, CCNetResNetBottleneck, CCNetResNetConvLayer


def is_available() -> bool:
    """Whether this PyTorch has the calls; they are part of what `torch.compile` makes of a network on a processor."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv2d(nn.Module):
    """A convolution with bias, and what follows it: a sum with a residual, a ReLU."""

    def __init__(self, convolution: nn.Conv2d, activation: bool):
        super().__init__()
        self.convolution = convolution
        self.activation = "relu" if activation else None
        self.geometry = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )

    def forward(self, hidden_state: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, h, w); a residual of that shape is written over."""
        weight, bias = self.convolution.weight, self.convolution.bias
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                hidden_state, weight, bias, *self.geometry, self.activation or "none", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, hidden_state, weight, bias, *self.geometry, "add", 1.0, self.activation, [], None
        )


class FusedBottleneck(nn.Module):
    """[`CCNetResNetBottleneck`] whose batch norms are folded.

    Args:
        block: what it computes.
        overwrites: whether the block's input is read by nobody else, and may hold its output.
    """

    def __init__(self, block: CCNetResNetBottleneck, overwrites: bool):
        super().__init__()
        self.conv1, self.conv2 = _fused(block.conv1), _fused(block.conv2)
        self.conv3 = FusedConv2d(block.conv3.convolution, activation=True)
        self.shortcut = None if isinstance(block.shortcut, nn.Identity) else _fused(block.shortcut)
        self.overwrites = overwrites

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if self.shortcut is not None:
            residual = self.shortcut(hidden_state)
        else:
            residual = hidden_state if self.overwrites else hidden_state.clone()
        return self.conv3(self.conv2(self.conv1(hidden_state)), residual)


def use_onednn(backbone: CCNetResNetBackbone) -> None:
    """Put the calls of this file into a backbone whose batch norms are folded, in place."""
    for name, layer in list(backbone.stem.convolutions.named_children()):
        backbone.stem.convolutions.set_submodule(name, _fused(layer))
    for stage in backbone.stages:
        # Only a stage's last output is read again, as its feature map.
        for index, block in enumerate(stage.blocks):
            stage.blocks[index] = FusedBottleneck(block, overwrites=index > 0)


def _fused(layer: CCNetResNetConvLayer) -> nn.Module:
    if not isinstance(layer.convolution, nn.Conv2d):  # Winograd's
        return layer
    return FusedConv2d(layer.convolution, isinstance(layer.activation, nn.ReLU))
