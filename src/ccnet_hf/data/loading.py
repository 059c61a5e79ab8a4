"""A split of a labelled dataset as torch examples: read with `datasets`, checked when read, augmented by seed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

from ccnet_hf.errors import InputError
from ccnet_hf.models.image_transforms_ccnet import convert_to_rgb


# What `prepare_dataset.py` writes beside `image`, `label` and `name`: the classes that occur.
_CLASSES = "classes"


def load_split(
    dataset_name: str,
    split: str,
    image_column_name: str = "image",
    label_column_name: str | None = "label",
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split with the columns `image` and `label` (still encoded) and, where there are, `name` and `classes`.

    Args:
        dataset_name: a folder written by `save_to_disk`, a folder of parquet files, or the id of a dataset on the Hub.
        split: e.g. `"train"`, `"validation"`, or several one after the other, `"train+validation"`.
        image_column_name: the dataset's column of images.
        label_column_name: the dataset's column of label maps, one id per pixel; `None` reads images without labels.
        streaming: read the examples one after the other when they are asked for, instead of making them ready on disk
            first.
        config_name: which of the dataset's configurations, where it has several.
        revision: of the dataset on the Hub.

    Raises:
        InputError: the folder, the split or a column is not there, the message names what is; a column holds no
            images; or a file of the dataset is damaged.
    """
    folder = Path(dataset_name)
    if folder.is_file():
        raise InputError(f"{dataset_name} is a file; name its folder")
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(dataset_name)
    elif (folder / "state.json").is_file():
        dataset = datasets.load_from_disk(dataset_name)
        splits = {str(dataset.split or "train"): dataset}  # as `load_dataset` calls what has no name
    else:
        try:
            splits = datasets.load_dataset(dataset_name, config_name, revision=revision, streaming=streaming)
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:  # the latter from pyarrow
            raise InputError(f"{dataset_name} cannot be read ({error.__cause__ or error})") from error
    parts = split.split("+")
    for part in parts:
        if part not in splits:
            raise InputError(f"{dataset_name} has no split {part!r}; it has {', '.join(splits)}")
    columns = {image_column_name: "image"}
    if label_column_name is not None:
        columns[label_column_name] = "label"
    chosen = [_as_stream(splits[part]) if streaming else splits[part] for part in parts]
    return datasets.concatenate_datasets([_pick_columns(part, columns, dataset_name) for part in chosen])


def _pick_columns(
    dataset: datasets.Dataset | datasets.IterableDataset, columns: dict[str, str], dataset_name: str
) -> datasets.Dataset | datasets.IterableDataset:
    """The named columns of images, under their new names and still encoded, and `name` and `classes`, if any."""
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise InputError(
            f"{dataset_name} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)} "
            "(see --image_column_name and --label_column_name)"
        )
    # First of all: what follows would decode the images of a stream.
    for column in columns:
        kind = (dataset.features or {}).get(column)
        if isinstance(kind, datasets.ClassLabel) or (
            isinstance(kind, datasets.Value) and kind.dtype not in ("string", "large_string")
        ):
            raise InputError(
                f"{dataset_name}: the column {column!r} holds {kind.dtype} numbers, not images "
                "(see --image_column_name and --label_column_name)"
            )
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    kept = [
        *columns,
        *(other for other in ("name", _CLASSES) if other in dataset.column_names and other not in columns),
    ]
    return dataset.select_columns(kept).rename_columns({old: new for old, new in columns.items() if old != new})


def _as_stream(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.IterableDataset:
    if isinstance(dataset, datasets.IterableDataset):
        return dataset
    return dataset.to_iterable_dataset(num_shards=max(1, len(dataset.cache_files)))


class CorruptExample(InputError):
    """An image or label map that is missing, cannot be decoded, or does not have the other's size."""


def _name(example: dict[str, Any], index: int) -> str:
    """The file's name as far as the dataset knows it, else its place in the split."""
    return example.get("name") or (example["image"] or {}).get("path") or f"example {index}"


def _open(encoded: dict[str, Any] | None, name: str) -> PIL.Image.Image:
    """Decode what a `datasets.Image(decode=False)` column holds."""
    if encoded is None:
        raise CorruptExample(f"{name}: there is no file")
    try:
        image = PIL.Image.open(encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"]))
        image.load()
    except Exception as error:  # PIL's decoders meet broken files with a dozen kinds of exception
        reason = "it is not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise CorruptExample(f"{name}: cannot be read ({reason})") from error
    return image


def is_prepared(dataset: datasets.Dataset | datasets.IterableDataset) -> bool:
    """Whether `prepare_dataset.py` wrote this dataset, whose labels are training ids already."""
    classes = (dataset.features or {}).get(_CLASSES)
    return isinstance(getattr(classes, "feature", None), datasets.ClassLabel)


class SegmentationDataset(torch.utils.data.Dataset):
    """Images with label maps, checked, and transformed by draws that depend on nothing but (seed, epoch, index).

    Args:
        dataset: what `load_split` returns, mapped or streamed.
        num_labels: ids 0..num_labels-1 are classes, at most 255 of them.
        ignore_index: the only other id a label map may hold, at most 255.
        reduce_labels: make 0 the ignored id and move every other id down by one first, as ADE20K's own files want.
        transform: maps (image: uint8 (3, H, W), label: uint8 (H, W)) to what is trained on, drawing its random
            numbers from torch's default generator.
        seed: of every random draw.
        skip_corrupt: go on without the examples that raise `CorruptExample`. Asked for by key, such an example is
            replaced by the next readable one (of a stream: by the stream's first).

    An example is a dict with `image` and `label` (the transform's results), `name`, and `corrupt`, the messages about
    examples it replaces. It is asked for by an index, by (epoch, index), or, of a stream, by (epoch, index, encoded
    example); the same key gives the same tensors in every process, in every order and after every restart.

    Raises:
        InputError: the labels do not fit into a byte, as label maps are held.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        num_labels: int,
        ignore_index: int = 255,
        reduce_labels: bool = False,
        transform: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
    ):
        if not num_labels <= ignore_index <= 255:
            raise InputError(
                f"label maps are held in bytes, so {num_labels} classes and the ignored id {ignore_index} must be "
                "different numbers from 0 to 255, the ignored one the largest"
            )
        self.dataset = dataset
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.reduce_labels = reduce_labels
        self.transform = transform
        self.seed = seed
        self.skip_corrupt = skip_corrupt

    @property
    def streamed(self) -> bool:
        """Whether the examples come one after the other, with neither a number of them nor an index."""
        return isinstance(self.dataset, datasets.IterableDataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def encoded(self, start: int = 0, step: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every `step`-th example from `start` on, as (index, what the columns hold)."""
        if self.streamed:
            return islice(enumerate(self.dataset), start, None, step)
        return ((index, self.dataset[index]) for index in range(start, len(self), step))

    def examples(
        self, start: int = 0, step: int = 1, corrupt: list[str] | None = None
    ) -> Iterator[tuple[PIL.Image.Image, np.ndarray, str]]:
        """Read every `step`-th example from `start` on, each as `read` does.

        Args:
            start: index of the first example; process r of n takes `examples(r, n)`.
            step: distance of indices.
            corrupt: with `skip_corrupt`, gets the messages about the examples that are left out.
        """
        for index, example in self.encoded(start, step):
            try:
                yield self.decode(example, index)
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                if corrupt is not None:
                    corrupt.append(str(error))

    def read(self, index: int) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """Read one example as (RGB image, label map (H, W) uint8, name), neither resized nor augmented."""
        return self.decode(self.dataset[index], index)

    def decode(self, example: dict[str, Any], index: int) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """What `read` returns, of an example whose columns are at hand; without a label column all is ignored.

        Raises:
            CorruptExample: a file is missing or unreadable, or the two differ in size.
            InputError: the label map has colours instead of ids, or an id that is neither a class nor ignored.
        """
        name = _name(example, index)
        label = self.decode_label(example, index) if "label" in example else None
        image = convert_to_rgb(_open(example["image"], name))
        if label is None:
            label = np.full((image.height, image.width), self.ignore_index, dtype=np.uint8)
        if label.shape != (image.height, image.width):
            raise CorruptExample(
                f"{name}: the image is {image.height}x{image.width}, its label map {label.shape[0]}x{label.shape[1]}"
            )
        return image, label, name

    def decode_label(self, example: dict[str, Any], index: int) -> np.ndarray:
        """The label map alone, (H, W) uint8, with every id checked; raises as `decode`."""
        name = _name(example, index)
        image = _open(example["label"], f"{name} (label)")
        label = np.asarray(image)
        if label.ndim != 2:
            raise InputError(f"{name}: a label map has one channel of ids, this one has mode {image.mode}")
        label = label.astype(np.int64)
        if self.reduce_labels:
            label = np.where(label == self.ignore_index, self.ignore_index, label - 1)
            label[label == -1] = self.ignore_index
        wrong = label[((label < 0) | (label >= self.num_labels)) & (label != self.ignore_index)]
        if wrong.size:
            raise InputError(
                f"{name}: label id {int(wrong[0]) + self.reduce_labels} is outside "
                f"{int(self.reduce_labels)}..{self.num_labels - 1 + self.reduce_labels} and is not {self.ignore_index}"
            )
        return label.astype(np.uint8)

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        epoch, index, *encoded = key if isinstance(key, tuple) else (0, key)
        corrupt: list[str] = []
        for place, example in self._candidates(index, *encoded):
            try:
                image, label, name = self.decode(example, place)
                break
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                corrupt.append(str(error))
        else:
            raise InputError(f"no example is readable; the first: {corrupt[0]}")
        image = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        label = tv_tensors.Mask(torch.from_numpy(label))
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                # NumPy's seed sequence mixes the three numbers well; neighbouring seeds would give related draws.
                state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
                torch.default_generator.manual_seed(int(state))
                image, label = self.transform(image, label)
        return {"image": image, "label": label, "name": name, "corrupt": corrupt}

    def _candidates(self, index: int, encoded: dict[str, Any] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The example asked for, and those that may stand in for it."""
        if encoded is not None:
            yield index, encoded
        if self.streamed:
            # Not by `iter(self.dataset)`, which gives a worker of a loader its share of the stream only.
            for place, batch in enumerate(self.dataset.iter(batch_size=1)):
                yield place, {name: column[0] for name, column in batch.items()}
        else:
            for place in range(index, index + len(self)):
                yield place % len(self), self.dataset[place % len(self)]


def class_counts(dataset: SegmentationDataset, start: int = 0, step: int = 1) -> torch.Tensor:
    """Number of pixels of every class in every `step`-th label map from `start` on, (num_labels,) int64."""
    counts = np.zeros(256, dtype=np.int64)
    for index, example in dataset.encoded(start, step):
        try:
            counts += np.bincount(dataset.decode_label(example, index).ravel(), minlength=256)
        except CorruptExample:
            if not dataset.skip_corrupt:
                raise
    return torch.from_numpy(counts[: dataset.num_labels])
