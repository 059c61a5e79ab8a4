"""A labelled dataset small enough for a test: images in stripes of the colours of their classes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


NUM_LABELS = 3
_COLOURS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)


def striped_label(index: int, height: int = 36, width: int = 48) -> np.ndarray:
    """(height, width) uint8, every class in it."""
    return ((np.arange(width) // 7 + index) % NUM_LABELS).astype(np.uint8)[None].repeat(height, 0)


def striped_image(index: int, height: int = 36, width: int = 48) -> np.ndarray:
    """(height, width, 3) uint8, in the colours of the classes."""
    return _COLOURS[striped_label(index, height, width)]


def encoded(array: np.ndarray, format: str = "PNG", **options) -> bytes:
    """An array as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def write_dataset(folder: Path, train: int = 3, validation: int = 2) -> None:
    """A folder of parquet files with the splits train and validation, and the columns image, label and name."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    )
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", validation)):
        rows = {
            "image": [striped_image(index) for index in range(count)],
            "label": [striped_label(index) for index in range(count)],
            "name": [f"image{index}" for index in range(count)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
