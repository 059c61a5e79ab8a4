"""The options of every command that reads a labelled dataset.

Nothing here is imported from the extra `train` until a dataset is read, so that `--help` works without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets
    from transformers import BaseImageProcessor, PreTrainedConfig

    from ccnet_hf.data.loading import SegmentationDataset


@dataclass(kw_only=True)
class DatasetArguments:
    """Which dataset, and how it is read; `load_split` and `SegmentationDataset` say what the options mean."""

    dataset_name: str = field(metadata={"help": "folder (parquet or save_to_disk) or Hub id of the dataset"})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "which configuration of a dataset that has several"}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "revision of a dataset on the Hub, e.g. refs/convert/parquet"}
    )
    image_column_name: str = field(default="image", metadata={"help": "column of images"})
    label_column_name: str = field(default="label", metadata={"help": "column of label maps"})
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={"help": "label 0 is ignored, others move down by one; default: as the model has it"},
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the dataset as it comes instead of preparing it on disk"}
    )
    skip_corrupt: bool = field(
        default=False, metadata={"help": "go on where examples cannot be read, and name them at the end"}
    )

    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )

    def load_split(self, split: str, hint: str = "") -> datasets.Dataset | datasets.IterableDataset:
        """Load one split, or several as in `train+validation`; as `ccnet_hf.data.loading.load_split`."""
        from ccnet_hf.data.loading import load_split

        return load_split(
            self.dataset_name,
            split,
            self.image_column_name,
            self.label_column_name or None,
            self.streaming,
            self.dataset_config_name,
            self.dataset_revision,
            hint,
        )

    def reduces_labels(self, split: datasets.Dataset | datasets.IterableDataset, by_default: bool) -> bool:
        """Whether label 0 of a split is ignored: as said, else `by_default`, but not where labels are training ids."""
        from ccnet_hf.data.loading import is_prepared

        if self.do_reduce_labels is not None:
            return self.do_reduce_labels
        return by_default and not is_prepared(split)


def segmentation_dataset(
    arguments: DatasetArguments,
    examples: datasets.Dataset | datasets.IterableDataset,
    config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
    transform: Callable | None = None,
    seed: int = 0,
    dataset_class: type[SegmentationDataset] | None = None,
    **further: Any,
) -> SegmentationDataset:
    """The examples of a split for a model.

    Args:
        arguments: how they are read.
        examples: of the split, as `arguments.load_split` returns them.
        config: of the model; says which labels there are.
        image_processor: of the model; says whether label 0 is ignored where `arguments` does not.
        transform: as in `SegmentationDataset`.
        seed: of the transform's draws.
        dataset_class: `SegmentationDataset` or a subclass.
        further: what the subclass takes beside.
    """
    from ccnet_hf.data.loading import SegmentationDataset

    return (dataset_class or SegmentationDataset)(
        examples,
        num_labels=config.num_labels,
        ignore_index=config.semantic_loss_ignore_index,
        reduce_labels=arguments.reduces_labels(examples, image_processor.do_reduce_labels),
        transform=transform,
        seed=seed,
        skip_corrupt=arguments.skip_corrupt,
        max_image_pixels=arguments.max_image_pixels,
        source=arguments.dataset_name,
        **further,
    )
