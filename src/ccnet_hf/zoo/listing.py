"""The command that lists the variants of the zoo."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command
from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.recipes import SHORT_NAMES, Recipe, zoo_recipes


@dataclass
class ListArguments:
    json: bool = field(default=False, metadata={"help": "print a JSON list of objects instead of a table"})


def list_variants(arguments: ListArguments) -> None:
    """List the variants of the zoo with the mIoU that mmsegmentation or PaddleSeg reports (not measured here)."""
    variants = [describe(recipe) for recipe in zoo_recipes()]
    if arguments.json:
        print(json.dumps(variants, indent=2))
        return
    width = max(len(variant["name"]) for variant in variants)
    print(f"{'variant':{width}}  classes  inference  reported mIoU (multi-scale + flip)  short name")
    for variant in variants:
        reported = f"{variant['reported']['mean_iou']:.2f} ({variant['reported']['mean_iou_multi_scale_flip']:.2f})"
        print(
            f"{variant['name']:{width}}  {variant['num_labels']:7}  {variant['inference']['mode']:9}  {reported:34}  "
            f"{variant['short_name'] or ''}".rstrip()
        )


def describe(recipe: Recipe) -> dict:
    """What the zoo knows of a variant, ready for JSON."""
    short_names = {name: short_name for short_name, name in SHORT_NAMES.items()}
    return {
        "name": recipe.name,
        "short_name": short_names.get(recipe.name),
        "benchmark": recipe.benchmark,
        "num_labels": get_benchmark(recipe.benchmark).num_labels,
        "inference": recipe.model["inference"],
        "reported": recipe.reported,
        "checkpoint_url": recipe.checkpoint_url,
        "mmseg_config": recipe.mmseg_config,
    }


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.zoo list") -> int:
    return run_command(ListArguments, list_variants, argv, prog)
