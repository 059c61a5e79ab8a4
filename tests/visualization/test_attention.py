"""Maps of attention, and how they are drawn."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from turned import encode_turned

from ccnet_hf.errors import InputError
from ccnet_hf.visualization import (
    attention_map,
    attention_ratio,
    captioned_grid,
    clip_attention,
    draw_attention,
    draw_attention_ratio,
    uniform_attention,
)


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


def dense(attention: torch.Tensor) -> torch.Tensor:
    """A round as the matrix that takes a map, position by position, to what it looks at."""
    height, width, _ = attention.shape
    matrix = torch.zeros(height, width, height, width, dtype=torch.float64)
    for row, column in itertools.product(range(height), range(width)):
        matrix[row, column, :, column] += attention[row, column, :height]
        matrix[row, column, row, :] += attention[row, column, height:]
    return matrix.reshape(height * width, height * width)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_attention_is_a_row_of_the_product_of_dense_matrices(rounds):
    """The last round first: what the position looks at, and then what those look at."""
    attentions = [attention.double() for attention in random_attentions(5, 7, rounds)]
    attentions = [attention / attention.sum(-1, keepdim=True) for attention in attentions]
    product = torch.eye(35, dtype=torch.float64)
    for attention in attentions:
        product = dense(attention) @ product
    for position in ((0, 0), (3, 2), (4, 6)):
        weights = attention_map(attentions, position)
        torch.testing.assert_close(weights.flatten(), product[position[0] * 7 + position[1]], rtol=0, atol=1e-12)


def test_uniform_attention_puts_half_of_two_rounds_on_the_cross():
    """(W^2 + H^2 - 1) / (H + W - 1)^2, 50.5 % at 97x97."""
    uniform = uniform_attention(97, 97)
    torch.testing.assert_close(uniform.sum(-1), torch.ones(97, 97, dtype=torch.float64), rtol=0, atol=1e-12)
    weights = attention_map([uniform] * 2, (40, 11))
    on_the_cross = weights[40].sum() + weights[:, 11].sum() - weights[40, 11]
    assert on_the_cross.item() == pytest.approx((97**2 + 97**2 - 1) / 193**2, abs=1e-12)
    assert round(100 * on_the_cross.item(), 1) == 50.5


def test_ratio_to_uniform_attention():
    uniform = uniform_attention(4, 6)
    assert attention_ratio(attention_map([uniform] * 2, (1, 2)), (1, 2), 2).abs().max() < 1e-12
    weights = attention_map([uniform], (1, 2))
    weights[1, 5] *= 8
    ratio = attention_ratio(weights, (1, 2), 1)
    assert ratio[1, 5].item() == pytest.approx(3) and ratio[3, 4] == 0, "nothing where one round cannot look"
    weights[0, 2] = 0
    assert torch.isfinite(attention_ratio(weights, (1, 2), 1)).all()


def test_the_authors_cut_weights_off():
    weights = attention_map(random_attentions(20, 30, 2), (5, 7))
    clipped = clip_attention(weights, (5, 7), 90)
    off = torch.ones(20, 30, dtype=torch.bool)
    off[5], off[:, 7] = False, False
    threshold = np.quantile(weights[off].double().numpy(), 0.9)
    assert clipped.max().item() == pytest.approx(threshold)
    torch.testing.assert_close(clipped, weights.clamp(max=float(np.float32(threshold))))
    assert torch.equal(clip_attention(weights[:1], (0, 3)), weights[:1])  # a single row is all cross
    with pytest.raises(InputError, match="percentile must be from 0 to 100, got 101"):
        clip_attention(weights, (5, 7), 101)


def test_ratios_are_drawn_in_two_colours():
    ratio = torch.zeros(4, 6)
    ratio[3, 5], ratio[3, 0] = 4.0, -4.0
    pixels = np.asarray(draw_attention_ratio(Image.new("RGB", (120, 80)), ratio, (0, 2))).astype(int)
    assert tuple(pixels[79, 119]) == (255, 120, 0) and tuple(pixels[79, 0]) == (30, 90, 220)
    assert tuple(pixels[40, 60]) == (127, 127, 127)


def test_attention_is_drawn_over_the_upright_image():
    pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60).astype(np.uint8)
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    for draw in (draw_attention, draw_attention_ratio):
        expected = draw(Image.fromarray(pixels), weights, (1, 2)).tobytes()
        for image in (
            *(Image.open(io.BytesIO(encode_turned(pixels, number))) for number in range(2, 9)),
            Image.fromarray(pixels.astype(np.uint16) * 257),
            pixels,
            torch.from_numpy(pixels),
        ):
            assert draw(image, weights, (1, 2)).tobytes() == expected
        assert draw(pixels, weights.numpy(), (1, 2)).tobytes() == expected


@pytest.mark.parametrize("values", ["a", None, 5, torch.ones(2, 3, 4), np.ones(3), torch.ones(0, 4), [[1.0, 2.0]]])
@pytest.mark.parametrize(
    "use",
    [
        lambda values: clip_attention(values, (0, 0)),
        lambda values: attention_ratio(values, (0, 0), 2),
        lambda values: draw_attention(Image.new("RGB", (2, 2)), values, (0, 0)),
        lambda values: draw_attention_ratio(Image.new("RGB", (2, 2)), values, (0, 0)),
    ],
    ids=["clip", "ratio", "draw", "draw ratio"],
)
def test_maps_of_another_kind_are_named(use, values):
    with pytest.raises(InputError, match=r"(weights|ratio) must be a map \(h, w\) with something in it, got"):
        use(values)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "a", None, True])
def test_numbers_of_rounds_and_sides_of_another_kind_are_named(wrong):
    with pytest.raises(InputError, match=r"`num_rounds` must be (an integer|at least 1), got"):
        attention_ratio(torch.ones(2, 3), (0, 0), wrong)
    with pytest.raises(InputError, match=r"`width` must be (an integer|at least 1), got"):
        uniform_attention(2, wrong)


def test_percentiles_and_attentions_of_another_kind_are_named():
    for wrong in ("a", None, float("nan")):
        with pytest.raises(InputError, match="percentile must be from 0 to 100"):
            clip_attention(torch.ones(4, 5), (0, 0), wrong)
    for wrong in (None, 5, [np.zeros((4, 5, 9))], "a"):
        with pytest.raises(InputError, match="attentions must be one tensor"):
            attention_map(wrong, (0, 0))


def test_uniform_attention_beyond_the_memory_is_one_sentence():
    with pytest.raises(InputError, match="a feature map of 100000x100000 needs more memory than there is"):
        uniform_attention(10**5, 10**5)


@pytest.mark.parametrize("rows", [[], [{}], None, 5, [[Image.new("RGB", (2, 2))]]])
def test_a_grid_without_images_is_named(rows):
    with pytest.raises(InputError, match="`rows` must be a list of images by caption"):
        captioned_grid(rows)
