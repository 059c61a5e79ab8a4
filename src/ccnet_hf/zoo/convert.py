"""The command that converts one checkpoint, or all of the zoo."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError
from ccnet_hf.files import check_new
from ccnet_hf.recipes import CONVERTED_PARSERS, Recipe, get_recipe, zoo_recipes
from ccnet_hf.zoo.authors import is_authors_recipe
from ccnet_hf.zoo.download import download_checkpoint
from ccnet_hf.zoo.mmsegmentation import convert_checkpoint
from ccnet_hf.zoo.parsing import is_published_parser
from ccnet_hf.zoo.torchvision_maskrcnn import CHECKPOINT_URL, VARIANT, convert_maskrcnn


@dataclass
class ConvertArguments:
    output: str = field(
        metadata={"help": "folder to write; must not hold files yet. With --all: one folder in it for each variant"}
    )
    variant: str | None = field(
        default=None,
        metadata={
            "help": "zoo variant, e.g. ccnet-r101-cityscapes (see `python -m ccnet_hf.zoo list`), a human parser: "
            f"{', '.join(CONVERTED_PARSERS)}, or {VARIANT}, torchvision's Mask R-CNN of ResNet-50 or -101"
        },
    )
    all: bool = field(
        default=False, metadata={"help": "convert all variants of the zoo, but for those that --output holds already"}
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": ".pth file of mmsegmentation, the authors, CE2P, SCHP or torchvision, or .pdparams file of "
            "PaddleSeg; default: download the published one"
        },
    )
    checkpoints: str | None = field(
        default=None,
        metadata={
            "help": "folder of the zoo's files under their published names; missing ones are downloaded into it; "
            "default: torch's cache"
        },
    )
    num_labels: int | None = field(
        default=None,
        metadata={"help": "number of classes, if the checkpoint was trained on other classes than the variant's"},
    )
    recurrence: int | None = field(
        default=None,
        metadata={
            "help": "rounds of attention the checkpoint was trained with; default: 2. torchvision's has none: it "
            "gets as many that change nothing before they are trained, with 0 none"
        },
    )

    def __post_init__(self):
        if self.all == (self.variant is not None):
            raise InputError("give either --variant or --all")
        if self.checkpoint is not None and (self.all or self.checkpoints is not None):
            raise InputError("--checkpoint goes neither with --all nor with --checkpoints")
        if self.all and (self.num_labels is not None or self.recurrence is not None):
            raise InputError("--num_labels and --recurrence are for one --variant, not for --all")


def convert(arguments: ConvertArguments) -> None:
    """Convert a checkpoint of mmsegmentation, the authors, PaddleSeg, CE2P, SCHP or torchvision into a folder that
    `from_pretrained` reads."""
    transformers.utils.logging.disable_progress_bar()
    checkpoints = Path(arguments.checkpoints or Path(torch.hub.get_dir()) / "checkpoints")
    output = Path(arguments.output)
    if arguments.all:
        _convert_all(checkpoints, output)
        return
    check_new(output)  # before the download, not after it
    if arguments.variant == VARIANT:
        checkpoint = arguments.checkpoint or _stored_or_downloaded(CHECKPOINT_URL, checkpoints)
        convert_maskrcnn(checkpoint, output, arguments.num_labels, arguments.recurrence)
        print(f"{Path(checkpoint).name} written to {output}")
        return
    checkpoint = arguments.checkpoint or _published(get_recipe(arguments.variant), checkpoints)
    convert_checkpoint(arguments.variant, checkpoint, output, arguments.num_labels, arguments.recurrence)
    print(f"{Path(checkpoint).name} written to {output}")


def _convert_all(checkpoints: Path, output: Path) -> None:
    """Convert what `output` lacks. A bad checkpoint does not keep the others back; a bad disk or network does."""
    bad = []
    for recipe in zoo_recipes():
        folder = output / recipe.name
        if (folder / "config.json").is_file():
            print(f"{recipe.name} is there already")
            continue
        try:
            check_new(folder)
            convert_checkpoint(recipe.name, _published(recipe, checkpoints), folder)
        except InputError as error:
            bad.append(f"{recipe.name}: {error}")
        else:
            print(f"{recipe.name} written to {folder}")
    if bad:
        raise InputError(f"{len(bad)} of {len(zoo_recipes())} variants were not converted: {'; '.join(bad)}")


def _published(recipe: Recipe, checkpoints: Path) -> Path:
    """The zoo's file for this variant, downloaded if the folder does not hold it."""
    if recipe.checkpoint_file is None:
        has_files = is_authors_recipe(recipe) or is_published_parser(recipe)
        other = "give its file with --checkpoint" if has_files else "and there is no other to convert"
        raise InputError(f"no checkpoint of {recipe.name} is published for download: {other}")
    return _stored_or_downloaded(recipe.checkpoint_url, (checkpoints / recipe.checkpoint_file).parent)


def _stored_or_downloaded(url: str, folder: Path) -> Path:
    file = folder / url.rpartition("/")[2]
    return file if file.is_file() else download_checkpoint(url, folder)


def main(argv: Sequence[str] | None = None, prog: str = "convert_checkpoint.py") -> int:
    return run_command(ConvertArguments, convert, argv, prog)
