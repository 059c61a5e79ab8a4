"""A prepared dataset as a repository, and its card: what the Hub, `datasets` and people read of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ccnet_hf.data.benchmarks.record import Benchmark, InstanceBenchmark
from ccnet_hf.data.preparation.parquet import check_parquet
from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import atomic_file
from ccnet_hf.hub import CARD_FILE, HubRepository


# What only a card that is written here says.
_WRITTEN_HERE = re.compile(r"\A---\n.* by\s`ccnet_hf` \(`prepare_dataset\.py \w+`\)", re.DOTALL)
_PART = re.compile(r"data/(?P<split>.+)-\d{5}-of-(?P<count>\d{5})\.parquet")


_ORIGIN = """\
{title} as {count} images with label maps for semantic segmentation in {num_labels} classes, converted from the
official distribution by `ccnet_hf` (`prepare_dataset.py {name}`).

**Terms: {license}.** The terms of the benchmark hold for this copy of it; see [its site]({homepage}).

| split | images | in the benchmark |
|---|---|---|
{splits}
"""

_OWN_ORIGIN = """\
{count} images with label maps for semantic segmentation in {num_labels} classes, made of a folder of images and a
folder of masks by `ccnet_hf` (`prepare_dataset.py {name}`).

| split | images |
|---|---|
{splits}
"""

_TEXT = """# {title}

{origin}{skipped}
| column | |
|---|---|
| `image` | the image, the very bytes of the distribution's file |
| `label` | single-channel PNG of the upright image's size: training ids 0..{last}, {ignore_index} is ignored |
| `name` | what the files of image and label are called in the distribution, without what tells them apart |
| `classes` | the classes that occur in `label`; carries the names of the classes |

## From the distribution's labels to training ids

{mapping}

## Classes

| id | name | colour (RGB) |
|---|---|---|
{classes}
"""


def _size_category(count: int) -> str:
    for limit, category in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return category
    return "100K<n<1M"


def check_no_other_card(output_dir: Path) -> None:
    """Raise `InputError` where `README.md` was not written here: nobody's text is deleted, nor replaced by a card."""
    card = output_dir / CARD_FILE
    if not card.exists():
        return
    with reading(card):
        is_ours = _WRITTEN_HERE.match(card.read_text(encoding="utf-8", errors="replace"))
    if not is_ours:
        raise InputError(f"{card} is not the card of a prepared dataset; remove it or choose another --output_dir")


def write_card(
    output_dir: Path,
    data: DatasetCardData,
    text: str,
    features: datasets.Features,
    num_examples: Mapping[str, int],
    num_bytes: Mapping[str, int],
) -> None:
    """Write `README.md` of a prepared dataset, replacing an older one at once.

    Args:
        output_dir: folder of the dataset, with its shards in `data/`.
        data: the card's metadata, to which size, columns, splits and files are added.
        text: what people read.
        features: the columns.
        num_examples: rows by split, in the order of the splits.
        num_bytes: bytes of the parquet files by split.
    """
    data.size_categories = [_size_category(sum(num_examples.values()))]
    split_dict = datasets.SplitDict()
    for split, number in num_examples.items():
        split_dict.add(datasets.SplitInfo(split, num_bytes=num_bytes[split], num_examples=number))
    size = sum(num_bytes.values())
    info = datasets.DatasetInfo(features=features, splits=split_dict, download_size=size, dataset_size=size)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"data/{split}-*"} for split in num_examples]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    with atomic_file(output_dir / CARD_FILE) as unfinished:
        DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(unfinished)


def label_map_card(
    benchmark: Benchmark, num_examples: Mapping[str, int], skipped: Sequence[str]
) -> tuple[DatasetCardData, str]:
    """Metadata and text for `write_card` of a dataset of label maps.

    Args:
        benchmark: what was prepared.
        num_examples: rows by split, in the order of the splits.
        skipped: why examples were left out.
    """
    of_benchmark = {
        "license": "other",
        "license_name": benchmark.license_name,
        "license_link": benchmark.license_link,
        "annotations_creators": ["expert-generated"],
        "source_datasets": ["original"],
    }
    data = DatasetCardData(
        pretty_name=benchmark.title,
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        **(of_benchmark if benchmark.license else {}),
    )
    text = _TEXT.format(
        title=benchmark.title,
        origin=_origin(benchmark, num_examples),
        skipped=skipped_note(skipped),
        last=benchmark.num_labels - 1,
        ignore_index=benchmark.ignore_index,
        mapping=benchmark.raw.mapping,
        classes="\n".join(
            f"| {i} | {name} | {' '.join(map(str, colour))} |"
            for i, (name, colour) in enumerate(zip(benchmark.class_names, benchmark.palette, strict=True))
        ),
    )
    return data, text


def split_rows(benchmark: Benchmark | InstanceBenchmark, num_examples: Mapping[str, int]) -> str:
    """Rows of a card's table of splits."""
    rows = []
    for split, number in num_examples.items():
        official = benchmark.num_examples.get(split)
        rows.append(f"| {split} | {number:,} |" + (f" {official:,} |" if official is not None else ""))
    return "\n".join(rows)


def skipped_note(skipped: Sequence[str]) -> str:
    """What a card says of examples that were left out."""
    return f"\nLeft out because a file was missing or damaged: {len(skipped):,}.\n" if skipped else ""


def _origin(benchmark: Benchmark, num_examples: Mapping[str, int]) -> str:
    """Where a dataset is from, on what terms, and how many of its images are here."""
    return (_ORIGIN if benchmark.license else _OWN_ORIGIN).format(
        title=benchmark.title,
        name=benchmark.name,
        count=f"{sum(num_examples.values()):,}",
        num_labels=benchmark.num_labels,
        license=benchmark.license,
        homepage=benchmark.homepage,
        splits=split_rows(benchmark, num_examples),
    )


def dataset_repository(folder: Path, repo_id: str) -> HubRepository:
    """The repository of a folder that `prepare_dataset.py` wrote: parquet files and a card.

    All of them are read, so that nothing incomplete or damaged is published.

    Raises:
        InputError: the folder has no parquet file or no card, or not all the data that the card tells of, or more.
    """
    files = {f"data/{path.name}": path for path in sorted(folder.glob("data/[!.]*.parquet"))}
    card = folder / CARD_FILE
    if not files or not card.is_file():
        missing = CARD_FILE if files else "parquet file in data/"
        raise InputError(f"{folder} holds no {missing}; prepare_dataset.py writes such a folder")
    _check_complete(folder, files)
    return HubRepository(repo_id, "dataset", files | {CARD_FILE: card})


def _check_complete(folder: Path, files: Mapping[str, Path]) -> None:
    """Compare the files of a dataset, by their names in the repository, with what its card tells of.

    Raises:
        InputError: a file is missing, damaged or foreign, or rows or bytes of a split are more or fewer.
    """
    known: set[str] = set()
    for split, stated in _stated_splits(folder / CARD_FILE).items():
        parts = [part for name in files if (part := _PART.fullmatch(name)) and part["split"] == split]
        count = min((part["count"] for part in parts), default="00001")
        names = [f"data/{split}-{index:05d}-of-{count}.parquet" for index in range(int(count))]
        if missing := [name for name in names if name not in files]:
            raise InputError(f"{folder} is incomplete: {missing[0]} is missing; prepare_dataset.py completes it")
        found = (
            sum(check_parquet(files[name]).num_rows for name in names),
            sum(files[name].stat().st_size for name in names),
        )
        if found != stated:
            raise InputError(
                f"{folder}: split {split} has {found[0]:,} rows and {found[1]:,} bytes, {CARD_FILE} tells of "
                f"{stated[0]:,} and {stated[1]:,}; prepare_dataset.py makes both anew"
            )
        known.update(names)
    if foreign := sorted(files.keys() - known):
        raise InputError(f"{folder}: {foreign[0]} is no part of what {CARD_FILE} tells of; remove it")


def _stated_splits(card: Path) -> dict[str, tuple[int, int]]:
    """The splits that a card tells of: number of rows, bytes of the files."""
    with reading(card):
        info = DatasetCard(card.read_text(encoding="utf-8")).data.get("dataset_info")
        if not info:
            raise ValueError("it tells of no splits")
        return {split["name"]: (int(split["num_examples"]), int(split["num_bytes"])) for split in info["splits"]}
