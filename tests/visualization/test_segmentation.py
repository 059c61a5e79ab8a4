"""Overlays, legends and palette images."""

import colorsys
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from turned import encode_turned

from ccnet_hf.errors import InputError
from ccnet_hf.visualization import (
    blend,
    class_shares,
    colorize,
    complete_palette,
    draw_legend,
    format_share,
    generate_palette,
    overlay,
)


PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
NAMES = ["road", "a rather long class name", "sky"]


@pytest.fixture
def label_map() -> np.ndarray:
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[:, 30:] = 2
    labels[:10, :10] = 255
    return labels


def test_colorize_keeps_ids_and_colours(label_map, tmp_path):
    colorize(torch.from_numpy(label_map), PALETTE).save(tmp_path / "labels.png")
    image = Image.open(tmp_path / "labels.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), label_map)
    colors = np.asarray(image.convert("RGB"))
    assert tuple(colors[20, 20]) == PALETTE[0] and tuple(colors[20, 40]) == PALETTE[2]
    assert tuple(colors[0, 0]) == (0, 0, 0)


@pytest.mark.parametrize("label", [-1, 256])
def test_colorize_refuses_labels_that_do_not_fit(label):
    with pytest.raises(ValueError, match=f"0..255, got .*{label}"):
        colorize(np.array([[0, label]]) if label > 0 else np.array([[label, 0]]), PALETTE)


def test_label_maps_have_two_axes():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        colorize(np.zeros((1, 4, 4), dtype=int), PALETTE)


@pytest.mark.parametrize("num_labels", [1, 2, 19, 60])
def test_generated_colours_are_distinct(num_labels):
    palette = generate_palette(num_labels)
    assert len(palette) == num_labels and palette == generate_palette(60)[:num_labels]
    assert all(isinstance(value, int) and 0 <= value <= 255 for color in palette for value in color)
    distances = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(palette[:19], 2)]
    assert min(distances, default=99) > 25
    assert all(colorsys.rgb_to_hls(*(value / 255 for value in color))[2] > 0.5 for color in palette)


def test_class_shares(label_map):
    np.testing.assert_allclose(class_shares(label_map, 3), [1100 / 2400, 0, 1200 / 2400])
    np.testing.assert_allclose(class_shares(torch.from_numpy(label_map), 3), class_shares(label_map, 3))


@pytest.mark.parametrize(
    "share, text", [(0, "0.0 %"), (1, "100.0 %"), (0.1234, "12.3 %"), (0.0004, "<0.1 %"), (0.0006, "0.1 %")]
)
def test_format_share(share, text):
    assert format_share(share) == text


def test_blend_tints_known_labels_only(label_map):
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    pixels = np.asarray(blend(image, label_map, PALETTE, alpha=0.25)).astype(int)
    assert tuple(pixels[30, 10]) == (125, 75, 75)
    assert tuple(pixels[30, 50]) == (75, 75, 125)
    assert tuple(pixels[5, 5]) == (100, 100, 100)
    assert pixels[30, 29].min() > 150 and pixels[30, 28].max() == 125, "a border one pixel wide"


@pytest.mark.parametrize("size", [(1, 1), (70, 33), (41, 800)])
@pytest.mark.parametrize("alpha", [0, 0.37, 1])
@pytest.mark.parametrize("num_colors", [0, 1, 9])
def test_blend_is_the_weighted_sum_pixel_by_pixel(size, alpha, num_colors):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = np.kron(generator.choice([*range(9), -1, 255], (size[0], -(-size[1] // 5))), np.ones((1, 5), int))
    labels = labels[:, : size[1]]
    palette = [tuple(map(int, color)) for color in generator.integers(0, 256, (num_colors, 3))]
    expected = pixels.astype(np.float64)
    for label, color in enumerate(palette):
        expected[labels == label] = expected[labels == label] * (1 - alpha) + np.array(color) * alpha
    line = np.zeros(size, dtype=bool)
    line[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    line[:-1] |= labels[:-1] != labels[1:]
    expected[line] = expected[line] * 0.25 + 255 * 0.75
    found = np.asarray(blend(Image.fromarray(pixels), labels, palette, alpha))
    np.testing.assert_array_equal(found, (expected + 0.5).astype(np.uint8))


def test_blend_refuses_unequal_sizes(label_map):
    with pytest.raises(ValueError, match="image is 60x40, label map 40x60"):
        blend(Image.new("RGB", (40, 60)), label_map, PALETTE)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (1, 1), (300, 1), (1, 300), (900, 300), (300, 900)])
def test_the_legend_never_covers_the_image(size):
    width, height = size
    labels = np.arange(width * height).reshape(height, width) % 3
    image = Image.new("RGB", size, (100, 100, 100))
    result = overlay(image, labels, PALETTE, NAMES)
    np.testing.assert_array_equal(np.asarray(result)[:height, :width], np.asarray(blend(image, labels, PALETTE)))
    assert result.width > width if height >= width else result.height > height


def test_the_legend_shows_the_classes_present_and_fits():
    """Every swatch is there once, absent classes are not, and no entry is cut at the edge of the canvas."""
    names, palette = [f"class {index}" for index in range(40)], generate_palette(40)
    labels = np.repeat(np.arange(30), 20)[None].repeat(100, axis=0)
    for image in (Image.new("RGB", (600, 100)), Image.new("RGB", (100, 600))):
        label_map = labels if image.width == 600 else labels.T
        result = np.asarray(overlay(image, label_map, palette, names)).copy()
        assert result.shape[1] == 600 if image.width == 600 else result.shape[0] == 600, (
            "a legend as long as the image"
        )
        result[: image.height, : image.width] = 255
        for index, color in enumerate(palette):
            assert ((result == color).all(axis=-1).sum() > 50) == (index < 30), names[index]
        for edge in (result[-5:], result[:, -5:]):
            assert (edge == 255).all()


def test_a_image_without_any_class_has_no_legend():
    image = Image.new("RGB", (20, 10), (1, 2, 3))
    assert overlay(image, np.full((10, 20), 255), PALETTE, NAMES).tobytes() == image.tobytes()


LABELS = np.array([[0, 1], [1, 255]])
IMAGE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    "palette", [5, "red", [5], [(1, 2)], [(0.5, 0.5, 0.5)], [(0, 0, 256)], [("r", "g", "b")], None]
)
def test_palettes_of_another_kind_are_named(palette):
    calls = [
        lambda: colorize(LABELS, palette),
        lambda: blend(IMAGE, LABELS, palette),
        lambda: overlay(IMAGE, LABELS, palette, ["road", "sky"]),
    ]
    if palette is not None:
        calls.append(lambda: complete_palette(palette, 2))
    for call in calls:
        with pytest.raises(InputError, match="`palette` must be a list of RGB colours"):
            call()


def test_palettes_of_any_container():
    for palette in (
        np.array(PALETTE[:2]),
        np.array(PALETTE[:2], np.uint8),
        tuple(PALETTE[:2]),
        [list(color) for color in PALETTE[:2]],
    ):
        assert colorize(LABELS, palette).getpalette()[:6] == [200, 0, 0, 0, 200, 0]
        assert blend(IMAGE, LABELS, palette, alpha=1).getpixel((0, 0))[0] > 0


def test_too_few_colours_are_named():
    with pytest.raises(InputError, match="palette must have a colour for each of 3 classes, got 2"):
        overlay(IMAGE, LABELS, PALETTE[:2], ["road", "sky", "tree"])


@pytest.mark.parametrize("num_labels", [-1, 2.5, "3", None])
def test_numbers_of_colours_of_another_kind_are_named(num_labels):
    with pytest.raises(InputError, match="num_labels must be an integer"):
        generate_palette(num_labels)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "0.5", None])
def test_strengths_of_another_kind_are_named(alpha):
    with pytest.raises(InputError, match="alpha must be a number from 0 to 1"):
        blend(IMAGE, LABELS, PALETTE[:2], alpha)


def test_label_maps_with_fractions_are_refused():
    for wrong in (0.5, float("nan")):
        with pytest.raises(InputError, match=r"a label map: .* whole numbers"):
            colorize(LABELS + wrong, PALETTE[:2])
    assert np.array_equal(np.asarray(colorize(LABELS.astype(float), PALETTE[:2])), LABELS)


def shown_kinds(pixels: np.ndarray, folder) -> dict:
    """Grey pixels (H, W) by the kinds of images that are taken."""
    stored = {f"exif {number}": Image.open(io.BytesIO(encode_turned(pixels, number))) for number in range(1, 9)}
    (folder / "turned.png").write_bytes(encode_turned(pixels, 6))
    Image.fromarray(pixels).save(folder / "grey.png")
    return stored | {
        "16 bits": Image.fromarray(pixels.astype(np.uint16) * 257),
        "file": folder / "turned.png",
        "path": str(folder / "grey.png"),
        "array": pixels,
        "channels": np.stack([pixels] * 3),
        "tensor": torch.from_numpy(pixels),
        "fractions": Image.fromarray(pixels.astype(np.float32)),
    }


def test_images_are_drawn_on_as_their_label_maps_lie(tmp_path):
    pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60).astype(np.uint8)
    labels, wanted = np.zeros((40, 60), dtype=int), np.stack([pixels] * 3, axis=-1)
    drawn = overlay(Image.fromarray(pixels), labels, PALETTE, NAMES)
    for kind, image in shown_kinds(pixels, tmp_path).items():
        np.testing.assert_array_equal(np.asarray(blend(image, labels, [(0, 0, 0)], 0.0)), wanted, err_msg=kind)
        assert overlay(image, labels, PALETTE, NAMES).tobytes() == drawn.tobytes(), kind


def test_label_maps_are_upright_by_their_own_exif(label_map):
    labels = label_map.astype(np.uint8)
    turned = Image.open(io.BytesIO(encode_turned(labels, 6)))
    np.testing.assert_array_equal(np.asarray(colorize(turned, PALETTE)), labels)
    np.testing.assert_array_equal(class_shares(turned, 3), class_shares(labels, 3))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "`image` must be a PIL image, an array, a tensor or the path of a file, got NoneType"),
        ([[0, 1], [2, 3]], "`image` must be .* got list"),
        ("missing.png", "missing.png cannot be read: no such file"),
        (np.zeros((2, 2)), "image: .* integers from 0 to 255, got float32"),
        (np.full((2, 2), 300), "image: .* 0..255"),
        (np.zeros((1, 2, 2, 3), np.uint8), "image: .* 4 axes"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "image: .* 0..255"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(InputError, match=message):
        blend(image, LABELS, PALETTE)


@pytest.mark.parametrize("names", [None, 3, "road", [0, 1, 2], {0: "road"}])
def test_names_of_another_kind_are_named(names):
    with pytest.raises(InputError, match="`class_names` must be a list of a name for each class"):
        overlay(IMAGE, LABELS, PALETTE, names)


def test_a_legend_needs_entries_and_a_side():
    with pytest.raises(InputError, match=r"`width` or `height` must be a number of pixels, got neither"):
        draw_legend([(PALETTE[0], "road", "1.0 %")], 15)
    with pytest.raises(InputError, match="`entries` must hold"):
        draw_legend([], 15, width=100)


@pytest.mark.parametrize("num_labels", [-1, 2.5, "3", None, True, 10**12])
def test_shares_of_no_number_of_classes_are_refused(num_labels):
    with pytest.raises(InputError, match=r"`num_labels` must be (an integer|at least 0|at most 65,536), got"):
        class_shares(LABELS, num_labels)
