"""mmsegmentation checkpoints made of deterministic weights, and what our converter makes of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from authors_network import SMALL_SIZES
from reference_weights import mmsegmentation_state_dict
from transformers import AutoModelForSemanticSegmentation

from ccnet_hf import CCNetForSemanticSegmentation
from ccnet_hf.recipes import PADDLESEG_VARIANT, RECIPES, Recipe, get_recipe
from ccnet_hf.zoo import convert_checkpoint, mmsegmentation_key


# Depth -> a variant of that depth whose classes the golden files use.
VARIANTS = {50: "ccnet-r50-cityscapes-512x1024-40k", 101: "ccnet-r101-ade20k-512x512-80k"}
NUM_LABELS = {50: 19, 101: 150}


@pytest.fixture(scope="session")
def converted_folder(tmp_path_factory) -> Callable[[int], Path]:
    """`converted_folder(depth)`: the golden files' weights as a `.pth` file, sent through the converter once."""
    folders: dict[int, Path] = {}

    def convert(depth: int) -> Path:
        if depth not in folders:
            work = tmp_path_factory.mktemp(f"r{depth}")
            checkpoint, folders[depth] = work / "mmsegmentation.pth", work / VARIANTS[depth]
            state_dict = mmsegmentation_state_dict(depth, NUM_LABELS[depth])
            torch.save({"meta": {"CLASSES": ["any"]}, "state_dict": state_dict}, checkpoint)
            convert_checkpoint(VARIANTS[depth], checkpoint, folders[depth])
            checkpoint.unlink()
        return folders[depth]

    return convert


@pytest.fixture(scope="session")
def load_model(converted_folder) -> Callable[..., CCNetForSemanticSegmentation]:
    """`load_model(depth, dtype=..., **config)`: the converted folder as a user loads it."""

    def load(depth: int, **kwargs) -> CCNetForSemanticSegmentation:
        return AutoModelForSemanticSegmentation.from_pretrained(converted_folder(depth), **kwargs)

    return load


def _narrow(variant: str, name: str) -> Recipe:
    """A recipe like that of `variant` with a narrow network, converted in a moment."""
    recipe = get_recipe(variant)
    backbone = recipe.model["backbone_config"] | {
        "depths": list(SMALL_SIZES["depths"]),
        "hidden_sizes": [4 * width for width in SMALL_SIZES["widths"]],
    }
    return replace(
        recipe, name=name, model=recipe.model | {"backbone_config": backbone, "hidden_size": SMALL_SIZES["channels"]}
    )


@pytest.fixture
def small_variant(monkeypatch) -> str:
    """Name of a narrow zoo variant like ccnet-r101-cityscapes."""
    monkeypatch.setitem(RECIPES, "ccnet-small", _narrow("ccnet-r101-cityscapes", "ccnet-small"))
    return "ccnet-small"


@pytest.fixture
def small_authors_variant(monkeypatch) -> str:
    """Name of the authors' variant, made narrow."""
    name = "ccnet-r101-cityscapes-authors"
    monkeypatch.setitem(RECIPES, name, _narrow(name, name))
    return name


@pytest.fixture
def small_paddleseg_variant(monkeypatch) -> str:
    """Name of PaddleSeg's variant, made narrow."""
    monkeypatch.setitem(RECIPES, PADDLESEG_VARIANT, _narrow(PADDLESEG_VARIANT, PADDLESEG_VARIANT))
    return PADDLESEG_VARIANT


@pytest.fixture
def small_checkpoint(small_variant) -> dict[str, torch.Tensor]:
    """A state dict for it, named as in mmsegmentation."""
    torch.manual_seed(0)
    state_dict = CCNetForSemanticSegmentation(get_recipe(small_variant).config()).state_dict()
    for tensor in state_dict.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
        if tensor.dim() == 4:
            tensor.div_(tensor[0].numel())  # so that no logit overflows
    gamma = "model.head.attention.gamma"
    state_dict[gamma] = state_dict[gamma].reshape(())
    return {mmsegmentation_key(key): tensor for key, tensor in state_dict.items()}
