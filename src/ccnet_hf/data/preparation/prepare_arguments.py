"""The options of the command that prepares a dataset; nothing of the extra `train` is imported until it runs."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command
from ccnet_hf.data.benchmarks import INSTANCE_BENCHMARKS, prepared_benchmarks


# The word for images and masks of one's own, in the place of a benchmark's name.
FOLDER = "folder"


@dataclass
class PrepareArguments:
    name: str = field(
        metadata={
            "positional": True,
            "choices": [*(benchmark.name for benchmark in prepared_benchmarks()), *INSTANCE_BENCHMARKS],
            "help": "benchmark",
        }
    )
    source: list[str] = field(
        metadata={"help": "the distribution as downloaded: a folder, archives (zip, tar, tar.gz), or several of both"}
    )
    output_dir: str = field(metadata={"help": "folder for the dataset; finished shards in it are kept"})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "namespace/name of a private dataset repository to upload to"}
    )
    num_proc: int = field(default=1, metadata={"help": "workers that read, check and encode"})
    allow_incomplete: bool = field(
        default=False, metadata={"help": "take fewer examples than the benchmark has, leaving out empty splits"}
    )
    skip_corrupt: bool = field(
        default=False, metadata={"help": "leave out examples with a missing or damaged file and list them at the end"}
    )
    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )


@dataclass
class FolderArguments:
    """What is made of images and masks of one's own."""

    images: str = field(metadata={"metavar": "DIR", "help": "folder, or archive, of images"})
    masks: str = field(
        metadata={"metavar": "DIR", "help": "folder, or archive, of masks with the names of the images"}
    )
    classes: list[str] = field(
        metadata={"metavar": "NAME", "help": "names of the classes, the background's among them: background crack"}
    )
    output_dir: str = field(metadata={"help": "folder for the dataset; finished shards in it are kept"})
    mask_values: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "VALUE",
            "help": "what stands for each class in a mask, in the order of --classes: numbers (0 255) or colours "
            "(0,0,0 128,0,0); default: 0, 1, 2, ...",
        },
    )
    ignored_values: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "VALUE",
            "help": "numbers or colours of pixels that neither train nor count; default: 255, if no class has it",
        },
    )
    mask_suffix: str = field(
        default="", metadata={"help": "what names of masks have beside those of images: _mask for a.jpg, a_mask.png"}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "of the images, drawn by name, where DIR has no subfolders train, val and perhaps test"},
    )
    num_proc: int = field(default=1, metadata={"help": "workers that read, check and encode"})
    skip_corrupt: bool = field(
        default=False, metadata={"help": "leave out what has no mask or is damaged, and list it at the end"}
    )
    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "namespace/name of a private dataset repository to upload to"}
    )


def main(argv: Sequence[str] | None = None, prog: str = "prepare_dataset.py") -> int:
    """Run the command that prepares a dataset; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == [FOLDER]:
        return run_command(
            FolderArguments,
            "ccnet_hf.data.preparation.folder:prepare",
            argv[1:],
            f"{prog} {FOLDER}",
            description="Turn a folder of images and a folder of masks into a Hugging Face dataset of parquet shards.",
        )
    archives = [f"{benchmark.name}: {benchmark.raw.description}" for benchmark in prepared_benchmarks()]
    archives += [f"{benchmark.name}: {benchmark.description}" for benchmark in INSTANCE_BENCHMARKS.values()]
    return run_command(
        PrepareArguments,
        "ccnet_hf.data.preparation.prepare:prepare",
        argv,
        prog,
        epilog=f"For images and masks of your own: {prog} {FOLDER} --help. What is looked for. {'; '.join(archives)}.",
        description="Turn a benchmark's official distribution into a Hugging Face dataset of parquet shards.",
    )
