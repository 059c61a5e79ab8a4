"""The network that is measured: a recipe's with random weights, or a checkpoint's, and what it is measured on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from ccnet_hf.data.images import read_image
from ccnet_hf.errors import InputError
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.models.layers_ccnet import CrissCrossAttention
from ccnet_hf.recipes import get_recipe


_GAMMA = 0.3
_FITTED_SIZE = (2, 3, 256, 256)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GRAIN = 16  # pixels between the random numbers that noise is interpolated from
_NUM_NOISE = 4


def build_network(variant: str, model_name_or_path: str | None = None) -> PreTrainedModel:
    """A network in float32 on the CPU, in eval mode.

    Random weights compute something that can be compared: gamma is 0.3, for at 0 the attention is the identity, and
    batch norms have the statistics of noise, for with those of an untrained network logits vanish or explode.

    Args:
        variant: recipe whose network it is.
        model_name_or_path: a checkpoint in its place.

    Raises:
        InputError: there is no such recipe or checkpoint, or it is not for semantic segmentation of images.
    """
    if model_name_or_path is not None:
        model, _ = load_checkpoint(model_name_or_path, "float32", "cpu")
        if getattr(model.config, "model_type", None) not in ("ccnet", "ccnet_parsing"):
            raise InputError(f"{model_name_or_path} is a {type(model).__name__}; semantic segmentation is measured")
        return model
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(get_recipe(variant).config())
    for module in model.modules():
        if isinstance(module, CrissCrossAttention):
            nn.init.constant_(module.gamma, _GAMMA)
    fit_statistics(model, noise(_FITTED_SIZE))
    return model.eval()


@torch.no_grad()
def fit_statistics(model: PreTrainedModel, pixel_values: torch.Tensor) -> None:
    """Give batch norms the statistics that images (B, 3, H, W) have in the network, in place."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches, of which there is one
    was_training = model.training
    model.train()(pixel_values=pixel_values)
    model.train(was_training)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def noise(shape: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Images (B, 3, H, W) of noise without single pixels that stand out, of unit variance or so: like photographs,
    and unlike white noise, neighbouring pixels are alike."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(batch, channels, height // _GRAIN + 2, width // _GRAIN + 2, generator=generator)
    return nn.functional.interpolate(grid, (height, width), mode="bicubic", align_corners=False)


def network_inputs(paths: Sequence[Path], batch_size: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Batches (batch_size, 3, H, W) of network input, float32.

    Args:
        paths: pictures, each of which makes a batch of itself; none take a few batches of noise.
        batch_size: images in a batch.
        size: (height, width) that pictures are resized to, normalised as for ImageNet.
    """
    if not paths:
        return [noise((batch_size, 3, *size), seed) for seed in range(_NUM_NOISE)]
    batches = []
    for path in paths:
        image = read_image(path).resize(size[::-1])
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*size, 3).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        batches.append(((pixels - mean) / std).expand(batch_size, -1, -1, -1).contiguous())
    return batches
