"""Where a benchmark's distribution keeps its images and labels, and what the values in the labels mean."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from ccnet_hf.data.archives import RawFile
from ccnet_hf.data.images import open_image
from ccnet_hf.errors import InputError, reading
from ccnet_hf.models.image_transforms_ccnet import stored_orientation


@dataclass(frozen=True)
class LabelFormat:
    """One kind of label file.

    Attributes:
        pattern: regular expression for the end of its path, with the group `name`; `{split}` stands for the
            distribution's word for the split.
        training_ids: training id of every value (0..255) that may occur; any other value is an error.
        colours: training id of every colour, where the colours of a label map tell its classes apart. Files with a
            palette, and those whose palette was expanded to RGB, are then read by their colours.
        decode: reads a file that is not an image into an (H, W) array; `None` for PNG.
    """

    pattern: str
    training_ids: Mapping[int, int]
    colours: Mapping[tuple[int, int, int], int] | None = None
    decode: Callable[[bytes], np.ndarray] | None = None

    @property
    def meaning(self) -> str:
        """What values and colours stand for, in a form that can be compared with an earlier one."""
        return repr((sorted(self.training_ids.items()), sorted((self.colours or {}).items())))

    def read(self, encoded: bytes, max_image_pixels: int | None = None) -> tuple[np.ndarray, int]:
        """Decode a label file.

        Args:
            encoded: its bytes.
            max_image_pixels: as in `open_image`.

        Returns:
            Training ids, (H, W) uint8, upright, and the EXIF orientation that turned them so, 1 where none did.

        Raises:
            InputError: it is damaged, has several channels, or holds a value or colour that means nothing.
        """
        if self.decode is not None:
            return self._map_values(self.decode(encoded)), 1
        image = open_image(encoded, max_image_pixels)
        if self.colours and image.mode in ("P", "RGB"):
            return self._map_colours(np.asarray(image.convert("RGB"))), stored_orientation(image)
        return self._map_values(np.asarray(image), image.mode), stored_orientation(image)

    def _map_values(self, label: np.ndarray, mode: str = "") -> np.ndarray:
        if label.ndim != 2:
            raise InputError(f"a label map has one channel of ids, this one has mode {mode or label.shape}")
        is_uint8 = label.dtype == np.uint8
        values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)) if is_uint8 else np.unique(label)
        unknown = [value for value in values.tolist() if value not in self.training_ids]
        if unknown:
            allowed = ", ".join(_ranges(sorted(self.training_ids)))
            raise InputError(f"label id {unknown[0]} is none of {allowed}")
        table = np.zeros(256, dtype=np.uint8)
        for value, training_id in self.training_ids.items():
            table[value] = training_id
        return table[label.astype(np.uint8)]

    def _map_colours(self, label: np.ndarray) -> np.ndarray:
        packed = label.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        ids = {(red << 16) + (green << 8) + blue: i for (red, green, blue), i in self.colours.items()}
        values, first = np.unique(packed, return_index=True)
        for value, place in zip(values, first, strict=True):
            if int(value) not in ids:
                row, column = divmod(int(place), packed.shape[1])
                colour = (int(value) >> 16, int(value) >> 8 & 255, int(value) & 255)
                raise InputError(f"colour {colour} at row {row}, column {column} is no class's colour")
        return np.array([ids[int(value)] for value in values], dtype=np.uint8)[np.searchsorted(values, packed)]


def _ranges(values: Sequence[int]) -> list[str]:
    """Write sorted numbers as ranges: 0, 1, 2, 255 -> "0..2", "255"."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return [f"{start}..{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class RawLayout:
    """Where the images and labels of a benchmark are found in its official distribution.

    Attributes:
        images: regular expressions for the end of an image's path, in order of preference; see `LabelFormat.pattern`.
        labels: kinds of label files, in order of preference.
        splits: our name of every split -> the distribution's.
        names: lists the names that a split (ours) should have, or is `None` where the files themselves tell.
        name_list: regular expression of a file that lists the names of a split, a line each; where a distribution
            has it, its names are the split's.
        num_by_prefix: by split, how many names begin with a prefix and `_`; says which part is missing.
        description: the archives and the files to look for, for people.
        mapping: how training ids follow from the distribution's labels, for people.
    """

    images: tuple[str, ...]
    labels: tuple[LabelFormat, ...]
    splits: Mapping[str, str]
    description: str
    mapping: str
    names: Callable[[Sequence[RawFile], str], list[str]] | None = None
    name_list: str | None = None
    num_by_prefix: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class RawExample:
    """An image and its label as they are found: all copies of either, and nothing where it is missing."""

    name: str
    image: tuple[RawFile, ...]
    label: tuple[RawFile, ...]
    label_format: LabelFormat | None

    @property
    def is_absent(self) -> bool:
        """Whether there is nothing of it but its name in a list."""
        return not (self.image or self.label)


def find_examples(files: Sequence[RawFile], layout: RawLayout) -> dict[str, list[RawExample]]:
    """Sort the files of a distribution into examples by split, in the order of their names.

    What a list or the numbering names is there even if its files are not; so is an image without a label and a label
    without an image.
    """
    found = {}
    for split, raw_split in layout.splits.items():
        images = [_by_name(files, pattern, raw_split) for pattern in layout.images]
        labels = [_by_name(files, label.pattern, raw_split) for label in layout.labels]
        names = None
        if layout.names is not None:
            names = layout.names(files, split)
        elif layout.name_list is not None:
            names = read_names(files, layout.name_list.replace("{split}", raw_split))
        if names is None:
            names = set().union(*images, *labels)
        examples = []
        for name in sorted(names):
            image = next((group[name] for group in images if name in group), ())
            label, label_format = next(
                ((group[name], form) for group, form in zip(labels, layout.labels, strict=True) if name in group),
                ((), None),
            )
            examples.append(RawExample(name, tuple(image), tuple(label), label_format))
        found[split] = examples
    return found


def _match(files: Sequence[RawFile], pattern: str) -> list[tuple[re.Match[str], RawFile]]:
    expression = re.compile(f"(?:^|/){pattern}$")
    return [(match, file) for file in files if (match := expression.search(file.path))]


def _by_name(files: Sequence[RawFile], pattern: str, raw_split: str) -> dict[str, list[RawFile]]:
    groups = defaultdict(list)
    for match, file in _match(files, pattern.replace("{split}", raw_split)):
        with reading(f"the name of {file}"):
            match["name"].encode()  # file systems and archives allow names that are no text
        groups[match["name"]].append(file)
    return groups


def read_names(files: Sequence[RawFile], pattern: str) -> list[str] | None:
    """Read a list of names: the stem of the first word of every line; `None` if there is no such file.

    Raises:
        InputError: there are several, and they differ.
    """
    lists = [file for _, file in _match(files, pattern)]
    if not lists:
        return None
    content = read_same(lists)
    with reading(str(lists[0])):
        lines = content.decode().splitlines()
    return [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]


def read_same(files: Sequence[RawFile]) -> bytes:
    """Read a file of which there may be several copies; `InputError` naming them if two differ."""
    content = files[0].read()
    for file in files[1:]:
        if file.read() != content:
            raise InputError(f"{files[0]} and {file} should be copies of one file and differ; remove the wrong one")
    return content
