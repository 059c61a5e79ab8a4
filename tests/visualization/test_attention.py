"""Maps of attention, and how they are drawn."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from ccnet_hf.errors import InputError
from ccnet_hf.visualization import attention_map, captioned_grid, draw_attention


def random_attentions(height: int, width: int, rounds: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.rand(height, width, height + width).softmax(dim=-1) for _ in range(rounds)]


def test_attention_of_one_round_is_the_cross_of_a_position():
    (attention,) = random_attentions(4, 5, 1)
    weights = attention_map([attention], (2, 1))
    expected = torch.zeros(4, 5)
    for row in range(4):
        expected[row, 1] += attention[2, 1, row]
    for column in range(5):
        expected[2, column] += attention[2, 1, 4 + column]
    torch.testing.assert_close(weights, expected)


def test_attention_of_two_rounds_follows_every_way():
    """From the position to anything on its cross by the second round, from there on by the first."""
    first, second = random_attentions(4, 5, 2)
    expected = torch.zeros(4, 5)
    for between in itertools.product(range(4), range(5)):
        expected += attention_map([second], (2, 1))[between] * attention_map([first], between)
    weights = attention_map([first, second], (2, 1))
    torch.testing.assert_close(weights, expected)
    assert weights.min() > 0 and weights.sum().item() == pytest.approx(1)


def test_attention_is_drawn_where_it_is():
    weights = torch.zeros(4, 6)
    weights[3, 5] = 0.2
    image = Image.new("RGB", (120, 80), (0, 0, 0))
    pixels = np.asarray(draw_attention(image, weights, (0, 0))).astype(int)
    assert pixels.shape == (80, 120, 3)
    assert tuple(pixels[70, 110]) == (255, 120, 0), "the largest weight in full orange"
    assert tuple(pixels[70, 20]) == (127, 127, 127), "the pale image elsewhere"
    ring = np.argwhere((pixels == (32, 33, 36)).all(axis=-1))
    np.testing.assert_allclose(ring.mean(axis=0), (10, 10), atol=1)


def test_captioned_grid_shows_every_image_untouched():
    images = [Image.new("RGB", (60, 48), (10 * index, 0, 0)) for index in range(1, 4)]
    grid = np.asarray(captioned_grid([{"one": images[0], "two": images[1]}, {"three": images[2]}]))
    for index in range(1, 4):
        assert (grid == (10 * index, 0, 0)).all(axis=-1).sum() == 60 * 48


@pytest.mark.parametrize("position", [(4, 0), (0, 5), (-1, 0), (0,), 3, (1.5, 0), None])
def test_positions_elsewhere_are_named(position):
    attention = torch.full((4, 5, 9), 1 / 9)
    with pytest.raises(InputError, match="position must be"):
        attention_map([attention], position)
    with pytest.raises(InputError, match="position must be"):
        draw_attention(Image.new("RGB", (2, 2)), attention_map([attention], (0, 0)), position)


@pytest.mark.parametrize("shapes", [[], [(1, 4, 5, 9)], [(4, 5, 8)], [(4, 5, 9), (5, 4, 9)], [(20,)]])
def test_attention_of_another_shape_is_named(shapes):
    with pytest.raises(InputError, match=r"attentions must be one tensor \(H, W, H \+ W\) for each round"):
        attention_map([torch.zeros(shape) for shape in shapes], (0, 0))


def test_attention_to_nothing_is_named():
    for weights in (torch.zeros(4, 5), torch.full((4, 5), float("nan")), torch.ones(5)):
        with pytest.raises(InputError, match="weights must be a map"):
            draw_attention(Image.new("RGB", (2, 2)), weights, (0, 0))
