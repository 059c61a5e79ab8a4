"""A split of a labelled dataset as torch examples: read with `datasets`, checked when read, augmented by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

from ccnet_hf.data.images import CorruptExample, check_max_pixels, label_ids, open_image, to_rgb, turned_note
from ccnet_hf.errors import InputError, reading
from ccnet_hf.limits import check_integer
from ccnet_hf.models.image_transforms_ccnet import fit_labels, stored_orientation


# What `prepare_dataset.py` writes beside `image`, `label` and `name`: the classes that occur.
_CLASSES = "classes"
_TEXT = ("string", "large_string")
# What `prepare_dataset.py coco` writes in the place of `label`, and beside it.
_OBJECTS = "objects"
_ABOUT_IMAGES = ("image_id", "height", "width")

T = TypeVar("T")


def load_split(
    dataset_name: str,
    split: str,
    image_column_name: str = "image",
    label_column_name: str | None = "label",
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
    hint: str = "",
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split with the columns `image` and `label` (still encoded) and, where there are, `name` and `classes`.

    Args:
        dataset_name: a folder written by `save_to_disk`, a folder of parquet files, or the id of a dataset on the Hub.
        split: e.g. `"train"`, `"validation"`, or several one after the other, `"train+validation"`.
        image_column_name: the dataset's column of images.
        label_column_name: the dataset's column of label maps, one id per pixel; `None` reads images without labels.
            A dataset of objects has none: where `objects` is in the place of `label`, it is read as it is.
        streaming: read the examples one after the other when they are asked for, instead of making them ready on disk
            first.
        config_name: which of the dataset's configurations, where it has several.
        revision: of the dataset on the Hub.
        hint: what a user can do where the split is not there, for the message.

    Raises:
        InputError: the folder, the split or a column is not there, the message names what is; a column holds no
            images; or a file of the dataset is damaged. Damage that only shows when the rows are read is found then.
    """
    if Path(dataset_name).is_file():
        raise InputError(f"{dataset_name} is a file; name its folder")
    with reading(dataset_name):
        splits = _load(dataset_name, config_name, revision, streaming)
    parts = split.split("+")
    for part in parts:
        if part not in splits:
            advice = f" ({hint})" if hint else ""
            raise InputError(f"{dataset_name} has no split {part!r}; it has {', '.join(splits)}{advice}")
    columns = {image_column_name: "image"}
    if label_column_name is not None:
        columns[label_column_name] = "label"
    chosen = [_as_stream(splits[part]) if streaming else splits[part] for part in parts]
    picked = [_pick_columns(part, columns, dataset_name) for part in chosen]
    with reading(dataset_name):
        return datasets.concatenate_datasets(picked)


def _load(
    dataset_name: str, config_name: str | None, revision: str | None, streaming: bool
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """The splits of a dataset by name; raises whatever `datasets` raises."""
    if not any(Path(dataset_name, name).is_file() for name in ("dataset_dict.json", "state.json")):
        try:
            return datasets.load_dataset(dataset_name, config_name, revision=revision, streaming=streaming)
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None  # its own text says nothing
    folder = Path(dataset_name)
    for state in filter(Path.is_file, (folder / "state.json", *sorted(folder.glob("*/state.json")))):
        if json.loads(state.read_bytes()).get("_data_files") == []:  # which `datasets` writes, but does not read
            raise ValueError(f"{'it' if state.parent == folder else f'split {state.parent.name}'} has no rows")
    saved = datasets.load_from_disk(dataset_name)
    # A part without a name gets the one that `load_dataset` would give it.
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    for dataset in splits.values():
        dataset.data.validate(full=True)  # files mapped into memory, where damaged offsets would end the process
    return splits


def _pick_columns(
    dataset: datasets.Dataset | datasets.IterableDataset, columns: dict[str, str], dataset_name: str
) -> datasets.Dataset | datasets.IterableDataset:
    """The named columns of images, under their new names and still encoded, and `name` and `classes`, if any."""
    names = dataset.column_names
    if names is None:  # of a stream whose beginning could not be read
        names = list(next(read_rows(dataset, dataset_name), {}))
    if "label" in columns and "label" not in names and _OBJECTS in names:
        columns = {_OBJECTS if column == "label" else column: new for column, new in columns.items()}
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(
            f"{dataset_name} has no column {missing[0]!r}; it has {', '.join(names)} "
            "(see --image_column_name and --label_column_name)"
        )
    features = dataset.features or {}
    pictures = [column for column in columns if column != _OBJECTS]
    for column in pictures:
        kind = features.get(column)
        if isinstance(kind, datasets.ClassLabel) or (
            isinstance(kind, datasets.Value) and kind.dtype not in (*_TEXT, "binary", "large_binary")
        ):
            raise InputError(
                f"{dataset_name}: the column {column!r} holds {kind.dtype} numbers, not images "
                "(see --image_column_name and --label_column_name)"
            )
    kept = [*columns]
    kind = features.get("name", datasets.Value(_TEXT[0]))
    if "name" not in columns and "name" in names and isinstance(kind, datasets.Value) and kind.dtype in _TEXT:
        kept.append("name")
    if _CLASSES not in columns and _CLASSES in names:
        kept.append(_CLASSES)
    if _OBJECTS in columns:
        kept += [name for name in _ABOUT_IMAGES if name in names]
    with reading(dataset_name):
        for column in pictures:  # first of all: what follows would decode the images of a stream
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        return dataset.select_columns(kept).rename_columns({old: new for old, new in columns.items() if old != new})


def _as_stream(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.IterableDataset:
    if isinstance(dataset, datasets.IterableDataset):
        return dataset
    return dataset.to_iterable_dataset(num_shards=max(1, len(dataset.cache_files)))


def read_rows(rows: Iterable[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """The rows of a dataset, decoded as they are asked for; `InputError` naming `source` where that fails."""
    iterator = iter(rows)
    while True:
        with reading(source):
            try:
                row = next(iterator)
            except StopIteration:
                return
        yield row


def example_name(example: dict[str, Any], index: int) -> str:
    """The file's name as far as the dataset knows it, else its place in the split."""
    return str(example.get("name") or (example["image"] or {}).get("path") or f"example {index}")


def encoded_source(encoded: dict[str, Any] | None) -> bytes | str:
    """The bytes or the path in what a `datasets.Image(decode=False)` column holds."""
    source = None
    if encoded is not None:
        source = encoded["path"] if encoded["bytes"] is None else encoded["bytes"]
    if source is None:
        raise CorruptExample("there is no file")
    return source


def is_prepared(dataset: datasets.Dataset | datasets.IterableDataset) -> bool:
    """Whether `prepare_dataset.py` wrote this dataset, whose labels are training ids already."""
    return class_names(dataset) is not None


def class_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str] | None:
    """Names of the classes, by id, of a dataset that `prepare_dataset.py` wrote; `None` of any other."""
    classes = getattr((dataset.features or {}).get(_CLASSES), "feature", None)
    return list(classes.names) if isinstance(classes, datasets.ClassLabel) else None


class SegmentationDataset(torch.utils.data.Dataset):
    """Images with label maps, checked, and transformed by draws that depend on nothing but (seed, epoch, index).

    Args:
        dataset: what `load_split` returns, mapped or streamed.
        num_labels: ids 0..num_labels-1 are classes, from 2 to 255 of them; 0 where there are no label maps.
        ignore_index: the only other id a label map may hold, at most 255.
        reduce_labels: make 0 the ignored id and move every other id down by one first, as ADE20K's own files want.
        transform: maps (image: uint8 (3, H, W), label: uint8 (H, W)) to what is trained on, drawing its random
            numbers from torch's default generator.
        seed: of every random draw.
        skip_corrupt: go on without the examples that raise `CorruptExample`. Asked for by key, such an example is
            replaced by the next readable one (of a stream: by the stream's first).
        max_image_pixels: the largest number of pixels that is decoded, 0 for any; by default Pillow's 178,956,970.
        source: what the dataset is called where its rows cannot be read.

    Images are turned upright as their EXIF orientation says, and a label map belongs to the upright image; one that
    fits only the stored pixels is turned with them.

    An example is a dict with `image` and `label` (the transform's results), `name`, `corrupt`, the messages about
    examples it replaces, and `turned`, whether its label map was turned with its image. It is asked for by an index,
    by (epoch, index), or, of a stream, by (epoch, index, encoded example); the same key gives the same tensors in
    every process, in every order and after every restart.

    Raises:
        InputError: `num_labels` or `ignore_index` is no integer, there is a single class, the labels do not fit into a
            byte, as label maps are held, or `max_image_pixels` is no number of pixels.
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
        max_image_pixels: int | None = None,
        source: str = "the dataset",
    ):
        check_integer("num_labels", num_labels, 0)
        check_integer("ignore_index", ignore_index, -inf)
        if num_labels == 1:
            raise InputError("`num_labels` must be at least 2, got 1: a class and its background are two")
        if not num_labels <= ignore_index <= 255:
            raise InputError(
                f"label maps are held in bytes, so {num_labels} classes and the ignored id {ignore_index} must be "
                "different numbers from 0 to 255, the ignored one the largest"
            )
        check_max_pixels(max_image_pixels)
        self.dataset = dataset
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.reduce_labels = reduce_labels
        self.transform = transform
        self.seed = seed
        self.skip_corrupt = skip_corrupt
        self.max_image_pixels = max_image_pixels
        self.source = source

    note = staticmethod(turned_note)

    @staticmethod
    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack examples into `pixel_values` (B, 3, H, W), `labels` (B, H, W), and lists: all `names`, the messages in
        `corrupt`, and the names of those that the `note` is about, whose label maps were turned, in `noted`."""
        return {
            "pixel_values": torch.stack([example["image"] for example in examples]),
            "labels": torch.stack([example["label"] for example in examples]),
            "names": [example["name"] for example in examples],
            "corrupt": [message for example in examples for message in example["corrupt"]],
            "noted": [example["name"] for example in examples if example["turned"]],
        }

    @property
    def streamed(self) -> bool:
        """Whether the examples come one after the other, with neither a number of them nor an index."""
        return isinstance(self.dataset, datasets.IterableDataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def is_wide(self) -> np.ndarray | None:
        """Whether every image is wider than high, bool, by index; `None` where the columns do not say."""
        if self.streamed or not {"height", "width"} <= set(self.dataset.column_names):
            return None
        height, width = (np.asarray(self.dataset[name][:]) for name in ("height", "width"))
        return width > height

    def encoded(self, start: int = 0, step: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every `step`-th example from `start` on, as (index, what the columns hold)."""
        if self.streamed:
            return islice(enumerate(read_rows(self.dataset, self.source)), start, None, step)
        return ((index, self._row(index)) for index in range(start, len(self), step))

    def _row(self, index: int) -> dict[str, Any]:
        with reading(self.source):
            return self.dataset[index]

    def examples(
        self, start: int = 0, step: int = 1, corrupt: list[str] | None = None, turned: list[str] | None = None
    ) -> Iterator[tuple[PIL.Image.Image, np.ndarray, str]]:
        """Read every `step`-th example from `start` on, each as `read` does.

        Args:
            start: index of the first example; process r of n takes `examples(r, n)`.
            step: distance of indices.
            corrupt: with `skip_corrupt`, gets the messages about the examples that are left out.
            turned: gets the names of the examples whose label map was turned with its image.
        """
        for index, example in self.encoded(start, step):
            try:
                *decoded, was_turned = self._decode(example, index)
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                if corrupt is not None:
                    corrupt.append(str(error))
                continue
            if was_turned and turned is not None:
                turned.append(decoded[-1])
            yield tuple(decoded)

    def read(self, index: int) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """Read one example as (RGB image, label map (H, W) uint8, name), neither resized nor augmented."""
        return self.decode(self._row(index), index)

    def decode(self, example: dict[str, Any], index: int) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """What `read` returns, of an example whose columns are at hand; without a label column all is ignored.

        Raises:
            CorruptExample: a file is missing or unreadable, or the two differ in size.
            InputError: the label map has colours or fractions instead of ids, or an id that is neither a class nor
                ignored.
        """
        return self._decode(example, index)[:3]

    def _decode(self, example: dict[str, Any], index: int) -> tuple[PIL.Image.Image, np.ndarray, str, bool]:
        """What `decode` returns, and whether the label map was turned with the image."""
        name = example_name(example, index)
        stored_label, own = self._decode_label(example, index) if "label" in example else (None, 1)
        try:
            image = open_image(encoded_source(example["image"]), self.max_image_pixels)
            orientation = stored_orientation(image)
            image = to_rgb(image)
        except InputError as error:
            raise CorruptExample(f"{name}: {error}") from error
        if stored_label is None:
            return image, np.full((image.height, image.width), self.ignore_index, dtype=np.uint8), name, False
        label = fit_labels(stored_label, image.height, image.width, orientation, own)
        if label.shape != (image.height, image.width):
            turned = ", turned by its own EXIF orientation" if own != 1 else ""
            raise CorruptExample(
                f"{name}: the image is {image.height}x{image.width}, its label map {label.shape[0]}x{label.shape[1]}"
                + turned
            )
        return image, label, name, label is not stored_label

    def decode_label(self, example: dict[str, Any], index: int) -> np.ndarray:
        """The label map alone, (H, W) uint8, with every id checked; raises as `decode`."""
        return self._decode_label(example, index)[0]

    def _decode_label(self, example: dict[str, Any], index: int) -> tuple[np.ndarray, int]:
        """What `decode_label` returns, and the EXIF orientation that turned it upright, 1 where none did."""
        name = example_name(example, index)
        try:
            image = open_image(encoded_source(example["label"]), self.max_image_pixels)
        except CorruptExample as error:
            raise CorruptExample(f"{name} (label): {error}") from error
        try:
            label = label_ids(image)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        first = int(self.reduce_labels)
        wrong = label[((label < 0) | (label >= self.num_labels + first)) & (label != self.ignore_index)]
        if wrong.size:
            raise InputError(
                f"{name}: label id {int(wrong[0])} is outside {first}..{self.num_labels - 1 + first} and is not "
                f"{self.ignore_index}"
            )
        if self.reduce_labels:
            label = np.where((label == 0) | (label == self.ignore_index), self.ignore_index, label - 1)
        return label.astype(np.uint8), stored_orientation(image)

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        epoch, index, *encoded = key if isinstance(key, tuple) else (0, key)
        corrupt: list[str] = []
        for place, example in self._candidates(index, *encoded):
            try:
                image, label, name, turned = self._decode(example, place)
                break
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                corrupt.append(str(error))
        else:
            raise InputError(f"no example is readable; the first: {corrupt[0]}")
        image = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        label = tv_tensors.Mask(torch.from_numpy(label))
        image, label = self._transformed(image, label, epoch, index)
        return {"image": image, "label": label, "name": name, "corrupt": corrupt, "turned": turned}

    def _transformed(self, image: torch.Tensor, label: T, epoch: int, index: int) -> tuple[torch.Tensor, T]:
        """Image and label through the transform, with the random draws of this example in this epoch."""
        if self.transform is None:
            return image, label
        with torch.random.fork_rng(devices=[]):
            # NumPy's seed sequence mixes the three numbers well; neighbouring seeds would give related draws.
            state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
            torch.default_generator.manual_seed(int(state))
            return self.transform(image, label)

    def _candidates(self, index: int, encoded: dict[str, Any] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The example asked for, and those that may stand in for it."""
        if encoded is not None:
            yield index, encoded
        if self.streamed:
            # Not by `iter(self.dataset)`, which gives a worker of a loader its share of the stream only.
            for place, batch in enumerate(read_rows(self.dataset.iter(batch_size=1), self.source)):
                yield place, {name: column[0] for name, column in batch.items()}
        else:
            for place in range(index, index + len(self)):
                yield place % len(self), self._row(place % len(self))
