"""Instances drawn over an image: a colour, a contour, a name and a score for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ccnet_hf.visualization.canvas import AnyImage, drawable
from ccnet_hf.visualization.segmentation import generate_palette


_OPACITY = 0.5
_CELL_WIDTH = 360


class DrawnInstances(Protocol):
    """What is drawn: `scores` (n,), `labels` (n,), `boxes` (n, 4) in pixels and `masks` (n, height, width)."""

    scores: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


def draw_instances(
    image: AnyImage, instances: DrawnInstances, names: Mapping[int, str], with_scores: bool = True
) -> Image.Image:
    """Draw instances over their image, those with higher scores on top.

    Args:
        image: of the size of the masks when upright; as for `ccnet_hf.visualization.blend`.
        instances: by falling score.
        names: of the labels.
        with_scores: whether to write scores beside the names.
    """
    pixels = np.asarray(drawable(image), dtype=np.float32).copy()
    number = len(instances.scores)
    palette = generate_palette(number)
    for index in reversed(range(number)):
        mask = instances.masks[index].numpy()
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.asarray(palette[index], dtype=np.float32)
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    size = max(10, round(max(canvas.size) / 50))
    font = ImageFont.load_default(size=size)
    for index in reversed(range(number)):
        color = tuple(palette[index])
        left, top, right, bottom = instances.boxes[index].tolist()
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=max(1, size // 8))
        text = names.get(int(instances.labels[index]), "?")
        if with_scores:
            text += f" {instances.scores[index]:.2f}"
        corner = (left + 2, max(0, top - size - 2))
        pen.rectangle(pen.textbbox(corner, text, font=font), fill=color)
        pen.text(corner, text, font=font, fill="black" if sum(color) > 380 else "white")
    return canvas


def side_by_side(rows: Sequence[Sequence[Image.Image]], margin: int = 12) -> Image.Image:
    """Rows of images of one size each, all of one width."""
    heights = [round(_CELL_WIDTH * row[0].height / row[0].width) for row in rows]
    columns = max(map(len, rows))
    size = (columns * (_CELL_WIDTH + margin) + margin, sum(heights) + margin * (len(rows) + 1))
    canvas, top = Image.new("RGB", size, "white"), margin
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            cell = drawable(image).resize((_CELL_WIDTH, height), Image.Resampling.LANCZOS)
            canvas.paste(cell, (margin + column * (_CELL_WIDTH + margin), top))
        top += height + margin
    return canvas
