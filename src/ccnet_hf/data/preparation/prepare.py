"""The command that turns a benchmark's official distribution into a Hugging Face dataset."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from huggingface_hub import HfApi

from ccnet_hf.data.archives import check_sources, close_archives, list_files
from ccnet_hf.data.benchmarks import Benchmark, InstanceBenchmark, get_benchmark
from ccnet_hf.data.images import check_max_pixels, turned_note
from ccnet_hf.data.preparation.card import dataset_repository
from ccnet_hf.data.preparation.examples import RawExample, find_examples
from ccnet_hf.data.preparation.instances import instances, verified_instances
from ccnet_hf.data.preparation.prepare_arguments import PrepareArguments, main
from ccnet_hf.data.preparation.shards import PreparedDataset
from ccnet_hf.data.preparation.writing import check_output_dir, counted, first_names, label_maps, write_dataset
from ccnet_hf.errors import InputError
from ccnet_hf.files import exclusive, remove_leftovers
from ccnet_hf.hub import check_token, publish
from ccnet_hf.limits import MAX_PROCESSES, check_range


def prepare_dataset(
    name: str,
    source: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    num_proc: int = 1,
    allow_incomplete: bool = False,
    skip_corrupt: bool = False,
    max_shard_size: int = 500_000_000,
    max_image_pixels: int | None = None,
) -> PreparedDataset:
    """Write a benchmark as parquet shards and a card, which `datasets.load_dataset(output_dir)` reads.

    The folder holds a dataset once all of it is written. Called again after an end of any kind, the function keeps the
    finished shards and makes the others.

    Args:
        name: of the benchmark, e.g. `"cityscapes"`.
        source: the distribution as downloaded: a folder, an archive, or several of them.
        output_dir: folder to write.
        num_proc: workers that read, check and encode. A script that asks for more than one makes this call under
            `if __name__ == "__main__":`, for every worker imports it.
        allow_incomplete: take fewer images than the benchmark has.
        skip_corrupt: leave out examples with a missing or damaged file instead of ending there.
        max_shard_size: most bytes of images in one parquet file.
        max_image_pixels: the largest number of pixels of an image, 0 for any; by default Pillow's 178,956,970.

    Raises:
        InputError: files are missing, damaged or of another kind, and the message names them; another process is
            preparing in the same folder, which may also hold a `README.md` that is no such card; or a worker died.
        OSError: `output_dir` cannot be written, or the disk is full.
    """
    benchmark = get_benchmark(name)
    if not isinstance(benchmark, InstanceBenchmark) and benchmark.raw is None:
        raise InputError(f"the official distribution of {benchmark.title} is not known here")
    check_range("num_proc", num_proc, 1, MAX_PROCESSES)
    check_max_pixels(max_image_pixels)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    output_dir = Path(output_dir)
    check_sources(sources)
    check_output_dir(output_dir)
    scratch = output_dir / ".unpacked"
    with exclusive(output_dir, inside=True):
        for folder in (output_dir, scratch, output_dir / "data"):
            remove_leftovers(folder)
        try:
            files = list_files(sources, scratch)
            if isinstance(benchmark, InstanceBenchmark):
                kind = instances(benchmark, max_image_pixels)
                examples = verified_instances(benchmark, files, allow_incomplete, skip_corrupt)
            else:
                kind = label_maps(benchmark, max_image_pixels)
                found = find_examples(files, benchmark.raw)
                examples = _verify(benchmark, found, sources, allow_incomplete, skip_corrupt)
            prepared = write_dataset(kind, examples, output_dir, num_proc, skip_corrupt, max_shard_size)
        finally:
            close_archives()
        shutil.rmtree(scratch, ignore_errors=True)
    return prepared


def build(
    name: str, source: str | Path | Sequence[str | Path], output_dir: str | Path, **kwargs
) -> datasets.DatasetDict:
    """Prepare a benchmark and load it; arguments as for `prepare_dataset`."""
    prepare_dataset(name, source, output_dir, **kwargs)
    return datasets.load_dataset(str(output_dir))


def _verify(
    benchmark: Benchmark,
    examples: Mapping[str, Sequence[RawExample]],
    sources: Sequence[str | Path],
    allow_incomplete: bool,
    skip_corrupt: bool,
) -> dict[str, list[RawExample]]:
    """Compare what was found with the benchmark's counts, before hours of work.

    Returns:
        The examples of which there is at least a file, without the splits that have none.

    Raises:
        InputError: something is missing and is not allowed to be.
    """
    if not any(example.image and example.label for found in examples.values() for example in found):
        where = ", ".join(map(str, sources))
        raise InputError(
            f"no image of {benchmark.title} with its label is in {where}; looked for {benchmark.raw.description}"
        )
    present = {split: [example for example in found if not example.is_absent] for split, found in examples.items()}
    fewer, broken = [], []
    for split, found in present.items():
        expected = benchmark.num_examples[split]
        if len(found) > expected:
            raise InputError(f"split {split} has {len(found):,} examples, {benchmark.title} has {expected:,}")
        if len(found) < expected:
            missing = [example.name for example in examples[split] if example.is_absent] or [
                f"{prefix} {number} of {wanted}"
                for prefix, wanted in benchmark.raw.num_by_prefix.get(split, {}).items()
                if (number := sum(example.name.startswith(f"{prefix}_") for example in found)) < wanted
            ]
            details = f" (missing: {first_names(missing)})" if missing else ""
            fewer.append(f"split {split} has {len(found):,} of {expected:,} examples{details}")
        for kind in ("image", "label"):
            if names := [example.name for example in found if not getattr(example, kind)]:
                broken.append(f"split {split} has no {kind} for {first_names(names)}")
    problems = [] if allow_incomplete else fewer
    hints = ["--allow_incomplete takes what is there"] if problems else []
    if broken and not skip_corrupt:
        problems = problems + broken
        hints.append("--skip_corrupt leaves out examples that lack a file")
    if problems:
        raise InputError(f"{benchmark.title} is incomplete: {'; '.join(problems)}. {'; '.join(hints)}")
    return {split: found for split, found in present.items() if found}


def push_dataset(output_dir: str | Path, hub_dataset_id: str) -> bool:
    """Upload a prepared dataset to a private repository on the Hub: a benchmark's terms rarely allow another one.

    Returns:
        Whether anything was sent; not where the repository was up to date.

    Raises:
        InputError: the folder is no prepared dataset, or the repository is public or holds other files.
        OSError: the Hub cannot be reached or refuses.
    """
    return publish(HfApi(), dataset_repository(Path(output_dir), hub_dataset_id), private=True)


def report_and_push(prepared: PreparedDataset, output_dir: str | Path, hub_dataset_id: str | None) -> None:
    """Print what was kept, turned and left out, and push the dataset where a repository is named."""
    if prepared.num_kept_shards:
        print(counted(prepared.num_kept_shards, "finished shard was kept", "finished shards were kept"))
    if prepared.turned:
        print(turned_note(prepared.turned))
    if prepared.skipped:
        left_out = counted(len(prepared.skipped), "example was left out", "examples were left out")
        print(f"{left_out}:", *prepared.skipped, sep="\n  ")
    if hub_dataset_id:
        sent = push_dataset(output_dir, hub_dataset_id)
        print(f"{hub_dataset_id}: {'published' if sent else 'up to date'}")


def prepare(arguments: PrepareArguments) -> None:
    """Turn a benchmark's official distribution into a Hugging Face dataset of parquet shards, and push it if asked."""
    if arguments.hub_dataset_id:
        check_token(HfApi(), arguments.hub_dataset_id)  # before the work, not after it
    prepared = prepare_dataset(
        arguments.name,
        arguments.source,
        arguments.output_dir,
        num_proc=arguments.num_proc,
        allow_incomplete=arguments.allow_incomplete,
        skip_corrupt=arguments.skip_corrupt,
        max_image_pixels=arguments.max_image_pixels,
    )
    official = get_benchmark(arguments.name).num_examples
    counts = (f"{split} {prepared.num_examples.get(split, 0):,} of {count:,}" for split, count in official.items())
    print(f"{arguments.name} written to {arguments.output_dir}: {', '.join(counts)}")
    report_and_push(prepared, arguments.output_dir, arguments.hub_dataset_id)


__all__ = ["PreparedDataset", "build", "main", "prepare", "prepare_dataset", "push_dataset", "report_and_push"]
