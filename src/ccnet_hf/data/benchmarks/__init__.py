"""The benchmarks, one module with one record each: classes, colours, splits, terms, protocol and their archives.

A new benchmark is a new module here that holds its `Benchmark`; nothing else has to name it.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ccnet_hf.data.benchmarks.record import Benchmark, InstanceBenchmark
from ccnet_hf.errors import InputError


def _records(kind: type) -> dict[str, Any]:
    """The records of a kind in the modules of this folder, by name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, kind)]
    return {benchmark.name: benchmark for benchmark in found}


BENCHMARKS: dict[str, Benchmark] = _records(Benchmark)
INSTANCE_BENCHMARKS: dict[str, InstanceBenchmark] = _records(InstanceBenchmark)


def get_benchmark(name: str) -> Benchmark | InstanceBenchmark:
    """Return the benchmark called `name`; `InputError` with the known names if there is none."""
    known = BENCHMARKS | INSTANCE_BENCHMARKS
    if name not in known:
        raise InputError(f"unknown benchmark {name!r}; known are {', '.join(known)}")
    return known[name]


def prepared_benchmarks() -> list[Benchmark]:
    """The benchmarks whose official distribution is known, so that a dataset can be made of it."""
    return [benchmark for benchmark in BENCHMARKS.values() if benchmark.raw is not None]


def flip_label_pairs(id2label: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    """The pairs of labels that mirroring exchanges: those of the benchmark with these classes, if there is one."""
    for benchmark in BENCHMARKS.values():
        if benchmark.id2label == id2label:
            return benchmark.flip_label_pairs
    return ()


__all__ = [
    "BENCHMARKS",
    "INSTANCE_BENCHMARKS",
    "Benchmark",
    "InstanceBenchmark",
    "flip_label_pairs",
    "get_benchmark",
    "prepared_benchmarks",
]
