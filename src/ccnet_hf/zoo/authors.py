"""The checkpoints of the authors' own repository, speedinghzl/CCNet, and what its network does otherwise.

Against mmsegmentation's CCNet: a stem of 64, 64 and 128 channels, max pooling that rounds up, dilations that are not
contracted, leaky ReLU in both heads, 512 channels and a bias in the auxiliary one, corners aligned in every resize,
and BGR input in 0..255 minus a mean. Its InPlaceABN scales by |weight| + eps where a batch norm scales by weight. No
file states the recurrence: 1 and 2 are published.
"""

from dataclasses import replace

import torch

from ccnet_hf.errors import InputError
from ccnet_hf.recipes import Recipe, get_recipe


AUTHORS_VARIANT = "ccnet-r101-cityscapes-authors"
ABN_EPS = 1e-5
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)  # of pixels in 0..255
AUXILIARY_BIAS = "dsn.0.bias"

# Parts of a key, mmsegmentation's and the authors', replaced from top to bottom.
_RENAMED_PARTS = (
    ("backbone.stem.0.", "conv1."),
    ("backbone.stem.1.", "bn1."),
    ("backbone.stem.3.", "conv2."),
    ("backbone.stem.4.", "bn2."),
    ("backbone.stem.6.", "conv3."),
    ("backbone.stem.7.", "bn3."),
    ("backbone.", ""),
    ("decode_head.convs.0.", "head.conva."),
    ("decode_head.cca.gamma.scale", "head.cca.gamma"),
    ("decode_head.cca.", "head.cca."),
    ("decode_head.convs.1.", "head.convb."),
    ("decode_head.conv_cat.", "head.bottleneck."),
    ("decode_head.conv_seg.", "head.bottleneck.3."),
    ("auxiliary_head.convs.0.", "dsn."),
    ("auxiliary_head.conv_seg.", "dsn.3."),
    (".conv.", ".0."),
    (".bn.", ".1."),
)


def is_authors_layout(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether the entries are named as in the authors' network."""
    return any(key.startswith(("head.conva.", "head.cca.")) for key in state_dict)


def authors_key(mmsegmentation_key: str) -> str:
    """The authors' name of an entry that mmsegmentation calls `mmsegmentation_key`."""
    key = mmsegmentation_key
    for theirs, authors in _RENAMED_PARTS:
        key = key.replace(theirs, authors)
    return key


def is_authors_recipe(recipe: Recipe) -> bool:
    """Whether `recipe` is one for the authors' network."""
    return recipe.name.startswith(AUTHORS_VARIANT)


def authors_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the authors' own weights: as `recipes.py` has it for their network, with the input they know.

    Args:
        recipe: one for their network, or one of the zoo with the same depth and classes.

    Raises:
        InputError: it is another one.
    """
    if not is_authors_recipe(recipe):
        if not recipe.name.startswith("ccnet-r101-cityscapes"):
            raise InputError(f"the authors' checkpoints are of {AUTHORS_VARIANT}, not of {recipe.name}")
        recipe = get_recipe(AUTHORS_VARIANT)
    red, green, blue = (mean / 255 for mean in reversed(MEAN_BGR))
    # 0..1 divided by 1/255: the network sees 0..255 minus the mean
    return replace(recipe, image_mean=(red, green, blue), image_std=(1 / 255,) * 3)


def fold(tensors: dict[str, torch.Tensor]) -> None:
    """Make the authors' or SCHP's tensors, under their own keys, fit convolutions and batch norms of RGB; in place.

    Exact in evaluation: InPlaceABN's scale becomes the batch norm's weight, the auxiliary convolution's bias moves
    into the running mean behind it, and the first convolution's input channels are reversed.
    """
    for key in tensors:
        if key.endswith(".running_mean"):
            weight = key.replace("running_mean", "weight")
            tensors[weight] = tensors[weight].abs() + ABN_EPS
    if AUXILIARY_BIAS in tensors:
        tensors["dsn.1.running_mean"] = tensors["dsn.1.running_mean"] - tensors.pop(AUXILIARY_BIAS)
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1)
