"""The checkpoints of the authors' own repository, speedinghzl/CCNet, and what its network does otherwise.

Against mmsegmentation's CCNet: a stem of 64, 64 and 128 channels, max pooling that rounds up, dilations that are not
contracted, leaky ReLU in both heads, 512 channels and a bias in the auxiliary one, corners aligned in every resize,
and BGR input in 0..255 minus a mean. Its InPlaceABN scales by |weight| + eps where a batch norm scales by weight. No
file states the recurrence: 1 and 2 are published.
"""

from copy import deepcopy
from dataclasses import replace

import torch

from ccnet_hf.recipes import Recipe


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


def authors_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the authors' network with the classes and the depth of `recipe`.

    Pictures are tested as the authors test Cityscapes: at 2048x1024, in windows of 769x769 whose distance is
    ceil(769 * 2/3) = 513, their logits averaged.
    """
    model = deepcopy(recipe.model)
    model["backbone_config"] |= {"stem_size": 128, "contract_dilation": False, "pool_ceil_mode": True}
    model |= {
        "head_activation": "leaky_relu",
        "auxiliary_channels": 512,
        "align_corners": True,
        "loss_reduction": "valid",
        "inference": {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]},
    }
    red, green, blue = (mean / 255 for mean in reversed(MEAN_BGR))
    return replace(
        recipe,
        model=model,
        size={"shortest_edge": 1024, "longest_edge": 2048},
        image_mean=(red, green, blue),
        # 0..1 divided by 1/255: the network sees 0..255 minus the mean
        image_std=(1 / 255,) * 3,
        reported=None,
        checkpoint_file=None,
        checkpoint_url=None,
        mmseg_config=None,
    )


def fold(tensors: dict[str, torch.Tensor]) -> None:
    """Make the authors' tensors, under their own keys, fit convolutions and batch norms that take RGB; in place.

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
