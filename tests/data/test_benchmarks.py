"""The records of the benchmarks: complete, and found where they lie."""

import sys

import pytest

from ccnet_hf.data import benchmarks
from ccnet_hf.data.benchmarks import BENCHMARKS, get_benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_record_says_what_cards_need(name):
    benchmark = get_benchmark(name)
    assert benchmark.name == name and benchmark.title
    if benchmark.raw is not None:  # more than its classes are known, and people prepare it
        assert benchmark.scenes and benchmark.license
        assert benchmark.license_name and benchmark.license_link.startswith("http")
    assert len(set(benchmark.class_names)) == len(benchmark.palette) == benchmark.num_labels
    if benchmark.protocol is not None:  # its variants are published with cards that name the dataset
        assert benchmark.hub_dataset_id and benchmark.protocol.size[0] >= benchmark.protocol.size[1] > 0


RECORD = """
from ccnet_hf.data.benchmarks.record import Benchmark

BERRIES = Benchmark("berries", "Berries", ("unripe", "ripe"), ((0, 200, 0), (200, 0, 0)), {"train": 3})
"""


def test_a_new_benchmark_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "berries.py").write_text(RECORD)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    try:
        found = benchmarks._records(benchmarks.Benchmark)
    finally:
        sys.modules.pop(f"{benchmarks.__name__}.berries", None)
    assert found.keys() == {*BENCHMARKS, "berries"}
    assert found["berries"].id2label == {0: "unripe", 1: "ripe"}
