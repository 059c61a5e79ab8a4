"""The command that checks a converted folder against its recipe, golden files and the reported score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError, reading
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.recipes import Recipe, get_recipe
from ccnet_hf.zoo.authors import authors_recipe
from ccnet_hf.zoo.parsing import converted_parsing_recipe


# Largest difference of float32 logits over the largest magnitude, by depth: what another order of summation makes of
# mmsegmentation's own numbers, with room.
GOLDEN_TOLERANCES = {50: 2e-5, 101: 2e-4}
MEAN_IOU_TOLERANCE = 0.1  # percentage points

# What a folder's config may say beyond its recipe.
_INCIDENTAL = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"}


@dataclass
class VerifyArguments:
    folder: str = field(metadata={"positional": True, "help": "folder that convert_checkpoint.py has written"})
    variant: str | None = field(default=None, metadata={"help": "zoo variant; default: the folder's name"})
    goldens: str | None = field(
        default=None,
        metadata={
            "help": "folder of golden files (r50_c19_*_forward.npz, ...): what mmsegmentation computes with the "
            "project's deterministic weights; only for a folder converted from those"
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "folder or Hub id of the benchmark, to compare with the reported mIoU"}
    )
    split: str = field(default="validation", metadata={"help": "split to score on"})


def verify(arguments: VerifyArguments) -> None:
    """Check a converted folder: weights, config, image processor and, where given, golden files and reported mIoU."""
    transformers.utils.logging.disable_progress_bar()
    folder = Path(arguments.folder)
    model, image_processor = load_checkpoint(arguments.folder)
    recipe = get_recipe(arguments.variant or folder.resolve().name)
    config = model.config
    if recipe.task == "instance":
        raise InputError(f"{recipe.name} has no published file to compare with; `ccnet-hf eval` scores a model")
    if recipe.task == "parsing":
        recipe = converted_parsing_recipe(recipe)
    elif config.head_activation == "leaky_relu":
        recipe = authors_recipe(recipe)
    print(f"weights: {len(model.state_dict())} tensors, all finite")

    # No file states the recurrence of the authors' checkpoints, so the recipe cannot either.
    expected_config = recipe.config(recurrence=config.recurrence) if recipe.reported is None else recipe.config()
    _check_equal(folder, "config.json", config.to_dict(), expected_config.to_dict())
    _check_equal(folder, "the image processor", image_processor.to_dict(), recipe.image_processor().to_dict())
    print(f"config and image processor: as the recipe of {recipe.name} says")

    if arguments.goldens is not None:
        _check_goldens(model, Path(arguments.goldens))
    if arguments.dataset_name is not None:
        _check_score(arguments, recipe)


def _check_equal(folder: Path, what: str, found: dict, expected: dict) -> None:
    found, expected = _flat(found), _flat(expected)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"{folder}: {what} has {name}={found.get(name)!r}, the recipe {expected.get(name)!r} "
                "(another variant is named with --variant)"
            )


def _flat(fields: dict, prefix: str = "") -> dict:
    """Fields and, under dotted names, those of the backbone, without what a recipe does not state."""
    flat = {}
    for name, value in fields.items():
        if name == "backbone_config":
            flat |= _flat(value, f"{name}.")
        elif name not in _INCIDENTAL:
            flat[prefix + name] = value
    return flat


def _check_goldens(model: torch.nn.Module, folder: Path) -> None:
    """Compare the low-resolution logits of both heads with those of every golden file of this architecture."""
    config = model.config
    depth = 3 * sum(config.backbone_config.depths) + 2
    pattern = f"r{depth}_c{config.num_labels}_*_forward.npz"
    if config.backbone_config.pooled_shortcut:  # PaddleSeg computed these
        pattern = f"paddle_r{depth}_c{config.num_labels}_*.npz"
    files = sorted(folder.glob(pattern))
    if not files:
        raise InputError(f"{folder} holds no golden file {pattern}")
    for file in files:
        with reading(file), np.load(file) as golden:
            pixel_values = torch.from_numpy(golden["input"])
            expected = {"logits": golden["decode_logits"], "auxiliary_logits": golden["aux_logits"]}
        labels = torch.full((len(pixel_values), *pixel_values.shape[-2:]), config.semantic_loss_ignore_index)
        with torch.inference_mode():  # labels only because the auxiliary head runs where there is a loss
            outputs = model(pixel_values.to(model.device), labels=labels.to(model.device))
        for name, wanted in expected.items():
            if outputs[name].shape != wanted.shape:
                raise InputError(f"{file}: {name} has shape {wanted.shape}, the model's {tuple(outputs[name].shape)}")
            error = np.abs(outputs[name].float().cpu().numpy() - wanted).max() / np.abs(wanted).max()
            # written so that NaN fails
            if not error <= GOLDEN_TOLERANCES[depth]:
                raise InputError(
                    f"{file.name}: {name} are off by {error:.1e} of the largest magnitude, "
                    f"{GOLDEN_TOLERANCES[depth]:.0e} is allowed"
                )
            print(f"{file.name}: {name} within {error:.1e} of the largest magnitude")


def _check_score(arguments: VerifyArguments, recipe: Recipe) -> None:
    """Score the folder by its own protocol, at a single scale, and compare with the reported mIoU."""
    from ccnet_hf.evaluation.eval import EvalArguments, evaluate  # only here, for it needs the extra `train`

    scores = evaluate(
        EvalArguments(model_name_or_path=arguments.folder, dataset_name=arguments.dataset_name, split=arguments.split)
    )
    measured = 100 * scores["mean_iou"]
    if recipe.reported is None:
        print(f"mean_iou {measured:.2f}; no score is reported for this very file")
        return
    reported = recipe.reported["mean_iou"]
    if not abs(measured - reported) <= MEAN_IOU_TOLERANCE:
        raise InputError(
            f"mean_iou is {measured:.2f}, reported is {reported:.2f}: more than {MEAN_IOU_TOLERANCE} apart"
        )
    print(f"mean_iou {measured:.2f}, reported {reported:.2f}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.zoo verify") -> int:
    return run_command(VerifyArguments, verify, argv, prog)
