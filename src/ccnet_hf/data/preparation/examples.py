"""Finding the examples of a benchmark among the files of its distribution."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ccnet_hf.data.archives import RawFile, normal_form
from ccnet_hf.data.benchmarks.layout import LabelFormat, NameList, RawLayout
from ccnet_hf.errors import InputError, reading


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

    Raises:
        InputError: a list that is needed is missing or cannot be read, or two copies of one differ.
    """
    lists = {key: _required_names(files, required) for key, required in layout.required_lists.items()}
    found = {}
    for split, raw_split in layout.splits.items():
        images = [_by_name(files, pattern, raw_split) for pattern in layout.images]
        labels = [_by_name(files, label.pattern, raw_split) for label in layout.labels]
        names = None
        if layout.names is not None:
            names = layout.names(split, lists)
        elif layout.name_list is not None:
            names = _read_names(files, layout.name_list.replace("{split}", raw_split))
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


def _required_names(files: Sequence[RawFile], required: NameList) -> set[str]:
    names = _read_names(files, required.pattern)
    if names is None:
        raise InputError(f"the list {required.description} is missing")
    return set(names)


def _read_names(files: Sequence[RawFile], pattern: str) -> list[str] | None:
    """The stem of the first word of every line of a list of names; `None` if there is no such file."""
    lists = [file for _, file in _match(files, pattern)]
    if not lists:
        return None
    content = read_same(lists)
    with reading(str(lists[0])):
        lines = normal_form(content.decode()).splitlines()
    return [PurePosixPath(line.split()[0]).stem for line in lines if line.strip()]


def read_same(files: Sequence[RawFile]) -> bytes:
    """Read a file of which there may be several copies; `InputError` naming them if two differ."""
    content = files[0].read()
    for file in files[1:]:
        if file.read() != content:
            raise InputError(f"{files[0]} and {file} should be copies of one file and differ; remove the wrong one")
    return content
