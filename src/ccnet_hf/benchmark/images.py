"""Drawn images that are as hard to decode as photographs."""

import numpy as np


SMALLEST_SIZE = (36, 72)  # (height, width) that has room for the regions below


def draw_example(
    size: tuple[int, int], num_labels: int, generator: np.random.Generator, deviation: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its label map: a few hundred regions of one colour under a slope of brightness and a little
    noise.

    Args:
        size: (height, width), at least `SMALLEST_SIZE`.
        num_labels: ids of the regions are 0..num_labels-1.
        generator: of every draw.
        deviation: of the noise.

    Returns:
        (H, W, 3) and (H, W) uint8.
    """
    height, width = size
    label = np.zeros(size, dtype=np.uint8)
    image = np.empty((*size, 3), dtype=np.float32)
    image[:] = np.linspace(60, 160, height, dtype=np.float32)[:, None, None]
    for _ in range(300):
        top, left = int(generator.integers(height)), int(generator.integers(width))
        bottom, right = (
            top + int(generator.integers(8, height // 4)),
            left + int(generator.integers(8, width // 8)),
        )
        label[top:bottom, left:right] = generator.integers(num_labels)
        image[top:bottom, left:right] += generator.normal(0, 25, 3)
    image += generator.normal(0, deviation, image.shape)
    return image.clip(0, 255).astype(np.uint8), label
