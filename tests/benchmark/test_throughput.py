"""The loader's speed: realistic files, every stage counted, the slowest one named."""

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from ccnet_hf import benchmark
from ccnet_hf.benchmark import throughput
from ccnet_hf.benchmark.throughput import measure_loading, synthetic_split
from ccnet_hf.data import transforms
from ccnet_hf.recipes import get_recipe


def test_synthetic_images_are_as_large_as_the_benchmarks():
    (row,) = synthetic_split(1, (1024, 2048), num_labels=19)
    assert 2.0e6 < len(row["image"]["bytes"]) < 2.6e6


class Clock:
    """Goes by a microsecond whenever it is read, and by what a test adds: no processor is as fast as another."""

    now = 0.0

    def read(self) -> float:
        self.now += 1e-6
        return self.now


def test_names_the_slowest_stage(monkeypatch):
    recipe = get_recipe("ccnet-r50-cityscapes")
    recipe = dataclasses.replace(
        recipe, training=dataclasses.replace(recipe.training, crop_size=(48, 64), scale=(128, 64))
    )
    crop = transforms.RandomCrop.transform
    clock = Clock()

    def slow_crop(self, inpt, params):
        clock.now += 0.02
        return crop(self, inpt, params)

    monkeypatch.setattr(transforms.RandomCrop, "transform", slow_crop)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(process_time=clock.read, perf_counter=clock.read))
    measured = measure_loading(recipe, (64, 128), num_examples=3, num_workers=(0,))
    assert measured["bottleneck"] == "RandomCrop"
    assert 0.04 <= measured["stages"]["RandomCrop"] < 0.041  # image and label
    assert measured["cpu_seconds"] == pytest.approx(sum(measured["stages"].values()), abs=1e-3)
    assert measured["images_per_cpu_second"] == pytest.approx(1 / measured["cpu_seconds"])
    assert 24 < measured["images_per_second"][0] <= 25
    assert measured["image_bytes"] > 1000


def test_label_maps_hold_classes_only():
    labels = [
        np.asarray(PIL.Image.open(io.BytesIO(row["label"]["bytes"])))
        for row in synthetic_split(2, (64, 128), num_labels=5)
    ]
    assert all(label.shape == (64, 128) and label.max() == 4 for label in labels)


def test_command(tmp_path, capsys):
    file = tmp_path / "data.json"
    arguments = ["--size", "64x128", "--num_examples", "2", "--json", str(file)]
    assert benchmark.main(["data", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "1 worker: " in printed and "decode image" in printed
    assert json.loads(file.read_text())["bottleneck"] in printed


def test_bad_numbers_are_one_line(capsys):
    assert benchmark.main(["data", "--num_workers", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
