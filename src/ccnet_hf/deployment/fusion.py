"""Exact rewrites of a network for inference: the same function in fewer and larger operations.

Every rewrite is a function of its own. Numbers are computed in float64, whatever the model's dtype, and rounded once.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ccnet_hf.models.criss_cross_attention import criss_cross_attention
from ccnet_hf.models.modeling_ccnet import (
    CCNetConvLayer,
    CCNetForSemanticSegmentation,
    CCNetHead,
    RecurrentCrissCrossAttention,
)
from ccnet_hf.models.modeling_ccnet_parsing import CCNetForHumanParsing, CCNetPyramidPooling
from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetFrozenBatchNorm


Rewritable = CCNetForSemanticSegmentation | CCNetForHumanParsing

_EXAMPLE_SIZE = 64  # pixels; of the image that finds out which layers follow each other
_TOLERANCE = 1e-8  # of the largest value, in float64


def fold_batch_norm(convolution: nn.Conv2d, normalization: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, in float64, of the convolution that computes `normalization(convolution(x))` in eval mode."""
    weight, bias = _parameters(convolution)
    deviation = (normalization.running_var.double() + normalization.eps).sqrt()
    scale = (1 if normalization.weight is None else normalization.weight.detach().double()) / deviation
    shift = 0 if normalization.bias is None else normalization.bias.detach().double()
    return weight * scale.view(-1, 1, 1, 1), (bias - normalization.running_mean.double()) * scale + shift


def merge_convolutions(convolutions: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution whose output is the concatenated output of several that read the same input alike."""
    weights, biases = zip(*map(_parameters, convolutions), strict=True)
    return _convolution(convolutions[0], torch.cat(weights), torch.cat(biases))


def split_convolution(convolution: nn.Conv2d, channels: Sequence[int]) -> list[nn.Conv2d]:
    """Convolutions of the parts of a concatenated input, whose sum is the convolution of the whole; the first one
    carries the bias."""
    weight, bias = _parameters(convolution)
    biases = [bias] + [torch.zeros_like(bias)] * (len(channels) - 1)
    return [
        _convolution(convolution, part, part_bias)
        for part, part_bias in zip(weight.split(list(channels), dim=1), biases, strict=True)
    ]


def scale_convolution(convolution: nn.Conv2d, factor: torch.Tensor) -> nn.Conv2d:
    """The convolution that computes `factor * convolution(x)`."""
    weight, bias = _parameters(convolution)
    return _convolution(convolution, weight * factor.detach().double(), bias * factor.detach().double())


def _parameters(convolution: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    weight = convolution.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double()
    return weight, bias


def _convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution of the geometry and dtype of `like` with other numbers."""
    convolution = nn.utils.skip_init(
        nn.Conv2d,
        weight.shape[1],
        weight.shape[0],
        like.kernel_size,
        like.stride,
        like.padding,
        like.dilation,
        device=weight.device,
        dtype=like.weight.dtype,
    )
    _assign(convolution, weight, bias)
    return convolution.to(memory_format=torch.channels_last)


def _assign(convolution: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def fold_batch_norms(module: nn.Module, example: torch.Tensor) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Which one follows which is seen by running the module once, so that it works for networks of any library. Whether
    nothing else reads the convolution's output is seen by running it again.

    Args:
        module: takes one tensor, in eval mode; best in float64, and rounded afterwards.
        example: such a tensor, of the module's dtype.

    Returns:
        The number of batch norms folded; 0 where the result would not be the same.
    """
    with torch.no_grad():
        pairs, expected = _find_pairs(module, example, _can_be_folded)
        saved = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
        names = {child: name for name, child in module.named_modules()}
        for convolution, normalization in pairs:
            _assign(convolution, *fold_batch_norm(convolution, normalization))
            module.set_submodule(names[normalization], _rest_of(normalization))
        if _are_close(_tensors(module(example)), expected):
            return len(pairs)
        for convolution, weight, bias in saved:
            convolution.weight, convolution.bias = weight, bias
        for _, normalization in pairs:
            module.set_submodule(names[normalization], normalization)
    return 0


class ActivatedConv2d(nn.Sequential):
    """A convolution and the activation that follows it."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module):
        super().__init__(convolution, activation)


def join_activations(module: nn.Module, example: torch.Tensor, kinds: tuple[type[nn.Module], ...]) -> int:
    """Put an [`ActivatedConv2d`] in the place of every convolution that an activation directly follows, in place.

    Args:
        module, example: as for `fold_batch_norms`, after that.
        kinds: of the activations.

    Returns:
        The number of activations joined; 0 where the result would not be the same.
    """
    with torch.no_grad():
        pairs, expected = _find_pairs(module, example, lambda layer: type(layer) in kinds)
        names = {child: name for name, child in module.named_modules()}
        for convolution, activation in pairs:
            module.set_submodule(names[activation], nn.Identity())
            module.set_submodule(names[convolution], ActivatedConv2d(convolution, activation))
        if _are_close(_tensors(module(example)), expected):
            return len(pairs)
        for convolution, activation in pairs:
            module.set_submodule(names[activation], activation)
            module.set_submodule(names[convolution], convolution)
    return 0


def _find_pairs(
    module: nn.Module, example: torch.Tensor, follows: Callable[[nn.Module], bool]
) -> tuple[list[tuple[nn.Conv2d, nn.Module]], list[torch.Tensor]]:
    """Convolutions and layers of a kind that read their very output, each used once, and what the module returns."""
    produced: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    pairs, calls = [], []

    def after_convolution(convolution, arguments, output):
        produced[id(output)] = convolution, output  # kept alive, so that no other tensor takes the number
        calls.append(convolution)

    def before_follower(layer, arguments):
        calls.append(layer)
        convolution, output = produced.get(id(arguments[0]), (None, None))
        if output is arguments[0] and convolution is not None:
            pairs.append((convolution, layer))

    handles = []
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            handles.append(child.register_forward_hook(after_convolution))
        elif follows(child):
            handles.append(child.register_forward_pre_hook(before_follower))
    try:
        outputs = _tensors(module(example))
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(calls.count(child) == 1 for child in pair)], outputs


def _can_be_folded(layer: nn.Module) -> bool:
    return _rest_of(layer) is not None and layer.running_mean is not None


def _rest_of(normalization: nn.Module) -> nn.Module | None:
    """What a batch norm does beside normalising, or `None` if a module is no batch norm that can be folded."""
    if type(normalization) in (nn.BatchNorm2d, CCNetResNetFrozenBatchNorm):
        return nn.Identity()
    if isinstance(normalization, nn.BatchNorm2d) and hasattr(normalization, "act"):  # timm's, with its activation
        return nn.Sequential(getattr(normalization, "drop", nn.Identity()), normalization.act)
    return None


def _tensors(output: torch.Tensor | Sequence | dict) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values if value is not None for tensor in _tensors(value)]


def _are_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(
        (mine - theirs).abs().max() <= _TOLERANCE * (1 + theirs.abs().max())
        for mine, theirs in zip(found, expected, strict=True)
    )


class FusedAttention(nn.Module):
    """[`RecurrentCrissCrossAttention`] with query, key and gamma times value as one convolution."""

    def __init__(self, attention: RecurrentCrissCrossAttention):
        super().__init__()
        self.sizes = [layer.out_channels for layer in (attention.query, attention.key, attention.value)]
        value = scale_convolution(attention.value, attention.gamma)
        self.projection = merge_convolutions([attention.query, attention.key, value])
        self.recurrence = attention.recurrence

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, hidden_size, H, W) -> (B, hidden_size, H, W)."""
        for _ in range(self.recurrence):
            query, key, value = self.projection(hidden_state).split(self.sizes, dim=1)
            hidden_state = hidden_state + criss_cross_attention(query, key, value)
        return hidden_state


class FusedHead(nn.Module):
    """[`CCNetHead`] whose batch norms are folded, with all that reads the backbone's map in one convolution: the
    head's first one, and the map's part of the last, which waits for the other part."""

    def __init__(self, head: CCNetHead):
        super().__init__()
        first, last = head.input_projection, head.fusion
        self.hidden_size = first.convolution.out_channels
        self.activation = first.activation  # of the convolutions before and after the attention
        self.attention = None if head.attention is None else FusedAttention(head.attention)
        self.output_projection = head.output_projection.convolution
        self.first, self.last, self.last_activation = first.convolution, None, None
        if last is not None:
            self.last_activation = last.activation
            map_size = first.convolution.in_channels
            of_map, self.last = split_convolution(last.convolution, [map_size, self.hidden_size])
            self.first = merge_convolutions([first.convolution, of_map])

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """As [`CCNetHead.forward`], without attention weights."""
        feature_map = feature_map.to(self.output_projection.weight.dtype)
        attended, *waiting = self.first(feature_map).split(self.hidden_size, dim=1)
        attended = self.activation(attended)
        if self.attention is not None:
            attended = self.attention(attended)
        hidden_state = self.activation(self.output_projection(attended))
        if self.last is not None:
            hidden_state = self.last_activation(self.last(hidden_state).add_(waiting[0]))
        return hidden_state, attended, None


class FusedPyramidPooling(nn.Module):
    """[`CCNetPyramidPooling`] whose batch norms are folded, with the means over regions as matrix products: exporters
    know the pooling of PyTorch for maps of one fixed size only."""

    def __init__(self, pooling: CCNetPyramidPooling):
        super().__init__()
        self.projections, self.fusion = pooling.projections, pooling.fusion
        self.sizes, self.align_corners = pooling.sizes, pooling.align_corners

    def forward(self, feature_map: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None, None]:
        """As [`CCNetPyramidPooling.forward`]."""
        height, width = feature_map.shape[-2:]
        maps = []
        for size, projection in zip(self.sizes, self.projections, strict=True):
            rows, columns = (_mean_weights(side, size, feature_map) for side in (height, width))
            means = projection(rows @ feature_map @ columns.T)
            maps.append(F.interpolate(means, (height, width), mode="bilinear", align_corners=self.align_corners))
        return self.fusion(torch.cat([*maps, feature_map], dim=1)), None, None


def _mean_weights(length: int, number: int, like: torch.Tensor) -> torch.Tensor:
    """The (number, length) matrix that takes `length` positions to the means over `number` parts of them, as
    `adaptive_avg_pool2d` divides them."""
    positions, parts = (torch.arange(end, device=like.device) for end in (length, number))
    first, last = parts * length // number, ((parts + 1) * length + number - 1) // number
    inside = (positions >= first[:, None]) & (positions < last[:, None])
    return inside.to(like.dtype) / (last - first)[:, None].to(like.dtype)


def fuse(model: Rewritable) -> Rewritable:
    """A copy of a model in float64 that computes the same logits in fewer operations, for inference.

    Batch norms are folded, wherever the backbone comes from; the head becomes a [`FusedHead`], or of human parsing the
    context module; what only training needs is left out. The copy gives no attention weights.

    Args:
        model: is left as it is.

    Returns:
        The copy, to be rounded with `.to(dtype)`.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False).double()
    _leave_out_training(fused)
    fold_batch_norms(fused.base_model.backbone, example_image(fused.device))
    for layer in fused.modules():
        if isinstance(layer, CCNetConvLayer):
            _assign(layer.convolution, *fold_batch_norm(layer.convolution, layer.normalization))
            layer.normalization = nn.Identity()
    if not isinstance(fused, CCNetForHumanParsing):
        fused.model.head = FusedHead(fused.model.head)
    elif isinstance(fused.context, CCNetHead):
        fused.context = FusedHead(fused.context)
    else:
        fused.context = FusedPyramidPooling(fused.context)
    return fused


def example_image(device: torch.device) -> torch.Tensor:
    """An image of noise, (1, 3, 64, 64) float64, that shows which layers follow each other."""
    example = torch.zeros(1, 3, _EXAMPLE_SIZE, _EXAMPLE_SIZE, dtype=torch.float64, device=device)
    return example.normal_(generator=torch.Generator(device).manual_seed(0))


def _leave_out_training(model: Rewritable) -> None:
    """Remove the layers that only the losses look at."""
    model.category_projection = None
    if isinstance(model, CCNetForHumanParsing):
        model.parsing_classifier = None
        model.edge_branch.classifier = model.edge_branch.fusion_classifier = None
    else:
        model.auxiliary_head = None
