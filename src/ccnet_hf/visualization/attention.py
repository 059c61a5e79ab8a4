"""Attention as people look at it: what a position gathers from, as a map and drawn over the image."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ccnet_hf.errors import InputError
from ccnet_hf.visualization.segmentation import INK, PAPER


_HEAT = (255, 120, 0)


def attention_map(attentions: Sequence[torch.Tensor], position: tuple[int, int]) -> torch.Tensor:
    """How much every position of the feature map weighs in what one position gathers by attention.

    The last round alone gives the weights over the position's own row and column; two rounds reach from one position
    to the whole image (paper, section 3.3). What counts is attention only, neither gamma nor what a position keeps.

    Args:
        attentions: (H, W, H + W) for each round, in order: one image's weights over the column, then over the row, as
            in `[weights[0] for weights in outputs.attentions]` of a CCNet with `output_attentions=True`.
        position: (row, column) on the feature map.

    Returns:
        (H, W) weights that sum to 1.

    Raises:
        InputError: there is no round, one is of another shape, or the position lies elsewhere.
    """
    height, width = _checked_size(attentions)
    if not _is_inside(position, height, width):
        raise InputError(f"position must be (row, column) on a feature map of {height}x{width}, got {position!r}")
    weights = attentions[0].new_zeros(height, width)
    weights[position] = 1
    for attention in reversed(attentions):
        over_column, over_row = attention.split((height, width), dim=-1)
        weights = torch.einsum("ij,ijk->kj", weights, over_column) + torch.einsum("ij,ijk->ik", weights, over_row)
    return weights


def _checked_size(attentions: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Height and width of the feature map whose attention this is."""
    shapes = [tuple(getattr(attention, "shape", ())) for attention in attentions]
    expected = (*shapes[0][:2], sum(shapes[0][:2])) if shapes else None
    if not shapes or any(shape != expected for shape in shapes):
        raise InputError(f"attentions must be one tensor (H, W, H + W) for each round, got shapes {shapes}")
    return expected[:2]


def _is_inside(position: tuple[int, int], height: int, width: int) -> bool:
    is_pair = isinstance(position, Sequence) and len(position) == 2
    return is_pair and all(isinstance(i, int) and 0 <= i < n for i, n in zip(position, (height, width), strict=True))


def draw_attention(image: Image.Image, weights: torch.Tensor, position: tuple[int, int]) -> Image.Image:
    """An image in pale grey under its attention: the larger the weight of a pixel, the stronger its orange.

    Args:
        image: the image.
        weights: (h, w) weights over the feature map, as `attention_map` gives them; the largest is drawn full.
        position: (row, column) on the feature map whose attention this is; a ring marks it.

    Raises:
        InputError: the weights are no map, or nothing but 0, or the position lies elsewhere.
    """
    if weights.dim() != 2 or not weights.max() > 0:
        raise InputError(f"weights must be a map (h, w) with something in it, got shape {tuple(weights.shape)}")
    if not _is_inside(position, *weights.shape):
        raise InputError(f"position must be (row, column) on a map of {tuple(weights.shape)}, got {position!r}")
    strength = (weights / weights.max()).clamp(0, 1).float().cpu().numpy()
    mask = Image.fromarray((255 * strength).round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.5)
    drawn = Image.composite(Image.new("RGB", image.size, _HEAT), pale, mask)
    # Position centres: half a step of the feature map in.
    x, y = (
        (i + 0.5) * side / n for i, side, n in zip(position[::-1], image.size, reversed(weights.shape), strict=True)
    )
    radius = max(3.0, min(image.size) / 40)
    width = max(1, round(radius / 3))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse(
        (x - radius - width, y - radius - width, x + radius + width, y + radius + width),
        outline=PAPER,
        width=3 * width,
    )
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=INK, width=width)
    return drawn


def captioned_grid(rows: Sequence[dict[str, Image.Image]]) -> Image.Image:
    """Images of one size in rows, each above its caption."""
    width, height = next(iter(rows[0].values())).size
    font = ImageFont.load_default(size=max(12, height // 16))
    gap = height // 12
    line = ceil(1.4 * font.size)
    columns = max(len(row) for row in rows)
    size = (columns * (width + gap) + gap, len(rows) * (height + line + gap) + gap)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, row in enumerate(rows):
        top = gap + index * (height + line + gap)
        for column, (caption, image) in enumerate(row.items()):
            left = gap + column * (width + gap)
            canvas.paste(image, (left, top))
            draw.text((left, top + height + line / 2), caption, font=font, fill=INK, anchor="lm")
    return canvas
