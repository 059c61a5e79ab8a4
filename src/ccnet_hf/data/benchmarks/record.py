"""What is the same for every benchmark: its classes, colours, splits, terms and protocol, in one record."""

from dataclasses import dataclass, field

from ccnet_hf.data.benchmarks.layout import RawLayout


@dataclass(frozen=True)
class Protocol:
    """How mmsegmentation trains and tests on a benchmark; what differs by variant stands in `ccnet_hf.recipes`.

    Attributes:
        size: (long, short) side of the keep-ratio resize in training and test, in pixels.
        images_per_gpu: of a training step.
        pad_before_normalization: pad small crops with black instead of the mean colour.
    """

    size: tuple[int, int]
    images_per_gpu: int
    pad_before_normalization: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A semantic segmentation benchmark.

    Attributes:
        name: the name used by recipes and on the command line, e.g. `"cityscapes"`.
        title: the name people write, e.g. `"Cityscapes"`.
        class_names: name of every class, by training id.
        palette: RGB colour (0..255) of every class, by training id.
        num_examples: number of labelled images by split; nothing where it is not prepared here.
        reduce_labels: whether label 0 of the source means "ignore" and every other label is one too high (ADE20K).
        ignore_index: label of pixels that neither train nor count.
        flip_label_pairs: pairs of training ids that a horizontal flip exchanges (left and right arm).
        scenes: what its images show, as a model card says what a model was trained on.
        homepage: where the data is found.
        license: the terms in a few words.
        license_name: the terms as the Hub's metadata call them.
        license_link: page with the terms.
        hub_dataset_id: what metadata on the Hub call the dataset; empty where it has no such name.
        protocol: of mmsegmentation's model zoo; `None` where the zoo has no CCNet for the benchmark.
        raw: how its official distribution is laid out and labelled; `None` where only its classes are known.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_examples: dict[str, int] = field(default_factory=dict)
    reduce_labels: bool = False
    ignore_index: int = 255
    flip_label_pairs: tuple[tuple[int, int], ...] = field(default=())
    scenes: str = ""
    homepage: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    hub_dataset_id: str = ""
    protocol: Protocol | None = None
    raw: RawLayout | None = None

    @property
    def num_labels(self) -> int:
        return len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.class_names))


@dataclass(frozen=True)
class InstanceBenchmark:
    """A benchmark of instance segmentation in COCO's format. Labels are the category ids.

    Attributes:
        name, title, num_examples, scenes, homepage, license, license_name, license_link, hub_dataset_id: as in
            `Benchmark`; `num_examples` counts images, with or without objects.
        categories: name of every category, by its id.
        raw_splits: what its official distribution calls the splits.
        description: of that distribution, in words.
    """

    name: str
    title: str
    categories: dict[int, str]
    num_examples: dict[str, int]
    raw_splits: dict[str, str]
    description: str
    scenes: str = ""
    homepage: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    hub_dataset_id: str = ""

    @property
    def num_labels(self) -> int:
        """Labels from 0, the background, to the largest category id."""
        return max(self.categories) + 1

    @property
    def id2label(self) -> dict[int, str]:
        """Name of every label, "N/A" where no category has its id, as in transformers' DETR."""
        return {label: self.categories.get(label, "N/A") for label in range(self.num_labels)}
