"""How many training examples one worker makes in a second, and what it spends the time on."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

from ccnet_hf.benchmark.images import draw_example
from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.recipes import Recipe
from ccnet_hf.training.augmentation import training_transforms


def _png(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def synthetic_split(num_examples: int, size: tuple[int, int], num_labels: int, seed: int = 0) -> datasets.Dataset:
    """Draw PNG images that are as hard to decode as photographs, with label maps of a few hundred regions.

    At Cityscapes' 1024x2048 the files have about 2.3 MB, as the benchmark's have.

    Args:
        num_examples: rows.
        size: (height, width), at least `SMALLEST_SIZE`.
        num_labels: ids of the regions are 0..num_labels-1.
        seed: of every draw.
    """
    generator = np.random.default_rng(seed)
    rows: dict[str, list] = {"image": [], "label": []}
    for _ in range(num_examples):
        image, label = draw_example(size, num_labels, generator)
        rows["image"].append(_png(image))
        rows["label"].append(_png(label))
    return datasets.Dataset.from_dict(
        rows,
        features=datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Image(decode=False)}),
    )


def measure_loading(
    recipe: Recipe,
    size: tuple[int, int] = (1024, 2048),
    num_examples: int = 64,
    num_workers: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Measure the loader alone with a recipe's augmentation, on synthetic images; no model runs.

    Processor time is what one worker needs by itself, however busy the machine is; the DataLoader's rate is by the
    clock, and includes the way of the tensors to the training process.

    Args:
        recipe: whose augmentation is measured.
        size: (height, width) of the images.
        num_examples: examples to take the mean of.
        num_workers: processes of a DataLoader, measured one after the other.

    Returns:
        `image_bytes`: mean size of an image's file; `cpu_seconds`: of one example; `images_per_cpu_second`: its
        inverse, the rate of a worker that has a core for itself; `stages`: processor seconds by stage; `bottleneck`:
        the longest stage; `images_per_second`: by number of workers.
    """
    benchmark = get_benchmark(recipe.benchmark)
    split = synthetic_split(4, size, benchmark.num_labels)
    transform = training_transforms(recipe.training, recipe.image_mean, recipe.image_std, benchmark.ignore_index)
    dataset = SegmentationDataset(split, benchmark.num_labels, benchmark.ignore_index, transform=transform)
    keys = [(index // len(split), index % len(split)) for index in range(num_examples)]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    try:
        dataset[keys[0]]
        start = time.process_time()
        for key in keys:
            dataset[key]
        cpu_seconds = (time.process_time() - start) / num_examples
        stages = _measure_stages(dataset, keys)
        rates = {count: _measure_workers(dataset, keys, count) for count in num_workers}
    finally:
        torch.set_num_threads(num_threads)
    return {
        "variant": recipe.name,
        "size": list(size),
        "image_bytes": round(np.mean([len(row["image"]["bytes"]) for row in split])),
        "cpu_seconds": cpu_seconds,
        "images_per_cpu_second": 1 / cpu_seconds,
        "stages": stages,
        "bottleneck": max(stages, key=stages.get),
        "images_per_second": rates,
    }


def _measure_stages(dataset: SegmentationDataset, keys: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Processor seconds per example of every stage, in their order."""
    laps: dict[str, float] = defaultdict(float)
    for _, index in keys:
        clock = _Clock(laps)
        example = dataset.dataset[index]
        clock.lap("read")
        dataset.decode_label(example, index)
        clock.lap("decode and check label")
        decoded, label, _ = dataset.decode(example, index)
        clock.lap("decode image")
        image = tv_tensors.Image(torch.from_numpy(np.array(decoded)).permute(2, 0, 1))
        mask = tv_tensors.Mask(torch.from_numpy(label))
        clock.lap("to tensor")
        for step in dataset.transform.transforms:
            image, mask = step(image, mask)
            clock.lap(type(step).__name__)
    laps["decode image"] -= laps["decode and check label"]  # `decode` reads both
    return {stage: seconds / len(keys) for stage, seconds in laps.items()}


class _Clock:
    """Adds the processor time since the last lap to a stage."""

    def __init__(self, laps: dict[str, float]):
        self.laps = laps
        self.start = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self.laps[stage] += now - self.start
        self.start = now


def _measure_workers(dataset: SegmentationDataset, keys: Sequence[tuple[int, int]], num_workers: int) -> float:
    """Examples per second by the clock through a DataLoader, once its workers are at work."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, sampler=keys, num_workers=num_workers)
    examples = iter(loader)
    next(examples)
    start = time.perf_counter()
    count = sum(1 for _ in examples)
    return count / (time.perf_counter() - start)
