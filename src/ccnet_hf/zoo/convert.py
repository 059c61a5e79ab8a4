"""The command that converts one mmsegmentation checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command
from ccnet_hf.recipes import get_recipe
from ccnet_hf.zoo.conversion import convert_checkpoint


@dataclass
class ConvertArguments:
    variant: str = field(
        metadata={"help": "zoo variant, e.g. ccnet-r101-cityscapes (see `python -m ccnet_hf.zoo list`)"}
    )
    checkpoint: str = field(metadata={"help": "mmsegmentation's .pth file"})
    output: str = field(metadata={"help": "folder to write; must not hold files yet"})
    num_labels: int | None = field(
        default=None,
        metadata={"help": "number of classes, if the checkpoint was trained on other classes than the variant's"},
    )


def convert(arguments: ConvertArguments) -> None:
    """Convert a mmsegmentation CCNet checkpoint into a folder that `from_pretrained` reads."""
    convert_checkpoint(arguments.variant, arguments.checkpoint, arguments.output, num_labels=arguments.num_labels)
    print(f"{get_recipe(arguments.variant).name} written to {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ConvertArguments, convert, argv, prog="convert_checkpoint.py")
