"""Images with objects as torch examples: COCO's annotations read, checked and made the labels of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch

from ccnet_hf.data.images import CorruptExample, open_image, to_rgb
from ccnet_hf.data.loading import SegmentationDataset, encoded_source, example_name
from ccnet_hf.errors import InputError, using
from ccnet_hf.models.image_processing_ccnet_instance import CCNetInstanceImageProcessor, padded_batch


if TYPE_CHECKING:
    import datasets
    from transformers import BaseImageProcessor, PreTrainedConfig

    from ccnet_hf.data.dataset_arguments import DatasetArguments


class InstanceDataset(SegmentationDataset):
    """Images with objects, prepared by an image processor, and transformed by draws that depend on nothing but (seed,
    epoch, index).

    Args:
        dataset: what `load_split` returns, mapped or streamed; its `label` holds the objects, as `prepare_dataset.py
            coco` writes them.
        image_processor: of the model.
        num_labels: category ids are 1..num_labels-1.
        transform: changes an example with its `pixel_values` (3, h, w), not padded yet, and its labels, drawing its
            random numbers from torch's default generator.
        seed, skip_corrupt, max_image_pixels, source: as in `SegmentationDataset`.

    An example is a dict with `image` (3, h, w), `label` (a dict as the image processor makes it), `name`, and
    `corrupt`, the messages about examples it replaces.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | datasets.IterableDataset,
        image_processor: CCNetInstanceImageProcessor,
        num_labels: int,
        transform: Callable[[torch.Tensor, dict], tuple[torch.Tensor, dict]] | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
        max_image_pixels: int | None = None,
        source: str = "the dataset",
    ):
        super().__init__(
            dataset,
            num_labels=0,  # of label maps, which there are not
            transform=transform,
            seed=seed,
            skip_corrupt=skip_corrupt,
            max_image_pixels=max_image_pixels,
            source=source,
        )
        self.num_labels = num_labels
        self.image_processor = image_processor
        self.size_divisor = image_processor.size_divisor

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad examples to `pixel_values` (B, 3, H, W) and `pixel_mask` (B, H, W), and list `labels`, `names` and
        `corrupt`; `noted` is empty."""
        return {
            **padded_batch([example["image"] for example in examples], self.size_divisor),
            "labels": [example["label"] for example in examples],
            "names": [example["name"] for example in examples],
            "corrupt": [message for example in examples for message in example["corrupt"]],
            "noted": [],
        }

    def truths(
        self, start: int = 0, step: int = 1, corrupt: list[str] | None = None
    ) -> Iterator[tuple[PIL.Image.Image, list[dict[str, Any]], int, str]]:
        """Read every `step`-th example from `start` on as (RGB image, its COCO annotations, image id, name)."""
        for index, example in self.encoded(start, step):
            try:
                yield self._read(example, index)
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                if corrupt is not None:
                    corrupt.append(str(error))

    def _read(self, example: dict[str, Any], index: int) -> tuple[PIL.Image.Image, list[dict[str, Any]], int, str]:
        name = example_name(example, index)
        try:
            image = to_rgb(open_image(encoded_source(example["image"]), self.max_image_pixels))
        except InputError as error:
            raise CorruptExample(f"{name}: {error}") from error
        stated = (example.get("height"), example.get("width"))
        if None not in stated and stated != (image.height, image.width):
            raise CorruptExample(
                f"{name}: the image is {image.height}x{image.width}, its annotations are of {stated[0]}x{stated[1]}"
            )
        annotations = [coco_annotation(entry, (image.height, image.width)) for entry in example["label"]]
        for entry in annotations:
            if not 1 <= entry["category_id"] < self.num_labels:
                raise InputError(f"{name}: category id {entry['category_id']} is outside 1..{self.num_labels - 1}")
        return image, annotations, int(example.get("image_id", index)), name

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        epoch, index, *encoded = key if isinstance(key, tuple) else (0, key)
        corrupt: list[str] = []
        for place, example in self._candidates(index, *encoded):
            try:
                image, annotations, image_id, name = self._read(example, place)
                break
            except CorruptExample as error:
                if not self.skip_corrupt:
                    raise
                corrupt.append(str(error))
        else:
            raise InputError(f"no example is readable; the first: {corrupt[0]}")
        with using(name):
            inputs = self.image_processor(
                image, {"image_id": image_id, "annotations": annotations}, do_pad=False, return_tensors="pt"
            )
        pixels, label = inputs["pixel_values"][0], dict(inputs["labels"][0])
        pixels, label = self._transformed(pixels, label, epoch, index)
        return {"image": pixels, "label": label, "name": name, "corrupt": corrupt}

    def first(self, number: int) -> list[tuple[PIL.Image.Image, list[dict[str, Any]], int, str]]:
        """Some examples, of a mapped dataset from all over it."""
        step = 1 if self.streamed else max(1, len(self) // number)
        return list(islice(self.truths(0, step), number))


def coco_annotation(entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """An object as a prepared dataset holds it, as one of COCO's annotations."""
    fields = {name: entry[name] for name in ("category_id", "bbox", "area", "iscrowd") if name in entry}
    if entry.get("counts"):
        return fields | {"segmentation": {"size": list(size), "counts": entry["counts"]}}
    return fields | {"segmentation": entry.get("polygons") or []}


def instance_dataset(
    arguments: DatasetArguments,
    examples: datasets.Dataset | datasets.IterableDataset,
    config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
    transform: Callable | None = None,
    seed: int = 0,
) -> InstanceDataset:
    """The examples of a split for a model; arguments as for `segmentation_dataset`."""
    features = examples.features or {}
    if "label" not in (examples.column_names or features):
        raise InputError(f"{arguments.dataset_name} has no column of objects (see --label_column_name)")
    return InstanceDataset(
        examples,
        image_processor,
        num_labels=config.num_labels,
        transform=transform,
        seed=seed,
        skip_corrupt=arguments.skip_corrupt,
        max_image_pixels=arguments.max_image_pixels,
        source=arguments.dataset_name,
    )
