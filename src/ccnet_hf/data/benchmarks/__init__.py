"""The benchmarks: classes, colours, splits and the way from their archives to a Hugging Face dataset."""

from collections.abc import Mapping

from ccnet_hf.data.benchmarks.ade20k import ADE20K
from ccnet_hf.data.benchmarks.camvid import CAMVID
from ccnet_hf.data.benchmarks.cityscapes import CITYSCAPES
from ccnet_hf.data.benchmarks.lip import LIP
from ccnet_hf.data.benchmarks.record import Benchmark
from ccnet_hf.data.benchmarks.voc12aug import VOC12AUG
from ccnet_hf.errors import InputError


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (CITYSCAPES, ADE20K, VOC12AUG, LIP, CAMVID)
}


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark called `name`; `InputError` with the known names if there is none."""
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def flip_label_pairs(id2label: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    """The pairs of labels that mirroring exchanges: those of the benchmark with these classes, if there is one."""
    for benchmark in BENCHMARKS.values():
        if benchmark.id2label == id2label:
            return benchmark.flip_label_pairs
    return ()


__all__ = [
    "ADE20K",
    "BENCHMARKS",
    "CAMVID",
    "CITYSCAPES",
    "LIP",
    "VOC12AUG",
    "Benchmark",
    "flip_label_pairs",
    "get_benchmark",
]
