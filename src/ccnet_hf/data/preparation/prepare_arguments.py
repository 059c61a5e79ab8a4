"""The options of the command that prepares a dataset; nothing of the extra `train` is imported until it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command
from ccnet_hf.data.benchmarks import INSTANCE_BENCHMARKS, prepared_benchmarks


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


def main(argv: Sequence[str] | None = None, prog: str = "prepare_dataset.py") -> int:
    """Run the command that prepares a dataset; returns the exit status."""
    archives = [f"{benchmark.name}: {benchmark.raw.description}" for benchmark in prepared_benchmarks()]
    archives += [f"{benchmark.name}: {benchmark.description}" for benchmark in INSTANCE_BENCHMARKS.values()]
    return run_command(
        PrepareArguments,
        "ccnet_hf.data.preparation.prepare:prepare",
        argv,
        prog,
        epilog=f"What is looked for. {'; '.join(archives)}.",
        description="Turn a benchmark's official distribution into a Hugging Face dataset of parquet shards.",
    )
