"""The augmentation of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import BaseImageProcessor, PreTrainedConfig

from ccnet_hf.data import benchmarks
from ccnet_hf.data.transforms import (
    PadToSize,
    PhotometricDistortion,
    RandomCrop,
    RandomHorizontalFlip,
    RandomLetterbox,
    RandomResize,
)
from ccnet_hf.recipes import TrainingRecipe


def semantic_augmentation(
    recipe: TrainingRecipe, config: PreTrainedConfig, image_processor: BaseImageProcessor
) -> v2.Compose:
    """The augmentation of a recipe for a model that segments by classes, and for its image processor."""
    return training_transforms(
        recipe,
        image_processor.image_mean,
        image_processor.image_std,
        config.semantic_loss_ignore_index,
        benchmarks.flip_label_pairs(config.id2label),
    )


def training_transforms(
    recipe: TrainingRecipe,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
    ignore_index: int = 255,
    flip_label_pairs: Sequence[tuple[int, int]] = (),
) -> v2.Compose:
    """Build the augmentation of a recipe: mmsegmentation's resize and crop, or CE2P's letterbox.

    Args:
        recipe: says what is drawn and how large the crop is.
        image_mean: of the RGB channels, for pixels scaled to 0..1.
        image_std: likewise.
        ignore_index: label of pixels that do not count.
        flip_label_pairs: of the benchmark, see `RandomHorizontalFlip`.

    The result maps an Image (3, H, W) uint8 and a Mask (H, W) uint8 to the normalised image (3, h, w) float32 and
    the labels (h, w) int64, with (h, w) the recipe's crop size.
    """
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(image_mean), list(image_std))]
    flip = RandomHorizontalFlip(flip_label_pairs)
    distortion = [PhotometricDistortion()] if recipe.photometric_distortion else []
    if recipe.letterbox:
        steps = [flip, RandomLetterbox(recipe.crop_size, recipe.ratio_range, ignore_index), *distortion, *normalize]
    else:
        pad = PadToSize(recipe.crop_size, ignore_index)
        steps = [
            RandomResize(recipe.scale, recipe.ratio_range, recipe.ratio_step),
            RandomCrop(recipe.crop_size, recipe.cat_max_ratio, ignore_index),
            flip,
            *distortion,
            *([pad, *normalize] if recipe.pad_before_normalization else [*normalize, pad]),
        ]
    return v2.Compose([*steps, v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None})])
