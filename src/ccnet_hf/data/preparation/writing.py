"""Examples of all splits into the folder of a dataset, which holds one once all of it is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCardData
from tqdm.auto import tqdm

from ccnet_hf.data.benchmarks.record import Benchmark
from ccnet_hf.data.preparation.card import check_no_other_card, label_map_card, write_card
from ccnet_hf.data.preparation.shards import (
    PreparedDataset,
    Shard,
    dataset_features,
    make_row,
    plan_shards,
    row_maker,
    write_shard,
)
from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import check_writable, remove_leftovers
from ccnet_hf.hub import CARD_FILE


def first_names(names: Sequence[str], count: int = 3) -> str:
    """A few of many names."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more:,} more" if more > 0 else "")


def counted(number: int, one: str, more: str) -> str:
    """How many there are: "1 file", "2 files"."""
    return f"{number:,} {one if number == 1 else more}"


def check_output_dir(output_dir: Path) -> None:
    """Find out before the work, not after it, that no dataset can be written there; makes nothing.

    Raises:
        InputError: it is a file, holds a `README.md` of somebody else's, or has a name that is no text.
        OSError: it cannot be written.
    """
    with reading(f"the name of {output_dir}"):
        str(output_dir).encode()  # Arrow writes to no other
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; --output_dir must be a folder")
    check_no_other_card(output_dir)
    check_writable(output_dir)


@dataclass(frozen=True)
class DatasetKind:
    """What a writer asks of datasets of one kind.

    Attributes:
        features: the columns.
        make_row: makes the row of an example, or raises `InputError`.
        card: metadata and text for `write_card`, of the rows by split and why examples were left out.
        shard_class: of the parquet files; knows by which examples they are made anew.
    """

    features: datasets.Features
    make_row: Callable[[Any], dict[str, Any]]
    card: Callable[[Mapping[str, int], Sequence[str]], tuple[DatasetCardData, str]]
    shard_class: type[Shard] = Shard


def label_maps(benchmark: Benchmark, max_image_pixels: int | None) -> DatasetKind:
    """Datasets of images with label maps."""
    return DatasetKind(
        dataset_features(benchmark),
        partial(make_row, ignore_index=benchmark.ignore_index, max_image_pixels=max_image_pixels),
        partial(label_map_card, benchmark),
    )


def write_dataset(
    kind: DatasetKind,
    examples: Mapping[str, Sequence[Any]],
    output_dir: Path,
    num_proc: int,
    skip_corrupt: bool,
    max_shard_size: int,
) -> PreparedDataset:
    """Write examples as parquet shards and a card, keeping the shards that are finished; as `prepare_dataset`."""
    features = kind.features
    data, unfinished = output_dir / "data", output_dir / ".data"
    folder = data if data.exists() else unfinished

    def plan() -> dict[str, list[Shard]]:
        return {
            split: plan_shards(kind.shard_class, folder, split, found, max_shard_size)
            for split, found in examples.items()
        }

    remove_leftovers(folder)
    shards = plan()
    planned = {shard.path for group in shards.values() for shard in group}
    foreign = [path.name for path in sorted(folder.glob("[!.]*")) if path not in planned]
    if foreign:
        raise InputError(
            f"not part of this dataset: {first_names(foreign)} in {folder}; remove or choose another --output_dir"
        )
    finished = {shard.path.name for group in shards.values() for shard in group if shard.is_finished(features)}
    if len(finished) < len(planned):
        # Nobody shall load a part of a dataset, or parts of two, unawares.
        (output_dir / CARD_FILE).unlink(missing_ok=True)
        if folder == data:
            shutil.rmtree(unfinished, ignore_errors=True)
            data.rename(unfinished)
        folder = unfinished
        folder.mkdir(parents=True, exist_ok=True)
        shards = plan()

    skipped, turned = [], []
    total = sum(map(len, examples.values()))
    with (
        row_maker(kind.make_row, num_proc) as make_rows,
        tqdm(total=total, unit="image", disable=None) as bar,
    ):
        for shard in (shard for group in shards.values() for shard in group):
            bar.set_description(shard.path.stem)
            if shard.path.name in finished:
                bar.update(len(shard.examples))
            else:
                rows = (_count(row, bar, turned) for row in make_rows(shard.examples))
                skipped += write_shard(shard, rows, features, skip_corrupt)
    rows = {split: sum(shard.num_rows for shard in group) for split, group in shards.items()}
    num_examples = {split: number for split, number in rows.items() if number}
    if not num_examples:
        raise InputError(f"every example was left out, the first because of: {skipped[0]}")
    for shard in (shard for split in rows.keys() - num_examples.keys() for shard in shards[split]):
        shard.path.unlink()  # of a split that is not there
    num_bytes = {split: sum(shard.path.stat().st_size for shard in shards[split]) for split in num_examples}
    folder.rename(data)
    write_card(output_dir, *kind.card(num_examples, skipped), features, num_examples, num_bytes)
    return PreparedDataset(num_examples, skipped, len(finished), turned)


def _count(row: dict | str, bar: tqdm, turned: list[str]) -> dict | str:
    bar.update()
    if isinstance(row, dict) and row.pop("turned", False):
        turned.append(row["name"])
    return row
