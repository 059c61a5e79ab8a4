"""Examples into parquet shards: each written atomically, and kept when it is made again."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from ccnet_hf.data.archives import RawFile
from ccnet_hf.data.benchmarks.record import Benchmark
from ccnet_hf.data.images import open_image
from ccnet_hf.data.preparation.examples import RawExample, read_same
from ccnet_hf.data.preparation.parquet import CHECKSUM_KEY, check_parquet, parquet_writer
from ccnet_hf.errors import InputError
from ccnet_hf.models.image_transforms_ccnet import fit_labels, stored_orientation


_SOURCE_KEY = b"ccnet_hf.source"  # in a shard's metadata: what it was made from, if nothing was left out
_FEATURES_KEY = b"huggingface"  # there as well: the columns, as `datasets` writes them
_ROW_GROUP_BYTES = 32 << 20  # what a reader of a stream holds at once


def dataset_features(benchmark: Benchmark) -> datasets.Features:
    """Columns of a prepared benchmark: `image`, `label`, `name`, and in `classes` the ones that occur, with names."""
    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Image(),
            "name": datasets.Value("string"),
            "classes": datasets.List(datasets.ClassLabel(names=list(benchmark.class_names))),
        }
    )


def make_row(example: RawExample, ignore_index: int = 255, max_image_pixels: int | None = None) -> dict[str, Any]:
    """Read one example and check it: the image's bytes as they are, the label map as PNG of training ids.

    The label map belongs to the upright image; one that fits only the stored pixels of an image with EXIF orientation
    is turned with them, and the row has the further entry `turned`.

    Raises:
        InputError: a file is missing, damaged or does not fit the other; the message names it.
    """
    for kind, files in (("image", example.image), ("label", example.label)):
        if not files:
            raise InputError(f"{example.name}: has no {kind}")
    encoded = read_same(example.image)
    try:
        image = open_image(encoded, max_image_pixels)
    except InputError as error:
        raise InputError(f"{example.image[0]}: {error}") from error
    try:
        stored_label, own = example.label_format.read(read_same(example.label), max_image_pixels)
    except InputError as error:
        raise InputError(f"{example.label[0]}: {error}") from error
    label = fit_labels(stored_label, image.height, image.width, stored_orientation(image), own)
    if label.shape != (image.height, image.width):
        raise InputError(
            f"{example.label[0]}: the label map is {label.shape[0]}x{label.shape[1]}, "
            f"its image {image.height}x{image.width}"
        )
    png = io.BytesIO()
    PIL.Image.fromarray(label).save(png, "PNG")
    counts = np.bincount(label.ravel(), minlength=256)
    row = {
        "image": {"bytes": encoded, "path": PurePosixPath(example.image[0].path).name},
        "label": {"bytes": png.getvalue(), "path": f"{example.name}.png"},
        "name": example.name,
        "classes": [int(i) for i in np.flatnonzero(counts) if i != ignore_index],
    }
    return row if label is stored_label else row | {"turned": True}


def row_maker(
    make_row: Callable[[Any], dict[str, Any]], num_proc: int
) -> AbstractContextManager[Callable[[Sequence[Any]], Iterable]]:
    """As [`mapped`], with the message of an `InputError` in the place of its row."""
    return mapped(partial(_row_or_error, make_row), num_proc)


def _row_or_error(make_row: Callable[[Any], dict[str, Any]], example: Any) -> dict[str, Any] | str:
    """Errors travel as text, so that one bad file does not end the work of the others."""
    try:
        return make_row(example)
    except InputError as error:
        return str(error)


@contextmanager
def mapped(make: Callable[[Any], Any], num_proc: int) -> Iterator[Callable[[Sequence[Any]], Iterable]]:
    """Yield a function that gives what `make` makes of many values, in their order, in `num_proc` workers.

    Ctrl-C, which a terminal sends to every process, is for the caller alone: workers finish what they are at and end.

    Raises:
        InputError: a worker died.
    """
    if num_proc == 1:
        yield partial(map, make)
        return
    # Not forked: the threads of PyTorch and Arrow do not survive a fork.
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
        try:
            yield partial(_submitted, pool, make)
        except BrokenProcessPool as error:
            raise InputError(
                "a worker died: killed for want of memory (try a smaller --num_proc), or because the script that made "
                'this call has no `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, make: Callable[[Any], Any], values: Sequence[Any]) -> Iterable:
    """What `make` makes of the values, in workers that start here and inherit that SIGINT is blocked, so that it does
    not meet them while they import, either."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return pool.map(make, values, chunksize=4)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.map(make, values, chunksize=4)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@dataclass(frozen=True)
class PreparedDataset:
    """What a preparation has done.

    Attributes:
        num_examples: rows by split; a split without any is not there.
        skipped: why examples were left out, naming their files.
        num_kept_shards: finished shards that were found and kept.
        turned: names of the examples written whose label map fits only the stored pixels of an image that EXIF turns.
    """

    num_examples: dict[str, int]
    skipped: list[str]
    num_kept_shards: int
    turned: list[str]


def identity(file: RawFile) -> tuple[str, int, float]:
    """What tells a file from others, and from itself with another content, without reading it."""
    return PurePosixPath(file.path).name, file.size, file.stamp


@dataclass(frozen=True)
class Shard:
    """A parquet file and the examples it is made of."""

    path: Path
    examples: Sequence[RawExample]

    @property
    def fingerprint(self) -> str:
        """Changes when other files, or files with another content, or labels of another meaning are to go into the
        shard."""
        members = [
            [example.name, *map(identity, group)]
            for example in self.examples
            for group in (example.image, example.label)
        ]
        formats = {example.label_format.meaning for example in self.examples if example.label_format}
        return hashlib.sha256(json.dumps([members, sorted(formats)]).encode()).hexdigest()

    @property
    def num_rows(self) -> int:
        """Rows of the written file."""
        return pq.read_metadata(self.path).num_rows

    def is_finished(self, features: datasets.Features) -> bool:
        """Whether the file is there, undamaged, with all examples, made from these files, and has these columns, names
        of classes included. Reads all of it."""
        try:
            found = check_parquet(self.path)
        except InputError:
            return False
        metadata = found.metadata or {}
        # What earlier versions wrote has no checksum: nobody knows whether all of it is there.
        return (
            metadata.get(_SOURCE_KEY) == self.fingerprint.encode()
            and metadata.get(_FEATURES_KEY) == features.arrow_schema.metadata[_FEATURES_KEY]
            and CHECKSUM_KEY in metadata
            and found.num_rows == len(self.examples)
        )


def plan_shards(
    shard_class: type[Shard], folder: Path, split: str, examples: Sequence[Any], max_shard_size: int
) -> list[Shard]:
    """Divide a split into shards of at most `max_shard_size` bytes of images, always in the same way.

    Args:
        shard_class: `Shard` or a subclass.
        folder: in which the shards are.
        split: of the dataset.
        examples: with the files of their `image`.
        max_shard_size: in bytes.
    """
    parts: list[list[Any]] = [[]]
    size = 0
    for example in examples:
        added = sum(file.size for file in example.image[:1])
        if parts[-1] and size + added > max_shard_size:
            parts.append([])
            size = 0
        parts[-1].append(example)
        size += added
    return [
        shard_class(folder / f"{split}-{index:05d}-of-{len(parts):05d}.parquet", part)
        for index, part in enumerate(parts)
    ]


def write_shard(
    shard: Shard, rows: Iterable[dict[str, Any] | str], features: datasets.Features, skip_corrupt: bool
) -> list[str]:
    """Write a shard under its name once it is complete.

    Args:
        shard: what to write.
        rows: a row, or why there is none, for every example of the shard.
        features: the dataset's columns.
        skip_corrupt: leave out what has no row.

    Returns:
        Why examples were left out.

    Raises:
        InputError: an example has no row and must not be left out.
        OSError: the shard cannot be written.
    """
    schema = features.arrow_schema
    skipped: list[str] = []
    with parquet_writer(shard.path, schema) as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            if isinstance(row, str):
                if not skip_corrupt:
                    raise InputError(row)
                skipped.append(row)
                continue
            group.append(row)
            size += len(row["image"]["bytes"])
            if size > _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
        if not skipped:
            writer.add_key_value_metadata({_SOURCE_KEY: shard.fingerprint})
    return skipped
