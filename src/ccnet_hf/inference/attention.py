"""What a pixel of an image attends to: the weights of every round, and their maps at the image's size."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn

from ccnet_hf.errors import InputError
from ccnet_hf.limits import check_integer
from ccnet_hf.models.image_letterbox_ccnet import inverse_letterbox_map
from ccnet_hf.models.layers_ccnet import CrissCrossAttention, FeatureMapAttention, RecurrentCrissCrossAttention
from ccnet_hf.models.post_processing_ccnet import resize_logits
from ccnet_hf.visualization import attention_map


@dataclass(frozen=True)
class PixelAttention:
    """The attention of one pixel.

    Attributes:
        rounds: (h, w, h + w) for each round, in order: the weights of every position of the feature map over its
            column, then over its row.
        position: (row, column) of the pixel on the feature map.
        gammas: what each round's result is multiplied by before it is added; near 0 it hardly counts.
        input_size: (height, width) of the network's input.
        target_size: (height, width) of the image.
        letterbox: whether the image lies in the middle of the network's input, with black around it.
    """

    rounds: list[torch.Tensor]
    position: tuple[int, int]
    gammas: list[float]
    input_size: tuple[int, int]
    target_size: tuple[int, int]
    letterbox: bool

    def map(self, *rounds: int) -> torch.Tensor:
        """Weights (h, w) by the rounds of these numbers, counted from 1; of all where none is given.

        Raises:
            InputError: there is no round of such a number.
        """
        for number in rounds:
            check_integer("rounds", number, 1, len(self.rounds))
        chosen = [self.rounds[number - 1] for number in rounds] if rounds else self.rounds
        return attention_map(chosen, self.position)

    def at_image_size(self, weights: torch.Tensor) -> torch.Tensor:
        """A map (h, w) over the feature map, bilinear at the size of the image (H, W)."""
        sizes = {"input_size": self.input_size, "target_size": self.target_size}
        return resize_logits(weights[None], False, **sizes, letterbox="logits" if self.letterbox else None)[0]


@torch.no_grad()
def attend(
    model: nn.Module,
    pixel_values: torch.Tensor,
    point: tuple[float, float],
    target_size: tuple[int, int],
    letterbox: bool = False,
) -> PixelAttention:
    """What a pixel attends to, the whole image being seen at once.

    Args:
        model: a CCNet in eval mode.
        pixel_values: (1, 3, H, W), of one image, on the model's device.
        point: (x, y) on the image, in pixels from its upper left corner.
        target_size: (height, width) of the image.
        letterbox: whether the image lies in the middle of `pixel_values`.

    Raises:
        InputError: the model's head has no attention, or the point is none, or not on the image.
    """
    height, width = target_size
    is_pair = isinstance(point, Sequence | np.ndarray) and len(point) == 2
    if not is_pair or not all(isinstance(part, Real) for part in point):
        raise InputError(f"point must be (x, y) in pixels from the upper left corner of the image, got {point!r}")
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f"the point {x:g},{y:g} is not on the image of {width}x{height} (width x height)")
    gammas = _gammas(model)
    if not gammas:
        raise InputError("the model's head has no criss-cross attention to look at")
    attentions = model(pixel_values=pixel_values, output_attentions=True).attentions
    input_size = tuple(pixel_values.shape[-2:])
    fractions = ((y + 0.5) / height, (x + 0.5) / width)
    if letterbox:
        column, row = inverse_letterbox_map(height, width, input_size) @ [x, y, 1]
        fractions = ((row + 0.5) / input_size[0], (column + 0.5) / input_size[1])
    size = attentions[0].shape[1:3]
    position = tuple(min(max(int(part * side), 0), side - 1) for part, side in zip(fractions, size, strict=True))
    rounds = [weights[0] for weights in attentions]
    return PixelAttention(rounds, position, gammas, input_size, target_size, letterbox)


def _gammas(model: nn.Module) -> list[float]:
    """gamma of every round of the head, in order."""
    for module in model.modules():
        if isinstance(module, FeatureMapAttention):
            continue  # in the backbone, whose weights no model returns
        if isinstance(module, RecurrentCrissCrossAttention) and module.rounds is None:
            return [module.gamma.item()] * module.recurrence
        if isinstance(module, RecurrentCrissCrossAttention):
            return [layer.gamma.item() for layer in module.rounds]
        if isinstance(module, CrissCrossAttention):
            return [module.gamma.item()]
    return []
