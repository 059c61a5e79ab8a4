"""COCO's images and annotations as rows of a Hugging Face dataset."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from huggingface_hub import DatasetCardData

from ccnet_hf.data.archives import RawFile
from ccnet_hf.data.benchmarks.record import InstanceBenchmark
from ccnet_hf.data.images import open_image
from ccnet_hf.data.preparation.card import skipped_note, split_rows
from ccnet_hf.data.preparation.examples import read_same
from ccnet_hf.data.preparation.shards import Shard, identity
from ccnet_hf.data.preparation.writing import DatasetKind, first_names
from ccnet_hf.errors import InputError, reading, using
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation


def instance_features() -> datasets.Features:
    """Columns of a prepared dataset of instances. `polygons` are outlines x, y, x, y, ... in pixels; an object that
    has none has a compressed run-length encoding of the image's size in `counts`."""
    return datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List(
                {
                    "id": datasets.Value("int64"),
                    "category_id": datasets.Value("int64"),
                    "bbox": datasets.List(datasets.Value("float64")),
                    "area": datasets.Value("float64"),
                    "iscrowd": datasets.Value("bool"),
                    "polygons": datasets.List(datasets.List(datasets.Value("float64"))),
                    "counts": datasets.Value("string"),
                }
            ),
            "image_id": datasets.Value("int64"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "name": datasets.Value("string"),
        }
    )


def object_row(annotation: dict[str, Any], size: tuple[int, int], name: str) -> dict[str, Any]:
    """One of COCO's annotations as a prepared dataset holds it.

    Args:
        annotation: from COCO's file.
        size: (height, width) of its image.
        name: of the image, for messages.

    Raises:
        InputError: it is malformed.
    """
    from pycocotools import mask as coco_mask

    missing = [key for key in ("id", "category_id", "bbox", "segmentation") if key not in annotation]
    if missing:
        raise InputError(f"{name}: an annotation has no {missing[0]}")
    segmentation = annotation["segmentation"]
    with using(f"{name}: annotation {annotation['id']}"):
        mask = mask_of_segmentation(segmentation, size)  # refuses what is none
        row = {
            "id": int(annotation["id"]),
            "category_id": int(annotation["category_id"]),
            "bbox": [float(number) for number in annotation["bbox"]],
            "area": float(annotation.get("area", mask.sum())),
            "iscrowd": bool(annotation.get("iscrowd")),
            "polygons": [],
            "counts": None,
        }
        if len(row["bbox"]) != 4:
            raise ValueError(f"its bbox is {annotation['bbox']}")
    if isinstance(segmentation, list):
        row["polygons"] = [list(map(float, polygon)) for polygon in segmentation]
    else:
        packed = segmentation
        if isinstance(segmentation["counts"], list):
            packed = coco_mask.frPyObjects(segmentation, *size)
        counts = packed["counts"]
        row["counts"] = counts.decode() if isinstance(counts, bytes) else counts
    return row


@dataclass(frozen=True)
class RawInstances:
    """An image with its annotations as they are found: all copies of its file, none where it is missing."""

    name: str
    image_id: int
    height: int
    width: int
    annotations: list[dict[str, Any]] = field(repr=False)
    image: tuple[RawFile, ...] = ()


@dataclass(frozen=True)
class InstanceShard(Shard):
    """A parquet file and the images it is made of."""

    @property
    def fingerprint(self) -> str:
        """Changes when other files, or files with another content, or other annotations are to go into the shard."""
        members = [
            [
                one.name,
                one.image_id,
                one.annotations,
                [identity(file) for file in one.image],
            ]
            for one in self.examples
        ]
        return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


def verified_instances(
    benchmark: InstanceBenchmark, files: Sequence[RawFile], allow_incomplete: bool, skip_corrupt: bool
) -> dict[str, list[RawInstances]]:
    """The images with objects among the files of a download, by split, compared with the benchmark's counts.

    Raises:
        InputError: something is missing and is not allowed to be.
    """
    return _verified(benchmark, _find(benchmark, files), allow_incomplete, skip_corrupt)


def _find(benchmark: InstanceBenchmark, files: Sequence[RawFile]) -> dict[str, list[RawInstances]]:
    """The images that the annotations of each split name, in the order of their names."""
    found = {}
    for split, raw_split in benchmark.raw_splits.items():
        annotations = [file for file in files if PurePosixPath(file.path).name == f"instances_{raw_split}.json"]
        if not annotations:
            continue
        images = defaultdict(list)
        for file in files:
            path = PurePosixPath(file.path)
            if path.parent.name == raw_split or (file.archive and Path(file.archive).stem == raw_split):
                images[path.name].append(file)
        found[split] = _read_annotations(annotations, images)
    if not any(one.image for split in found.values() for one in split):
        raise InputError(f"no annotated image of {benchmark.title} is there; looked for {benchmark.description}")
    return found


def _read_annotations(files: Sequence[RawFile], images: Mapping[str, Sequence[RawFile]]) -> list[RawInstances]:
    encoded = read_same(files)
    with reading(str(files[0])):
        content = json.loads(encoded)
        objects = defaultdict(list)
        for entry in content["annotations"]:
            objects[entry["image_id"]].append(entry)
        examples = [
            RawInstances(
                name=PurePosixPath(image["file_name"]).stem,
                image_id=int(image["id"]),
                height=int(image["height"]),
                width=int(image["width"]),
                annotations=objects.pop(image["id"], []),
                image=tuple(images.get(PurePosixPath(image["file_name"]).name, ())),
            )
            for image in content["images"]
        ]
        for one in examples:
            one.name.encode()  # JSON allows names that are no text
        if objects:
            raise ValueError(f"it annotates an image that it does not have, {next(iter(objects))}")
    return sorted(examples, key=lambda one: one.name)


def _verified(
    benchmark: InstanceBenchmark,
    examples: Mapping[str, Sequence[RawInstances]],
    allow_incomplete: bool,
    skip_corrupt: bool,
) -> dict[str, list[RawInstances]]:
    """Compare what was found with the benchmark's counts, before hours of work."""
    problems, hints = [], []
    for split, expected in benchmark.num_examples.items():
        found = examples.get(split, [])
        if len(found) > expected:
            raise InputError(f"split {split} has {len(found):,} images, {benchmark.title} has {expected:,}")
        if len(found) < expected and not allow_incomplete:
            problems.append(f"split {split} has {len(found):,} of {expected:,} images")
            hints.append("--allow_incomplete takes what is there")
        missing = [one.name for one in found if not one.image]
        if missing and not skip_corrupt:
            problems.append(f"split {split} has no image file for {first_names(missing)}")
            hints.append("--skip_corrupt leaves out images that lack a file")
    if problems:
        raise InputError(f"{benchmark.title} is incomplete: {'; '.join(problems)}. {'; '.join(dict.fromkeys(hints))}")
    return {split: list(found) for split, found in examples.items() if found}


def make_row(example: RawInstances, categories: Set[int], max_image_pixels: int | None = None) -> dict[str, Any]:
    """Read one image and check it and its annotations.

    Raises:
        InputError: a file is missing, damaged or does not fit the other; the message names it.
    """
    if not example.image:
        raise InputError(f"{example.name}: has no image")
    encoded = read_same(example.image)
    try:
        image = open_image(encoded, max_image_pixels)
    except InputError as error:
        raise InputError(f"{example.image[0]}: {error}") from error
    if (image.height, image.width) != (example.height, example.width):
        raise InputError(
            f"{example.image[0]}: the image is {image.height}x{image.width}, its annotations are of "
            f"{example.height}x{example.width}"
        )
    size = (example.height, example.width)
    objects = [object_row(annotation, size, example.name) for annotation in example.annotations]
    for row in objects:
        if row["category_id"] not in categories:
            raise InputError(f"{example.name}: there is no category {row['category_id']}")
    return {
        "image": {"bytes": encoded, "path": PurePosixPath(example.image[0].path).name},
        "objects": objects,
        "image_id": example.image_id,
        "height": example.height,
        "width": example.width,
        "name": example.name,
    }


def instances(benchmark: InstanceBenchmark, max_image_pixels: int | None) -> DatasetKind:
    """Datasets of images with objects."""
    return DatasetKind(
        instance_features(),
        partial(make_row, categories=frozenset(benchmark.categories), max_image_pixels=max_image_pixels),
        partial(_card, benchmark),
        InstanceShard,
    )


_CARD = """# {title}

{title} as {count} images with the masks and boxes of their objects, converted from the official distribution by
`ccnet_hf` (`prepare_dataset.py {name}`).

**Terms: {license}.** The terms of the benchmark hold for this copy of it; see [its site]({homepage}).

| split | images | in the benchmark |
|---|---|---|
{splits}
{skipped}
| column | |
|---|---|
| `image` | the image, the very bytes of the distribution's file |
| `objects` | `id`, `category_id`, `bbox` (left, top, width, height), `area`, `iscrowd`, `polygons`, `counts` |
| `image_id`, `height`, `width` | as the annotations state them |
| `name` | what the image's file is called |

The pixels of an object are its `polygons`, or, where there are none, the compressed run-length encoding in `counts`.

## Categories

| id | name |
|---|---|
{categories}
"""


def _card(
    benchmark: InstanceBenchmark, num_examples: Mapping[str, int], skipped: Sequence[str]
) -> tuple[DatasetCardData, str]:
    """Metadata and text for `write_card`; arguments as for `label_map_card`."""
    data = DatasetCardData(
        pretty_name=benchmark.title,
        license="other",
        license_name=benchmark.license_name,
        license_link=benchmark.license_link,
        task_categories=["image-segmentation", "object-detection"],
        task_ids=["instance-segmentation"],
    )
    text = _CARD.format(
        title=benchmark.title,
        name=benchmark.name,
        count=f"{sum(num_examples.values()):,}",
        license=benchmark.license,
        homepage=benchmark.homepage,
        splits=split_rows(benchmark, num_examples),
        skipped=skipped_note(skipped),
        categories="\n".join(f"| {label} | {name} |" for label, name in benchmark.categories.items()),
    )
    return data, text
