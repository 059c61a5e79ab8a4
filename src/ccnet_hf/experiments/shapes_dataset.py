"""Coloured shapes as instances: a set that a small network learns to segment within minutes on a CPU."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

from ccnet_hf.data.preparation.instances import instance_features


SHAPES = {1: "disc", 2: "square", 3: "triangle"}
SIZE = 128  # pixels a side
_LARGEST_OVERLAP = 0.2  # of the smaller of two boxes


def shapes_example(seed: int) -> dict[str, Any]:
    """One picture of one to four shapes of any colour over a noisy background, as a row of a prepared dataset."""
    random = np.random.default_rng(seed)
    background = random.integers(60, 160, 3)
    pixels = background + random.normal(0, 12, (SIZE, SIZE, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen, objects, boxes = ImageDraw.Draw(image), [], []
    for _ in range(random.integers(1, 5)):
        radius = random.uniform(12, 24)
        center = random.uniform(radius, SIZE - radius, 2)
        box = (*(center - radius), *(center + radius))
        if any(_overlap(box, other) > _LARGEST_OVERLAP for other in boxes):
            continue
        boxes.append(box)
        shape = int(random.integers(1, len(SHAPES) + 1))
        polygon = _outline(shape, center, radius)
        color = (background + random.choice([-1, 1], 3) * random.integers(50, 90, 3)).clip(0, 255)
        pen.polygon(list(map(tuple, polygon)), fill=tuple(map(int, color)))
        objects.append(object_row(shape, polygon))
    return _row(image, objects, seed)


def _row(image: Image.Image, objects: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return {
        "image": {"bytes": encoded.getvalue(), "path": f"{seed}.png"},
        "objects": objects,
        "image_id": seed,
        "height": image.height,
        "width": image.width,
        "name": f"picture{seed}",
    }


def object_row(category: int, polygon: np.ndarray) -> dict[str, Any]:
    """An object of a prepared dataset by its outline (n, 2) in pixels."""
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    return {
        "id": 0,
        "category_id": category,
        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
        "area": float(area),
        "iscrowd": False,
        "polygons": [polygon.ravel().tolist()],
        "counts": None,
    }


def _outline(shape: int, center: np.ndarray, radius: float) -> np.ndarray:
    corners, first = {"disc": (24, 0.0), "square": (4, math.pi / 4), "triangle": (3, -math.pi / 2)}[SHAPES[shape]]
    angles = first + 2 * math.pi * np.arange(corners) / corners
    return center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((one[2] - one[0]) * (one[3] - one[1]) for one in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def write_shapes(folder: Path, train: int, validation: int) -> None:
    """Write pictures as a dataset of parquet files with the splits train and validation; no seed is in both."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, seeds in (("train", range(train)), ("validation", range(10**6, 10**6 + validation))):
        rows = datasets.Dataset.from_list([shapes_example(seed) for seed in seeds], features=instance_features())
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
