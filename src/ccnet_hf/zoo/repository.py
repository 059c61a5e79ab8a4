"""What the repository of a checkpoint on the Hub holds: the converted folder with its card and its code."""

import json
import reprlib
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ccnet_hf.errors import InputError
from ccnet_hf.hub import CARD_FILE, HubRepository, eval_result_files
from ccnet_hf.inference.loading import load_config, read_json, weight_headers
from ccnet_hf.recipes import Recipe
from ccnet_hf.remote_code import CONFIG_FILE, processor_file, published_files
from ccnet_hf.zoo.cards import render_card, repository_names


# What tells one variant's folder from another's; the sizes of layers are the weights' affair.
_CONFIG_FIELDS = ("id2label", "inference", "align_corners", "loss_reduction", "recurrence", "context_module")
_PROCESSOR_FIELDS = ("size", "image_mean", "image_std", "do_reduce_labels", "align_corners", "palette")


def model_repositories(recipe: Recipe, checkpoints: Path, namespace: str) -> list[HubRepository]:
    """The repositories of a variant, under its own name and its short one, from a converted or trained checkpoint.

    Args:
        recipe: the variant.
        checkpoints: folder with the variant's folder in it, under either name.
        namespace: user or organisation on the Hub.

    Raises:
        InputError: the folder is missing, incomplete, damaged, or another variant's.
    """
    names = repository_names(recipe)
    found = [checkpoints / name for name in names if (checkpoints / name).is_dir()]
    if not found:
        raise InputError(f"{checkpoints} holds no folder {' or '.join(names)}; convert_checkpoint.py writes it")
    folder = found[0]
    config = load_config(str(folder), [recipe.config_class])
    processor = read_json(folder / processor_file(config.model_type))
    _check_variant(folder, config, processor, recipe)
    files = published_files(read_json(folder / CONFIG_FILE), processor) | {
        file.name: file for file in _weight_files(folder)
    }
    repositories = []
    for name in names:
        card = render_card(recipe, name, namespace)
        beside = {CARD_FILE: card.encode()} | eval_result_files(card)
        repositories.append(HubRepository(f"{namespace}/{name}", "model", beside | files))
    return repositories


def _check_variant(folder: Path, found: PreTrainedConfig, processor: dict[str, Any], recipe: Recipe) -> None:
    expected = recipe.config()
    for name in _CONFIG_FIELDS:
        _check_equal(folder / CONFIG_FILE, name, getattr(found, name, None), getattr(expected, name, None), recipe)
    depths = [getattr(side.backbone_config, "depths", None) for side in (found, expected)]
    _check_equal(folder / CONFIG_FILE, "backbone_config.depths", *depths, recipe)
    expected_processor = json.loads(recipe.image_processor().to_json_string())
    for name in _PROCESSOR_FIELDS:
        file = folder / processor_file(found.model_type)
        _check_equal(file, name, processor.get(name), expected_processor.get(name), recipe)


def _check_equal(file: Path, name: str, found: Any, expected: Any, recipe: Recipe) -> None:
    if found != expected:
        found, expected = reprlib.repr(found), reprlib.repr(expected)
        raise InputError(f"{file} is not {recipe.name}'s: {name} is {found} there and {expected} in the variant")


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files, with the index if there are several. None of them is truncated or missing."""
    weights = sorted({file for file, *_ in weight_headers(folder).values()})
    if not weights:
        raise InputError(f"{folder} holds no {SAFE_WEIGHTS_NAME}")
    return weights if weights == [folder / SAFE_WEIGHTS_NAME] else [*weights, folder / SAFE_WEIGHTS_INDEX_NAME]
