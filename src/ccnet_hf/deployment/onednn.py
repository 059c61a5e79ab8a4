"""Convolution and what follows it, activation or sum and ReLU, as one call of oneDNN, on processors."""

import torch
from torch import nn

from ccnet_hf.deployment.fusion import ActivatedConv2d
from ccnet_hf.deployment.phases import is_faster_by_phases, merge_phases, split_phases
from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetBackbone, CCNetResNetBottleneck, CCNetResNetConvLayer


# Activations that a call can end with -> what they are called there, and their numbers.
ACTIVATIONS = {
    nn.Identity: lambda layer: ("none", []),
    nn.ReLU: lambda layer: ("relu", []),
    nn.ReLU6: lambda layer: ("hardtanh", [0.0, 6.0]),
    nn.Hardtanh: lambda layer: ("hardtanh", [layer.min_val, layer.max_val]),
    nn.LeakyReLU: lambda layer: ("leaky_relu", [layer.negative_slope]),
    nn.Hardswish: lambda layer: ("hardswish", []),
    nn.SiLU: lambda layer: ("swish", []),
}
JOINED = tuple(kind for kind in ACTIVATIONS if kind is not nn.Identity)


def is_available() -> bool:
    """Whether this PyTorch has the calls; they are part of what `torch.compile` makes of a network on a processor."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv2d(nn.Module):
    """A convolution with bias, and what follows it: a sum with a residual, an activation of `ACTIVATIONS`.

    Args:
        convolution: with zeros beyond the border.
        activation: with a residual it can be a ReLU or nothing.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module):
        super().__init__()
        self.convolution = convolution
        self.activation, self.numbers = ACTIVATIONS[type(activation)](activation)
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
                hidden_state, weight, bias, *self.geometry, self.activation, self.numbers, ""
            )
        after = None if self.activation == "none" else self.activation
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, hidden_state, weight, bias, *self.geometry, "add", 1.0, after, [], None
        )


class PhasedConv2d(FusedConv2d):
    """A dilated depthwise convolution for which `is_faster_by_phases`, on its subgrids."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module):
        super().__init__(convolution, activation)
        self.step = convolution.dilation[0]
        self.geometry = ([size // 2 for size in convolution.kernel_size], [1, 1], [1, 1], convolution.groups)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> the same shape."""
        outputs = super().forward(split_phases(hidden_state, self.step))
        return merge_phases(outputs, self.step, *hidden_state.shape[2:])


class FusedBottleneck(nn.Module):
    """[`CCNetResNetBottleneck`] whose batch norms are folded.

    Args:
        block: what it computes.
        overwrites: whether the block's input is read by nobody else, and may hold its output.
    """

    def __init__(self, block: CCNetResNetBottleneck, overwrites: bool):
        super().__init__()
        self.conv1, self.conv2 = _fused(block.conv1), _fused(block.conv2)
        self.conv3 = FusedConv2d(block.conv3.convolution, nn.ReLU())
        self.shortcut = None if isinstance(block.shortcut, nn.Identity) else _fused(block.shortcut)
        self.shortcut_pooling = block.shortcut_pooling
        self.overwrites = overwrites

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        if self.shortcut is not None:
            residual = self.shortcut(self.shortcut_pooling(hidden_state))
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
    return FusedConv2d(layer.convolution, layer.activation)


def use_onednn_convolutions(backbone: nn.Module) -> None:
    """Make one call of every convolution of a backbone of any kind and the activation that `join_activations` has put
    behind it, in place. Without an activation the call is still faster than PyTorch's, which adds the bias of a 1x1
    convolution for itself."""
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, ActivatedConv2d) and _is_plain(layer[0]):
            backbone.set_submodule(name, _one_call(*layer))
    inside = {layer.convolution for layer in backbone.modules() if isinstance(layer, FusedConv2d)}
    for name, layer in list(backbone.named_modules()):
        if _is_plain(layer) and layer not in inside:
            backbone.set_submodule(name, _one_call(layer, nn.Identity()))


def _one_call(convolution: nn.Conv2d, activation: nn.Module) -> FusedConv2d:
    return (PhasedConv2d if is_faster_by_phases(convolution) else FusedConv2d)(convolution, activation)


def _is_plain(layer: nn.Module) -> bool:
    is_convolution = type(layer) is nn.Conv2d  # neither Winograd's nor one of a library with more to it
    return is_convolution and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
