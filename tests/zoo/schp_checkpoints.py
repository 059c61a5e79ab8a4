"""Checkpoints of CE2P and SCHP made of deterministic numbers, in the layout of their files."""

import torch
from reference_weights import reference_tensor

from ccnet_hf import CCNetForHumanParsing
from ccnet_hf.recipes import Recipe, get_recipe
from ccnet_hf.zoo.parsing import converted_parsing_recipe, schp_key


CE2P_PREFIXES = {"context_encoding.": "layer5.", "decoder.": "layer6.", "edge.": "edge_layer.", "fushion.": "layer7."}


def parsing_network(recipe: Recipe | str, **changes) -> CCNetForHumanParsing:
    """The network of a recipe as its converted files make it, without memory for its weights."""
    recipe = converted_parsing_recipe(get_recipe(recipe) if isinstance(recipe, str) else recipe)
    with torch.device("meta"):
        return CCNetForHumanParsing(recipe.config(**changes)).eval()


def schp_state_dict(network: CCNetForHumanParsing) -> dict[str, torch.Tensor]:
    """The golden files' weights: InPlaceABN's scales of both signs, and no counters."""
    state_dict = {}
    for key, tensor in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        name = schp_key(key)
        value = torch.full((1,), 0.7) if name.endswith("gamma") else reference_tensor(name, tuple(tensor.shape))
        if value.dim() == 1 and name.endswith(".weight"):
            value[::7] *= -1
        state_dict[name] = value
    return state_dict


def with_ce2p_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in CE2P's file: a bare state dict of `DataParallel`."""
    renamed = {}
    for key, tensor in state_dict.items():
        for schp, ce2p in CE2P_PREFIXES.items():
            if key.startswith(schp):
                key = ce2p + key.removeprefix(schp)
                break
        renamed[f"module.{key}"] = tensor
    return renamed
