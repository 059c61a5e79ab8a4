"""A network small enough to compute with by hand, and synthetic images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


class TinyNetwork(nn.Module):
    """Looks like a CCNet from outside: a config, and logits at an eighth of the input. What a pixel gets depends on
    everything within nine pixels, borders included, so that a wrong window or a wrong flip shows."""

    def __init__(self, num_labels: int = 5, align_corners: bool = False, **inference):
        super().__init__()
        self.config = SimpleNamespace(
            num_labels=num_labels,
            id2label={label: f"class {label}" for label in range(num_labels)},
            align_corners=align_corners,
            inference=inference or {"mode": "whole"},
        )
        self.convolution = nn.Conv2d(3, num_labels, kernel_size=19, stride=8, padding=9)
        with torch.no_grad():
            self.convolution.weight.copy_(
                torch.randn(self.convolution.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
            )
        self.batch_sizes: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.batch_sizes.append(len(pixel_values))
        return SimpleNamespace(logits=self.convolution(pixel_values).tanh() * 3)


@pytest.fixture
def tiny_network():
    """The class, to be built with the inference settings a test needs."""
    return lambda *args, **kwargs: TinyNetwork(*args, **kwargs).eval()


@pytest.fixture
def make_image():
    """`make_image(height, width, seed)`: smooth colours with some noise, as PIL image."""

    def draw(height: int, width: int, seed: int = 0) -> Image.Image:
        random = np.random.RandomState(seed)
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / random.uniform(5, 20) + y / random.uniform(5, 20)) for _ in range(3)]
        pixels = 128 + 90 * np.stack(waves, axis=-1) + random.uniform(-20, 20, size=(height, width, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return draw
