"""Augmentation: label and picture stay together, sizes follow the recipe, colours follow their definition."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from ccnet_hf.data.transforms import PadToSize, PhotometricDistortion, RandomCrop, RandomResize, training_transforms
from ccnet_hf.recipes import TrainingRecipe


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def picture_of(label: torch.Tensor):
    """A picture whose first channel is the label map, and the label map."""
    image = label.to(torch.uint8).expand(3, *label.shape).clone()
    return tv_tensors.Image(image), tv_tensors.Mask(label.to(torch.uint8))


def test_random_resize_follows_the_keep_ratio_rule():
    image, label = picture_of(torch.zeros(36, 48))
    heights = []
    for _ in range(30):
        resized, resized_label = RandomResize((72, 54), (0.5, 1.5))(image, label)
        assert resized.shape[-2:] == resized_label.shape
        height, width = resized_label.shape
        assert abs(width - height * 4 / 3) <= 1
        heights.append(height)
    assert min(heights) >= 26 and max(heights) <= 81
    assert max(heights) - min(heights) > 30


def test_labels_are_resized_nearest():
    image, label = picture_of(torch.tensor([[0, 200], [200, 0]]))
    _, resized = RandomResize((64, 64), (1.0, 1.0))(image, label)
    assert set(resized.unique().tolist()) == {0, 200}


def test_crop_keeps_picture_and_label_together():
    image, label = picture_of(torch.arange(20)[:, None] * 10 + torch.arange(10))
    for _ in range(10):
        cropped, cropped_label = RandomCrop((5, 4), 1.0)(image, label)
        assert cropped_label.shape == (5, 4)
        assert torch.equal(cropped[0], cropped_label)


def test_crop_avoids_windows_of_one_class():
    label = torch.zeros(64, 64)
    label[:, 56:] = 1  # of all windows 8 wide about a quarter are mixed
    image, label = picture_of(label)
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


def test_small_pictures_stay_small_in_the_crop_and_are_padded():
    image, label = picture_of(torch.ones(3, 5))
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


@pytest.mark.parametrize("pad_before_normalization", [False, True])
def test_the_whole_chain(pad_before_normalization):
    recipe = TrainingRecipe(
        crop_size=(40, 56),
        scale=(32, 24),
        ratio_range=(1.0, 1.0),
        batch_size=1,
        max_train_steps=1,
        eval_steps=1,
        photometric_distortion=False,
        pad_before_normalization=pad_before_normalization,
    )
    image, label = picture_of(torch.arange(24)[:, None].expand(24, 32))
    chain = training_transforms(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pixel_values, labels = chain(image, label)
    assert pixel_values.shape == (3, 40, 56) and pixel_values.dtype == torch.float32
    assert labels.shape == (40, 56) and labels.dtype == torch.int64
    shown = labels[:24, :32].float()
    torch.testing.assert_close(torch.as_tensor(pixel_values[0, :24, :32]), (torch.as_tensor(shown) / 255 - 0.5) / 0.25)
    assert labels[24:].eq(255).all() and labels[:, 32:].eq(255).all()
    assert pixel_values[:, 24:].eq(-2.0 if pad_before_normalization else 0.0).all()


def test_flip_moves_picture_and_label_together():
    recipe = TrainingRecipe((4, 4), (4, 4), 1, 1, 1, ratio_range=(1.0, 1.0), photometric_distortion=False)
    chain = training_transforms(recipe, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image, label = picture_of(torch.arange(4).expand(4, 4))
    seen = set()
    for _ in range(20):
        pixel_values, labels = chain(image, label)
        torch.testing.assert_close(torch.as_tensor(pixel_values[0]) * 255, torch.as_tensor(labels).float())
        seen.add(int(labels[0, 0]))
    assert seen == {0, 3}
