"""The checkpoints of CE2P and SCHP, human parsers, and what their files do otherwise.

Both are one network under two sets of names (liutinglt/CE2P and GoGoDuck912/Self-Correction-Human-Parsing). Its
InPlaceABN scales by |weight| + eps where a batch norm scales by weight, has no counters, and it reads BGR. With
recurrent criss-cross attention in the place of the pyramid pooling, as the CCNet paper has it, the names are SCHP's
with those of the authors' module inside.
"""

from dataclasses import replace

import torch

from ccnet_hf.errors import InputError
from ccnet_hf.recipes import CONVERTED_PARSERS, Recipe


# Parts of a key, SCHP's and CE2P's.
_CE2P_PREFIXES = (("context_encoding.", "layer5."), ("decoder.", "layer6."), ("edge.", "edge_layer."))
_CE2P_PREFIXES += (("fushion.", "layer7."),)

# Parts of a key, ours and SCHP's, replaced from top to bottom; the backbone's are mmsegmentation's without a prefix.
_RENAMED_PARTS = (
    ("backbone.stem.convolutions.0.convolution.", "conv1."),
    ("backbone.stem.convolutions.0.normalization.", "bn1."),
    ("backbone.stem.convolutions.1.convolution.", "conv2."),
    ("backbone.stem.convolutions.1.normalization.", "bn2."),
    ("backbone.stem.convolutions.2.convolution.", "conv3."),
    ("backbone.stem.convolutions.2.normalization.", "bn3."),
    ("backbone.stages.0.blocks.", "layer1."),
    ("backbone.stages.1.blocks.", "layer2."),
    ("backbone.stages.2.blocks.", "layer3."),
    ("backbone.stages.3.blocks.", "layer4."),
    (".conv1.convolution.", ".conv1."),
    (".conv1.normalization.", ".bn1."),
    (".conv2.convolution.", ".conv2."),
    (".conv2.normalization.", ".bn2."),
    (".conv3.convolution.", ".conv3."),
    (".conv3.normalization.", ".bn3."),
    (".shortcut.convolution.", ".downsample.0."),
    (".shortcut.normalization.", ".downsample.1."),
    ("context.input_projection.", "context_encoding.conva."),
    ("context.attention.query.", "context_encoding.cca.query_conv."),
    ("context.attention.key.", "context_encoding.cca.key_conv."),
    ("context.attention.value.", "context_encoding.cca.value_conv."),
    ("context.attention.gamma", "context_encoding.cca.gamma"),
    ("context.output_projection.", "context_encoding.convb."),
    ("context.fusion.", "context_encoding.bottleneck."),
    *((f"context.projections.{i}.convolution.", f"context_encoding.stages.{i}.1.") for i in range(4)),
    *((f"context.projections.{i}.normalization.", f"context_encoding.stages.{i}.2.") for i in range(4)),
    ("decoder.context_projection.", "decoder.conv1."),
    ("decoder.shortcut_projection.", "decoder.conv2."),
    ("decoder.fusion.0.convolution.", "decoder.conv3.0."),
    ("decoder.fusion.0.normalization.", "decoder.conv3.1."),
    ("decoder.fusion.1.convolution.", "decoder.conv3.2."),
    ("decoder.fusion.1.normalization.", "decoder.conv3.3."),
    ("parsing_classifier.", "decoder.conv4."),
    *((f"edge_branch.projections.{i}.", f"edge.conv{i + 1}.") for i in range(3)),
    ("edge_branch.classifier.", "edge.conv4."),
    ("edge_branch.fusion_classifier.", "edge.conv5."),
    (".convolution.", ".0."),
    (".normalization.", ".1."),
)


def schp_key(key: str) -> str:
    """Name of a `CCNetForHumanParsing` state-dict entry in SCHP's network."""
    if key.startswith("classifier."):
        return f"fushion.3.{key.removeprefix('classifier.')}"
    if key.startswith("fusion."):
        key = f"fushion.{key.removeprefix('fusion.')}"
    for ours, theirs in _RENAMED_PARTS:
        key = key.replace(ours, theirs)
    return key


def with_schp_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with CE2P's names under SCHP's; one with SCHP's as it is."""
    renamed = {}
    for key, tensor in state_dict.items():
        for schp, ce2p in _CE2P_PREFIXES:
            if key.startswith(ce2p):
                key = schp + key.removeprefix(ce2p)
                break
        renamed[key] = tensor
    return renamed if len(renamed) == len(state_dict) else state_dict


def is_published_parser(recipe: Recipe) -> bool:
    """Whether files of `recipe`'s network are known: SCHP's, CE2P's, or SCHP's with the attention."""
    return recipe.name in CONVERTED_PARSERS


def converted_parsing_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a file's own weights: without the losses that only training adds to CE2P's sum.

    Raises:
        InputError: no files of this recipe's network are known.
    """
    if not is_published_parser(recipe):
        raise InputError(f"files of human parsers are of {', '.join(CONVERTED_PARSERS)}, not of {recipe.name}")
    added = {"category_consistent_loss_weight": 0.0, "lovasz_loss_weight": 0.0}
    return replace(recipe, model=recipe.model | added)
