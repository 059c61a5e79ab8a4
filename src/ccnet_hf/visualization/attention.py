"""Attention as people look at it: what a position gathers from, as a map and drawn over the image."""

from collections.abc import Mapping, Sequence
from math import ceil
from numbers import Real

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ccnet_hf.errors import InputError, enough_memory, using
from ccnet_hf.limits import check_integer
from ccnet_hf.visualization.canvas import AnyImage, drawable
from ccnet_hf.visualization.segmentation import INK, PAPER


_HEAT, _COLD = (255, 120, 0), (30, 90, 220)
_MOST_RATIO = 4.0  # in powers of two; what is rarer or more frequent is drawn as this


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


def uniform_attention(height: int, width: int) -> torch.Tensor:
    """The weights of one round that prefers nothing: (height, width, height + width) float64, in the layout above.

    Raises:
        InputError: a side is no integer of at least 1, or there is not memory enough.
    """
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    with enough_memory(f"attention over a feature map of {height}x{width}"):
        weights = torch.full((height, width, height + width), 1 / (height + width - 1), dtype=torch.float64)
    rows = torch.arange(height)
    weights[rows, :, rows] = 0  # a position counts itself once, in its row
    return weights


def clip_attention(weights: torch.Tensor, position: tuple[int, int], percentile: float = 99.0) -> torch.Tensor:
    """A map of attention cut off at a percentile of the weights off the position's cross, as the authors draw it.

    Two paths of two rounds lead to most positions, but many to those of the own row and column, so that even uniform
    attention puts half of its weight there (50.5 % at 97x97). Cut off, the rest can be seen.

    Args:
        weights: (h, w) as `attention_map` gives them, of two rounds or more.
        position: (row, column), whose attention this is.
        percentile: 0 to 100.

    Raises:
        InputError: the percentile is none, the weights are no map, or the position lies elsewhere.
    """
    if not isinstance(percentile, Real) or not 0 <= percentile <= 100:
        raise InputError(f"percentile must be from 0 to 100, got {percentile!r}")
    weights = _checked_map("weights", weights, position)
    row, column = position
    off_the_cross = torch.ones_like(weights, dtype=torch.bool)
    off_the_cross[row], off_the_cross[:, column] = False, False
    if not off_the_cross.any():
        return weights
    return weights.clamp(max=torch.quantile(weights[off_the_cross].double(), percentile / 100).to(weights.dtype))


def attention_ratio(weights: torch.Tensor, position: tuple[int, int], num_rounds: int) -> torch.Tensor:
    """How much more, or less, a position weighs than under attention that prefers nothing.

    Args:
        weights: (h, w) as `attention_map` gives them.
        position: (row, column), whose attention this is.
        num_rounds: that led to `weights`.

    Returns:
        (h, w) float64, the ratio's logarithm to base 2; 0 where no path of so many rounds leads.

    Raises:
        InputError: the weights are no map, the position lies elsewhere, or there is no such number of rounds.
    """
    weights = _checked_map("weights", weights, position)
    check_integer("num_rounds", num_rounds, 1)
    uniform = attention_map([uniform_attention(*weights.shape)] * num_rounds, position)
    smallest = torch.finfo(torch.float32).tiny
    ratio = weights.cpu().double().clamp(min=smallest).log2() - uniform.clamp(min=smallest).log2()
    return ratio.where(uniform > 0, 0.0)


def _checked_size(attentions: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Height and width of the feature map whose attention this is."""
    is_sequence = isinstance(attentions, Sequence | torch.Tensor)
    shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else None for a in (attentions if is_sequence else ())]
    expected = (*shapes[0][:2], sum(shapes[0][:2])) if shapes and shapes[0] else ()
    if not shapes or any(shape != expected for shape in shapes):
        raise InputError(f"attentions must be one tensor (H, W, H + W) for each round, got shapes {shapes}")
    return expected[:2]


def _checked_map(name: str, values: torch.Tensor, position: tuple[int, int]) -> torch.Tensor:
    """A map (h, w) that has the position on it."""
    with using(name):
        values = torch.as_tensor(values) if isinstance(values, np.ndarray) else values
    if not isinstance(values, torch.Tensor) or values.dim() != 2 or not values.numel():
        given = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else repr(values)
        raise InputError(f"{name} must be a map (h, w) with something in it, got {given}")
    if not _is_inside(position, *values.shape):
        raise InputError(f"position must be (row, column) on a map of {tuple(values.shape)}, got {position!r}")
    return values


def _is_inside(position: tuple[int, int], height: int, width: int) -> bool:
    is_pair = isinstance(position, Sequence) and len(position) == 2
    return is_pair and all(isinstance(i, int) and 0 <= i < n for i, n in zip(position, (height, width), strict=True))


def draw_attention(image: AnyImage, weights: torch.Tensor, position: tuple[int, int]) -> Image.Image:
    """An image in pale grey under its attention: the larger the weight of a pixel, the stronger its orange.

    Args:
        image: a PIL image, which is turned upright as its EXIF orientation says, an array or tensor of integers from
            0 to 255, or an image file.
        weights: (h, w) weights over the feature map, as `attention_map` gives them; the largest is drawn full.
        position: (row, column) on the feature map whose attention this is; a ring marks it.

    Raises:
        InputError: the weights are no map, or nothing but 0, or the position lies elsewhere; as
            `ccnet_hf.visualization.blend` of images.
    """
    weights = _checked_map("weights", weights, position)
    if not weights.max() > 0:
        raise InputError(f"weights must be a map (h, w) with something in it, got at most {weights.max():g}")
    drawn = _tint(_pale(image), weights / weights.max(), _HEAT)
    return _mark(drawn, position, tuple(weights.shape))


def draw_attention_ratio(image: AnyImage, ratio: torch.Tensor, position: tuple[int, int]) -> Image.Image:
    """An image in pale grey under `attention_ratio`: orange where the position looks more than evenly, blue where it
    looks less, full at 16 times as much and at a sixteenth.

    Args:
        image: as for `draw_attention`.
        ratio: (h, w) over the feature map.
        position: (row, column) on the feature map; a ring marks it.

    Raises:
        InputError: the ratio is no map, or the position lies elsewhere; as `ccnet_hf.visualization.blend` of images.
    """
    ratio = _checked_map("ratio", ratio, position)
    drawn = _tint(_pale(image), ratio / _MOST_RATIO, _HEAT)
    return _mark(_tint(drawn, -ratio / _MOST_RATIO, _COLD), position, tuple(ratio.shape))


def _pale(image: AnyImage) -> Image.Image:
    image = drawable(image)
    return Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.5)


def _tint(image: Image.Image, strength: torch.Tensor, colour: tuple[int, int, int]) -> Image.Image:
    """An image under a colour, as strong as a map (h, w) says between 0 and 1."""
    strength = strength.clamp(0, 1).float().cpu().numpy()
    mask = Image.fromarray((255 * strength).round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", image.size, colour), image, mask)


def _mark(drawn: Image.Image, position: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A ring around a position (row, column) of a feature map of this size (height, width)."""
    # Position centres: half a step of the feature map in.
    x, y = ((i + 0.5) * side / n for i, side, n in zip(position[::-1], drawn.size, size[::-1], strict=True))
    radius = max(3.0, min(drawn.size) / 40)
    width = max(1, round(radius / 3))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse(
        (x - radius - width, y - radius - width, x + radius + width, y + radius + width),
        outline=PAPER,
        width=3 * width,
    )
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=INK, width=width)
    return drawn


def captioned_grid(rows: Sequence[Mapping[str, AnyImage]]) -> Image.Image:
    """Images of one size in rows, each above its caption; a column is as wide as its image or the longest caption.

    Raises:
        InputError: there is no image, or the rows are no list of images by caption.
    """
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows) or not any(rows):
        raise InputError(f"`rows` must be a list of images by caption, one at least, got {rows!r}")
    rows = [{str(caption): drawable(image) for caption, image in row.items()} for row in rows]
    width, height = next(image for row in rows for image in row.values()).size
    side = min(height, 4 * width)  # a narrow image has small captions, not ones as large as it is high
    font = ImageFont.load_default(size=max(12, side // 16))
    gap = max(side // 12, ceil(font.size / 2))
    line = ceil(1.4 * font.size)
    width = max(width, *(ceil(font.getlength(caption)) for row in rows for caption in row))
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
