"""The checkpoint of PaddleSeg's CCNet, and what its network does otherwise.

Against mmsegmentation's CCNet: shortcuts that pool (ResNet-V1d), dilations that are not contracted, leaky ReLU in the
convolutions before and after the attention, 512 channels in the auxiliary head, and a bias before the batch norm of
the last convolution of each head. Its file, a `.pdparams`, has no counters of batch norms, and no recurrence: 2 is
published.
"""

import torch

from ccnet_hf.recipes import PADDLESEG_VARIANT, Recipe


# Biases that a batch norm follows, and what they are folded into.
_FOLDED = {
    "head.out.conv_bn_relu._conv.bias": "head.out.conv_bn_relu._batch_norm._mean",
    "aux_head.conv_bn_relu._conv.bias": "aux_head.conv_bn_relu._batch_norm._mean",
}

# Parts of a key, ours and PaddleSeg's, replaced from top to bottom.
_RENAMED_PARTS = (
    ("model.backbone.", "backbone."),
    ("stem.convolutions.0.", "conv1_1."),
    ("stem.convolutions.1.", "conv1_2."),
    ("stem.convolutions.2.", "conv1_3."),
    *((f"stages.{index}.blocks.", f"bb_{index}_") for index in range(4)),
    (".conv1.", ".conv0."),
    (".conv2.", ".conv1."),
    (".conv3.", ".conv2."),
    (".shortcut.", ".short."),
    ("auxiliary_head.projection.", "aux_head.conv_bn_relu."),
    ("auxiliary_head.classifier.", "aux_head.conv."),
    ("model.head.input_projection.", "head.conva."),
    ("model.head.attention.query.", "head.cca.q_conv."),
    ("model.head.attention.key.", "head.cca.k_conv."),
    ("model.head.attention.value.", "head.cca.v_conv."),
    ("model.head.attention.gamma", "head.cca.gamma"),
    ("model.head.output_projection.", "head.convb."),
    ("model.head.fusion.", "head.out.conv_bn_relu."),
    (".convolution.", "._conv."),
    (".normalization.running_mean", "._batch_norm._mean"),
    (".normalization.running_var", "._batch_norm._variance"),
    (".normalization.", "._batch_norm."),
)


def paddleseg_key(key: str) -> str:
    """Name of a `CCNetForSemanticSegmentation` state-dict entry in PaddleSeg's network."""
    if key.startswith("classifier."):
        return f"head.out.conv.{key.removeprefix('classifier.')}"
    for ours, theirs in _RENAMED_PARTS:
        key = key.replace(ours, theirs)
    return key


def is_paddleseg_layout(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether the entries are named as in PaddleSeg's network."""
    return any(key.startswith("head.conva._conv.") for key in state_dict)


def is_paddleseg_recipe(recipe: Recipe) -> bool:
    """Whether `recipe` is the one for PaddleSeg's network."""
    return recipe.name == PADDLESEG_VARIANT


def bias_shapes(shapes: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """The shapes of the biases that only PaddleSeg's network has, of those of its other tensors."""
    return {bias: shapes[mean] for bias, mean in _FOLDED.items() if mean in shapes}


def fold_biases(tensors: dict[str, torch.Tensor]) -> None:
    """Move the biases before a batch norm into its running mean, in float64 and in place: exact in evaluation."""
    for bias, mean in _FOLDED.items():
        if bias in tensors:
            tensors[mean] = tensors[mean].double() - tensors.pop(bias).double()
