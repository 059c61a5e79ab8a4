"""A split of a labelled dataset as torch examples: read with `datasets`, checked when read, augmented by seed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

from ccnet_hf.image_transforms_ccnet import convert_to_rgb


def load_split(
    dataset_name: str,
    split: str,
    image_column_name: str = "image",
    label_column_name: str = "label",
) -> datasets.Dataset:
    """Load one split with the columns `image` and `label` (still encoded) and, where there is one, `name`.

    Args:
        dataset_name: a folder written by `save_to_disk`, a folder of parquet files, or the id of a dataset on the Hub.
        split: e.g. `"train"`, `"validation"`, or several one after the other, `"train+validation"`.
        image_column_name: the dataset's column of pictures.
        label_column_name: the dataset's column of label maps, one id per pixel.

    Raises:
        ValueError: the folder, the split or a column is not there; the message names what is.
    """
    folder = Path(dataset_name)
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(dataset_name)
    elif (folder / "state.json").is_file():
        splits = {split: datasets.load_from_disk(dataset_name)}
    else:
        splits = datasets.load_dataset(dataset_name)
    parts = split.split("+")
    for part in parts:
        if part not in splits:
            raise ValueError(f"{dataset_name} has no split {part!r}; it has {', '.join(splits)}")
    dataset = datasets.concatenate_datasets([splits[part] for part in parts])

    columns = {image_column_name: "image", label_column_name: "label"}
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{dataset_name} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)} "
            "(see --image_column_name and --label_column_name)"
        )
    kept = [*columns, *(["name"] if "name" in dataset.column_names and "name" not in columns else [])]
    dataset = dataset.select_columns(kept).rename_columns({old: new for old, new in columns.items() if old != new})
    for column in ("image", "label"):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _name(example: dict[str, Any], index: int) -> str:
    """The file's name as far as the dataset knows it, else its place in the split."""
    return example.get("name") or example["image"]["path"] or f"example {index}"


def _open(encoded: dict[str, Any], name: str) -> PIL.Image.Image:
    """Decode what a `datasets.Image(decode=False)` column holds."""
    try:
        picture = PIL.Image.open(encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"]))
        picture.load()
    except (OSError, SyntaxError) as error:  # PIL reports some broken PNG files as SyntaxError
        raise ValueError(f"{name}: cannot be read ({error})") from error
    return picture


class SegmentationDataset(torch.utils.data.Dataset):
    """Pictures with label maps, checked, and transformed by draws that depend on nothing but (seed, epoch, index).

    Args:
        dataset: what `load_split` returns.
        num_labels: ids 0..num_labels-1 are classes.
        ignore_index: the only other id a label map may hold.
        reduce_labels: make 0 the ignored id and move every other id down by one first, as ADE20K wants.
        transform: maps (image: uint8 (3, H, W), label: uint8 (H, W)) to what is trained on, drawing its random
            numbers from torch's default generator.
        seed: of every random draw.

    An example is a dict with `image` and `label` (the transform's results) and `name`. It is asked for by an index or
    by (epoch, index); the same pair gives the same tensors in every process, in every order and after every restart.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        num_labels: int,
        ignore_index: int = 255,
        reduce_labels: bool = False,
        transform: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        seed: int = 0,
    ):
        self.dataset = dataset
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.reduce_labels = reduce_labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def read_label(self, index: int) -> np.ndarray:
        """Read the label map of one example, (H, W) uint8, with every id checked.

        Raises:
            ValueError: the file is not a readable single-channel map, or an id is neither a class nor ignored.
        """
        example = self.dataset[index]
        return self._decode_label(example, _name(example, index))

    def _decode_label(self, example: dict[str, Any], name: str) -> np.ndarray:
        picture = _open(example["label"], f"{name} (label)")
        label = np.asarray(picture)
        if label.ndim != 2:
            raise ValueError(f"{name}: a label map has one channel of ids, this one has mode {picture.mode}")
        label = label.astype(np.int64)
        if self.reduce_labels:
            label = np.where(label == self.ignore_index, self.ignore_index, label - 1)
            label[label == -1] = self.ignore_index
        wrong = label[((label < 0) | (label >= self.num_labels)) & (label != self.ignore_index)]
        if wrong.size:
            raise ValueError(
                f"{name}: label id {int(wrong[0]) + self.reduce_labels} is outside "
                f"{int(self.reduce_labels)}..{self.num_labels - 1 + self.reduce_labels} and is not {self.ignore_index}"
            )
        return label.astype(np.uint8)

    def read(self, index: int) -> tuple[PIL.Image.Image, np.ndarray, str]:
        """Read one example as (RGB picture, label map (H, W) uint8, name), neither resized nor augmented."""
        example = self.dataset[index]
        name = _name(example, index)
        label = self._decode_label(example, name)
        picture = convert_to_rgb(_open(example["image"], name))
        if label.shape != (picture.height, picture.width):
            raise ValueError(
                f"{name}: the picture is {picture.height}x{picture.width}, "
                f"its label map {label.shape[0]}x{label.shape[1]}"
            )
        return picture, label, name

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture, label, name = self.read(index)
        image = tv_tensors.Image(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        label = tv_tensors.Mask(torch.from_numpy(label))
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                # NumPy's seed sequence mixes the three numbers well; neighbouring seeds would give related draws.
                state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
                torch.default_generator.manual_seed(int(state))
                image, label = self.transform(image, label)
        return {"image": image, "label": label, "name": name}


def class_frequencies(dataset: SegmentationDataset) -> torch.Tensor:
    """Share of every class among the labelled pixels of a whole split, (num_labels,) float64, summing to 1."""
    counts = np.zeros(256, dtype=np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.read_label(index).ravel(), minlength=256)
    counts = torch.from_numpy(counts[: dataset.num_labels]).double()
    return counts / counts.sum().clamp(min=1)
