"""What is the same for every benchmark: its classes, colours, splits and terms, in one record."""

from dataclasses import dataclass, field

from ccnet_hf.data.benchmarks.layout import RawLayout


@dataclass(frozen=True)
class Benchmark:
    """A semantic segmentation benchmark.

    Attributes:
        name: the name used by recipes and on the command line, e.g. `"cityscapes"`.
        title: the name people write, e.g. `"Cityscapes"`.
        class_names: name of every class, by training id.
        palette: RGB colour (0..255) of every class, by training id.
        num_examples: number of labelled images by split.
        reduce_labels: whether label 0 of the source means "ignore" and every other label is one too high (ADE20K).
        ignore_index: label of pixels that neither train nor count.
        flip_label_pairs: pairs of training ids that a horizontal flip exchanges (left and right arm).
        homepage: where the data and its terms are found.
        license: the terms in a few words.
        raw: how its official distribution is laid out and labelled.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_examples: dict[str, int]
    reduce_labels: bool = False
    ignore_index: int = 255
    flip_label_pairs: tuple[tuple[int, int], ...] = field(default=())
    homepage: str = ""
    license: str = ""
    raw: RawLayout | None = None

    @property
    def num_labels(self) -> int:
        return len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.class_names))
