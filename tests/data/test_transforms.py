"""Augmentation: label and image stay together, sizes follow the recipe, colours follow their definition.

Draws are compared with mmsegmentation's definitions as distributions. Seeds are fixed, so a test passes or fails
always; bounds are four and a half standard deviations wide.
"""

import colorsys
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from ccnet_hf.data.transforms import (
    PadToSize,
    PhotometricDistortion,
    RandomCrop,
    RandomHorizontalFlip,
    RandomLetterbox,
    RandomResize,
)
from ccnet_hf.models.image_letterbox_ccnet import letterbox_map, warp_bilinear, warp_nearest


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image_of(label: torch.Tensor):
    """An image whose first channel is the label map, and the label map."""
    image = label.to(torch.uint8).expand(3, *label.shape).clone()
    return tv_tensors.Image(image), tv_tensors.Mask(label.to(torch.uint8))


def test_random_resize_follows_the_keep_ratio_rule():
    image, label = image_of(torch.zeros(36, 48))
    heights = []
    for _ in range(30):
        resized, resized_label = RandomResize((72, 54), (0.5, 1.5))(image, label)
        assert resized.shape[-2:] == resized_label.shape
        height, width = resized_label.shape
        assert abs(width - height * 4 / 3) <= 1
        heights.append(height)
    assert min(heights) >= 26 and max(heights) <= 81
    assert max(heights) - min(heights) > 30


def assert_uniform(values, low: float, high: float) -> None:
    """Kolmogorov and Smirnov's distance from the uniform distribution, at a level of about one in ten thousand."""
    ranks = sorted((value - low) / (high - low) for value in values)
    count = len(ranks)
    distance = max(max(rank - i / count, (i + 1) / count - rank) for i, rank in enumerate(ranks))
    assert distance < 2.23 / math.sqrt(count)


def assert_share(count: int, draws: int, probability: float) -> None:
    assert abs(count - draws * probability) < 4.5 * math.sqrt(draws * probability * (1 - probability))


def resized_as_mmsegmentation(height, width, long, short, ratio):
    """RandomResize's size: the scale times the ratio, truncated; the factor that fits into it; sides rounded."""
    long, short = int(long * ratio), int(short * ratio)
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def test_resize_ratio_is_uniform_and_the_size_mmsegmentations():
    resize = RandomResize((2048, 1024), (0.5, 2.0))
    image = torch.empty(3, 1024, 2048)
    state = torch.get_rng_state()
    sizes = [tuple(resize.make_params([image])["size"]) for _ in range(2000)]
    torch.set_rng_state(state)
    ratios = [float(torch.empty(()).uniform_(0.5, 2.0)) for _ in range(2000)]
    assert sizes == [resized_as_mmsegmentation(1024, 2048, 2048, 1024, ratio) for ratio in ratios]
    assert_uniform([height / 1024 for height, _ in sizes], 0.5, 2.0)


def test_resize_in_steps_draws_every_step_alike():
    """The authors' 0.7 + randint(0, 14) / 10, both ends included."""
    resize = RandomResize((2000, 1000), (0.7, 2.1), ratio_step=0.1)
    image = torch.empty(3, 1000, 2000)
    heights = Counter(resize.make_params([image])["size"][0] for _ in range(3000))
    # Truncation may take one pixel off: 0.7 + 0.1 is less than 0.8.
    assert {round(height / 100) for height in heights} == set(range(7, 22)) and len(heights) == 15
    assert all(abs(height - 100 * round(height / 100)) <= 1 for height in heights)
    for count in heights.values():
        assert_share(count, 3000, 1 / 15)
    beyond = RandomResize((2000, 1000), (0.5, 2.0), ratio_step=0.4)  # 2.1 would be the next
    assert {round(beyond.make_params([image])["size"][0] / 100) for _ in range(100)} == {5, 9, 13, 17}


def test_labels_are_resized_nearest():
    image, label = image_of(torch.tensor([[0, 200], [200, 0]]))
    _, resized = RandomResize((64, 64), (1.0, 1.0))(image, label)
    assert set(resized.unique().tolist()) == {0, 200}


def test_crop_keeps_image_and_label_together():
    image, label = image_of(torch.arange(20)[:, None] * 10 + torch.arange(10))
    for _ in range(10):
        cropped, cropped_label = RandomCrop((5, 4), 1.0)(image, label)
        assert cropped_label.shape == (5, 4)
        assert torch.equal(cropped[0], cropped_label)


def test_crop_takes_every_place_alike():
    image, label = image_of(torch.zeros(9, 8))
    crop = RandomCrop((6, 4), 1.0)
    corners = Counter(
        (params["top"], params["left"]) for params in (crop.make_params([image, label]) for _ in range(4000))
    )
    assert set(corners) == set(itertools.product(range(4), range(5)))
    for count in corners.values():
        assert_share(count, 4000, 1 / 20)


@pytest.mark.parametrize("cat_max_ratio", [0.9, 1.0])
def test_crop_redraws_ten_times(cat_max_ratio):
    """With a share p of good windows, 1 - (1 - p)^11 of all crops are good: the eleventh draw stands, seen or not."""
    row = [0] * 108
    row[4] = 1
    row[105:] = [255] * 3
    image, label = image_of(torch.tensor([row]))

    def is_good(start: int) -> bool:
        counts = Counter(value for value in row[start : start + 8] if value != 255)
        return len(counts) > 1 and max(counts.values()) / sum(counts.values()) < 0.9

    good = sum(is_good(start) for start in range(101)) / 101
    assert 0.03 < good < 0.1
    crop = RandomCrop((1, 8), cat_max_ratio)
    starts = [crop.make_params([image, label])["left"] for _ in range(2000)]
    expected = 1 - (1 - good) ** 11 if cat_max_ratio < 1 else good
    assert_share(sum(is_good(start) for start in starts), 2000, expected)


def test_crop_avoids_windows_of_one_class():
    label = torch.zeros(64, 64)
    label[:, 56:] = 1  # of all windows 8 wide about a quarter are mixed
    image, label = image_of(label)
    plain = [RandomCrop((8, 8), 1.0)(image, label)[1] for _ in range(200)]
    picky = [RandomCrop((8, 8), 0.9)(image, label)[1] for _ in range(200)]
    mixed = [sum(len(window.unique()) > 1 for window in windows) for windows in (plain, picky)]
    assert mixed[0] < 60 and mixed[1] > 110


def test_crop_does_not_count_ignored_pixels():
    label = torch.full((8, 16), 255)
    label[:, 8:12], label[:, 12:] = 0, 1
    crop = RandomCrop((8, 16), 0.75)
    assert crop._is_mixed(label)
    label[:, 12:] = 255
    assert not crop._is_mixed(label)


def test_small_images_stay_small_in_the_crop_and_are_padded():
    image, label = image_of(torch.ones(3, 5))
    cropped, cropped_label = RandomCrop((4, 4), 1.0)(image, label)
    assert cropped_label.shape == (3, 4)
    padded, padded_label = PadToSize((4, 6))(cropped, cropped_label)
    assert padded.shape == (3, 4, 6) and padded_label.shape == (4, 6)
    assert padded_label[3].eq(255).all() and padded_label[:, 4:].eq(255).all() and padded_label[:3, :4].eq(1).all()
    assert padded[:, 3].eq(0).all()


@pytest.mark.parametrize("name, value", [("saturation", 0.6), ("saturation", 1.4), ("hue", -13), ("hue", 17)])
def test_colours_move_in_hsv(name, value):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(50, 3)).astype(np.uint8)
    params = dict.fromkeys(("brightness", "contrast", "contrast_first", "saturation", "hue")) | {name: value}
    image = tv_tensors.Image(torch.from_numpy(pixels.T.reshape(3, 5, 10).copy()))
    moved = PhotometricDistortion().transform(image, params).reshape(3, 50).T.numpy()
    for pixel, result in zip(pixels, moved, strict=True):
        hue, saturation, brightness = colorsys.rgb_to_hsv(*(pixel / 255))
        if name == "saturation":
            saturation = min(1.0, saturation * value)
        else:
            hue = (hue + value / 180) % 1.0
        wanted = np.array(colorsys.hsv_to_rgb(hue, saturation, brightness)) * 255
        # Truncation costs one grey level; of Pillow's 256 hues neighbours are six apart, and two roundings add up.
        np.testing.assert_allclose(result, wanted, atol=1.01 if name == "saturation" else 12)


def test_brightness_and_contrast():
    image = tv_tensors.Image(torch.tensor([0, 100, 250], dtype=torch.uint8).expand(3, 1, 3).clone())
    params = dict.fromkeys(("brightness", "contrast", "contrast_first", "saturation", "hue"))
    distort = PhotometricDistortion()
    assert distort.transform(image, params | {"brightness": 10.5})[0].tolist() == [[10, 110, 255]]
    assert distort.transform(image, params | {"contrast": 0.5})[0].tolist() == [[0, 50, 125]]
    both = params | {"brightness": 20.0, "contrast": 1.5}
    assert distort.transform(image, both | {"contrast_first": False})[0].tolist() == [[30, 180, 255]]
    late = params | {"contrast": 1.5, "saturation": 1.0}
    assert distort.transform(image, late | {"contrast_first": True})[0].tolist() == [[0, 150, 255]]


def test_each_distortion_comes_in_half_of_the_cases():
    draws = [PhotometricDistortion().make_params([]) for _ in range(400)]
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 17)}
    for name, (low, high) in ranges.items():
        values = [draw[name] for draw in draws if draw[name] is not None]
        assert 150 < len(values) < 250
        assert low <= min(values) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(values) <= high


def test_distortions_are_drawn_independently_and_uniformly():
    draws = [PhotometricDistortion().make_params([]) for _ in range(4000)]
    names = ("brightness", "contrast", "saturation", "hue")
    combinations = Counter((*(draw[name] is not None for name in names), draw["contrast_first"]) for draw in draws)
    assert len(combinations) == 32
    for count in combinations.values():
        assert_share(count, 4000, 1 / 32)
    for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
        assert_uniform([draw[name] for draw in draws if draw[name] is not None], low, high)
    hues = Counter(draw["hue"] for draw in draws if draw["hue"] is not None)
    assert set(hues) == set(range(-18, 18))
    for count in hues.values():
        assert_share(count, sum(hues.values()), 1 / 36)


def test_distortion_leaves_the_label_alone():
    image, label = image_of(torch.randint(0, 256, (8, 8)))
    for _ in range(20):
        distorted, same = PhotometricDistortion()(image, label)
        assert torch.equal(same, label) and distorted.dtype == torch.uint8 and distorted.shape == image.shape


def test_flip_comes_in_half_of_the_cases():
    image, label = image_of(torch.arange(4).expand(2, 4))
    flips = sum(int(RandomHorizontalFlip()(image, label)[1][0, 0]) == 3 for _ in range(1000))
    assert_share(flips, 1000, 1 / 2)


def test_flip_exchanges_left_and_right():
    """LIP's arms, legs and shoes; other labels and the ignored one keep their ids, and an unflipped map all."""
    ids = torch.tensor([[0, 13, 14, 15, 16, 17, 18, 19, 255]])
    image, label = image_of(ids)
    flip = RandomHorizontalFlip(((14, 15), (16, 17), (18, 19)))
    seen = []
    for _ in range(20):
        flipped, flipped_label = flip(image, label)
        assert isinstance(flipped_label, tv_tensors.Mask) and flipped_label.dtype == torch.uint8
        if torch.equal(torch.as_tensor(flipped), torch.as_tensor(image)):
            assert flipped_label.tolist() == ids.tolist()
        else:
            assert flipped_label.tolist() == [[255, 18, 19, 16, 17, 14, 15, 13, 0]]
            assert torch.equal(torch.as_tensor(flipped), torch.as_tensor(image).flip(-1))
        seen.append(tuple(flipped_label[0].tolist()))
    assert len(set(seen)) == 2


def extent_and_angle(matrix: np.ndarray, height: int, width: int, size: tuple[int, int]) -> tuple[float, float]:
    step = letterbox_map(height, width, size)[0, 0]
    return math.hypot(*matrix[:, 0]) / step, math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def test_letterbox_draws_as_ce2p_does():
    """Extents and angles are clipped normal draws, and two fifths of the images stay upright."""
    letterbox = RandomLetterbox((97, 97), (0.75, 1.25))
    image = torch.empty(3, 60, 40)
    draws = [extent_and_angle(letterbox.make_params([image])["matrix"], 60, 40, (97, 97)) for _ in range(4000)]
    extents, angles = zip(*draws, strict=True)

    def normal(value: float) -> float:
        return (1 + math.erf(value / math.sqrt(2))) / 2

    for low, high, share in ((0, 0.750001, normal(-1)), (1.249999, 2, normal(-1)), (0.9, 1.1, 2 * normal(0.4) - 1)):
        assert_share(sum(low <= extent <= high for extent in extents), 4000, share)
    assert min(extents) == pytest.approx(0.75) and max(extents) == pytest.approx(1.25)
    assert_share(sum(abs(angle) < 1e-9 for angle in angles), 4000, 0.4)
    assert_share(sum(angle < -1e-9 for angle in angles), 4000, 0.3)
    assert_share(sum(abs(angle) > 59.999 for angle in angles), 4000, 0.6 * 2 * normal(-2))
    assert_share(sum(1e-9 < abs(angle) < 30 for angle in angles), 4000, 0.6 * (2 * normal(1) - 1))
    assert min(angles) == pytest.approx(-60) and max(angles) == pytest.approx(60)


def test_letterbox_warps_image_and_label_by_one_map():
    label = torch.randint(0, 20, (6, 4)).repeat_interleave(10, 0).repeat_interleave(10, 1)
    image, label = image_of(label)
    letterbox = RandomLetterbox((97, 97), (0.75, 1.25))
    state = torch.get_rng_state()
    warped, warped_label = letterbox(image, label)
    torch.set_rng_state(state)
    matrix = letterbox.make_params([image])["matrix"]
    assert isinstance(warped, tv_tensors.Image) and isinstance(warped_label, tv_tensors.Mask)
    assert warped.dtype == warped_label.dtype == torch.uint8
    assert warped.shape == (3, 97, 97) and warped_label.shape == (97, 97)
    assert np.array_equal(warped, warp_bilinear(image.numpy(), matrix, (97, 97)))
    assert np.array_equal(warped_label, warp_nearest(label.numpy(), matrix, (97, 97), fill=255))
    assert (warped_label == 255).any() and (warped[:, warped_label == 255].float().mean() < 1)
