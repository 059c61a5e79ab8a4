"""Where a benchmark's distribution keeps its images and labels, and what the values in the labels mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ccnet_hf.data.images import open_image
from ccnet_hf.errors import InputError
from ccnet_hf.models.image_transforms_ccnet import stored_orientation


_WITHOUT_ALPHA = {"RGBA": "RGB", "LA": "L"}  # modes of Pillow


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
        hint: what is said where values are met in place of colours, or colours in place of values.
    """

    pattern: str
    training_ids: Mapping[int, int]
    colours: Mapping[tuple[int, int, int], int] | None = None
    decode: Callable[[bytes], np.ndarray] | None = None
    hint: str = ""

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
        orientation = stored_orientation(image)
        if image.mode in _WITHOUT_ALPHA:
            image = _without_alpha(image)
        if self.colours and image.mode in ("P", "RGB"):
            return self._map_colours(np.asarray(image.convert("RGB"))), orientation
        return self._map_values(np.asarray(image), image.mode), orientation

    def _map_values(self, label: np.ndarray, mode: str = "") -> np.ndarray:
        if label.ndim != 2:
            problem = f"a label map has one channel of ids, this one has mode {mode or label.shape}"
            raise InputError(problem if self.colours else self._with_hint(problem))
        is_uint8 = label.dtype == np.uint8
        values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)) if is_uint8 else np.unique(label)
        unknown = [value for value in values.tolist() if value not in self.training_ids]
        if unknown:
            allowed = ", ".join(_ranges(sorted(self.training_ids)))
            problem = f"label id {unknown[0]} is none of {allowed}"
            raise InputError(self._with_hint(problem) if self.colours else problem)
        table = np.zeros(256, dtype=np.uint8)
        for value, training_id in self.training_ids.items():
            table[value] = training_id
        return table[label.astype(np.uint8)]

    def _with_hint(self, problem: str) -> str:
        return f"{problem} ({self.hint})" if self.hint else problem

    def _map_colours(self, label: np.ndarray) -> np.ndarray:
        packed = label.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        ids = {(red << 16) + (green << 8) + blue: i for (red, green, blue), i in self.colours.items()}
        values, first = np.unique(packed, return_index=True)
        for value, index in zip(values, first, strict=True):
            if int(value) not in ids:
                row, column = divmod(int(index), packed.shape[1])
                colour = (int(value) >> 16, int(value) >> 8 & 255, int(value) & 255)
                raise InputError(f"colour {colour} at row {row}, column {column} is no class's colour")
        return np.array([ids[int(value)] for value in values], dtype=np.uint8)[np.searchsorted(values, packed)]


def _without_alpha(image: Image.Image) -> Image.Image:
    """An image without its alpha channel; `InputError` where that hides anything."""
    hidden = np.argwhere(np.asarray(image.getchannel("A")) != 255)
    if len(hidden):
        row, column = hidden[0]
        raise InputError(f"the pixel at row {row}, column {column} is transparent; save the label map without alpha")
    return image.convert(_WITHOUT_ALPHA[image.mode])


def _ranges(values: Sequence[int]) -> list[str]:
    """Write sorted numbers as ranges: 0, 1, 2, 255 -> "0..2", "255"."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return [f"{start}..{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class NameList:
    """A file of the distribution that lists names, one per line.

    Attributes:
        pattern: regular expression for the end of its path.
        description: the file and what it belongs to, for people.
    """

    pattern: str
    description: str


@dataclass(frozen=True)
class RawLayout:
    """Where the images and labels of a benchmark are found in its official distribution.

    Attributes:
        images: regular expressions for the end of an image's path, in order of preference; see `LabelFormat.pattern`.
        labels: kinds of label files, in order of preference.
        splits: our name of every split -> the distribution's.
        description: the archives and the files to look for, for people.
        mapping: how training ids follow from the distribution's labels, for people.
        name_list: regular expression of a file that lists the names of a split, one per line; where a distribution
            has it, its names are the split's.
        required_lists: files that list names and without which a split cannot be told.
        names: the names that a split (ours) should have, given the names in `required_lists`; `None` where the files
            themselves or `name_list` tell.
        num_by_prefix: by split, how many names begin with a prefix and `_`; says which part is missing.
    """

    images: tuple[str, ...]
    labels: tuple[LabelFormat, ...]
    splits: Mapping[str, str]
    description: str
    mapping: str
    name_list: str | None = None
    required_lists: Mapping[str, NameList] = field(default_factory=dict)
    names: Callable[[str, Mapping[str, set[str]]], set[str]] | None = None
    num_by_prefix: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
