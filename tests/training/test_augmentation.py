"""The augmentation of a recipe: sizes, types and values of what it gives; its parts are tested with the data."""

import pytest
import torch
from torchvision import tv_tensors

from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.augmentation import training_transforms


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def image_of(label: torch.Tensor):
    """An image whose channels are the label map, and the label map."""
    image = label.to(torch.uint8).expand(3, *label.shape).clone()
    return tv_tensors.Image(image), tv_tensors.Mask(label.to(torch.uint8))


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
    image, label = image_of(torch.arange(24)[:, None].expand(24, 32))
    chain = training_transforms(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pixel_values, labels = chain(image, label)
    assert pixel_values.shape == (3, 40, 56) and pixel_values.dtype == torch.float32
    assert labels.shape == (40, 56) and labels.dtype == torch.int64
    shown = labels[:24, :32].float()
    torch.testing.assert_close(torch.as_tensor(pixel_values[0, :24, :32]), (torch.as_tensor(shown) / 255 - 0.5) / 0.25)
    assert labels[24:].eq(255).all() and labels[:, 32:].eq(255).all()
    assert pixel_values[:, 24:].eq(-2.0 if pad_before_normalization else 0.0).all()


def test_flip_moves_image_and_label_together():
    recipe = TrainingRecipe((4, 4), (4, 4), 1, 1, 1, ratio_range=(1.0, 1.0), photometric_distortion=False)
    chain = training_transforms(recipe, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image, label = image_of(torch.arange(4).expand(4, 4))
    seen = set()
    for _ in range(20):
        pixel_values, labels = chain(image, label)
        torch.testing.assert_close(torch.as_tensor(pixel_values[0]) * 255, torch.as_tensor(labels).float())
        seen.add(int(labels[0, 0]))
    assert seen == {0, 3}


def test_the_chain_of_human_parsing():
    """The whole image in the middle of a square, black before normalisation and without labels around it."""
    recipe = TrainingRecipe(
        (48, 48), (48, 48), 1, 1, 1, ratio_range=(1.0, 1.0), letterbox=True, photometric_distortion=False
    )
    image, label = image_of(torch.arange(1, 49)[:, None].expand(48, 24))
    chain = training_transforms(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), flip_label_pairs=((1, 2),))
    seen = set()
    for _ in range(20):
        pixel_values, labels = chain(image, label)
        assert pixel_values.shape == (3, 48, 48) and pixel_values.dtype == torch.float32
        assert labels.shape == (48, 48) and labels.dtype == torch.int64
        outside = labels == 255
        assert torch.as_tensor(pixel_values)[:, :12].flatten(1)[:, 0].eq(-2).all() and outside.float().mean() > 0.4
        if outside[:, :12].all() and outside[:, 36:].all():  # upright
            assert not outside[:, 12:36].any() and labels[47, 12:36].eq(48).all()
            seen.add(tuple(labels[:2, 24].tolist()))
    assert seen == {(1, 2), (2, 1)}


def test_the_chain_of_a_recipe_uses_the_benchmarks_pairs():
    recipe = TrainingRecipe((2, 2), (2, 2), 1, 1, 1, ratio_range=(1.0, 1.0), photometric_distortion=False)
    chain = training_transforms(recipe, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), flip_label_pairs=((1, 2),))
    image, label = image_of(torch.tensor([[0, 1], [0, 1]]))
    assert {tuple(chain(image, label)[1][0].tolist()) for _ in range(20)} == {(0, 1), (2, 0)}
