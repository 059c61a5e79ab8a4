"""`benchmark.py end_to_end`: what the time goes into, from an image file to its overlay and label map."""

import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers.utils.logging
from PIL import Image

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.images import SMALLEST_SIZE, draw_example
from ccnet_hf.data.images import read_image
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.predictor_arguments import PredictorArguments
from ccnet_hf.inference.segment import COMPRESSION
from ccnet_hf.limits import MAX_PIXELS, check_range
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits
from ccnet_hf.visualization import colorize, complete_palette, overlay


_NOISE = 6.0  # deviation; a JPEG file of 1024x2048 then has 0.5 MB


@dataclass
class EndToEndArguments:
    model_name_or_path: str = field(
        metadata={"metavar": "MODEL", "help": "folder of a CCNet, also an exported one, or namespace/name on the Hub"}
    )
    image: str | None = field(
        default=None, metadata={"metavar": "FILE", "help": "the picture; default: one that is drawn, as JPEG"}
    )
    size: str = field(
        default="1024x2048", metadata={"metavar": "HxW", "help": "height and width of the picture that is drawn"}
    )
    runtime: Literal["auto", "eager", "compile", "openvino", "onnx"] | None = field(
        default=None, metadata={"help": "as of ccnet-hf segment; default: the model as it is"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=5, metadata={"help": "times that the picture goes its way; medians count"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass
class Stage:
    """One row. Lists hold one entry per repeat."""

    name: str
    seconds: list[float]  # by the clock
    cpu_seconds: list[float]  # of all threads


def benchmark_end_to_end(arguments: EndToEndArguments) -> None:
    """Measure the stages that a picture goes through: decoding, image processor, network, labels, overlay, PNG."""
    transformers.utils.logging.disable_progress_bar()
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads)
    size = measuring.parse_size(arguments.size, "size")
    for side, name, least in zip(size, ("height", "width"), SMALLEST_SIZE, strict=True):
        check_range(f"the {name} of --size", side, least, MAX_PIXELS)
    check_range("the pixels of --size", size[0] * size[1], 1, MAX_PIXELS)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    predictor = PredictorArguments(
        model_name_or_path=arguments.model_name_or_path, runtime=arguments.runtime, device=arguments.device
    ).load_predictor()
    if not isinstance(predictor, Predictor):
        raise InputError(f"{arguments.model_name_or_path} is not for semantic segmentation of images")
    environment = measuring.environment(device)
    with _picture(arguments.image, size) as path:
        picture = read_image(path)
        shown = arguments.image or "drawn"
        environment["picture"] = f"{shown}, {picture.height}x{picture.width}, {path.stat().st_size / 1e6:.1f} MB"
        environment["model"] = f"{arguments.model_name_or_path}, {arguments.runtime or 'as it is'}"
        measuring.print_environment(environment)
        with enough_memory(environment["picture"]):
            stages = measure_stages(predictor, path, device, arguments.repeats)
    print(table(stages))
    results = {"environment": environment, "stages": [asdict(stage) for stage in stages]}
    measuring.write_results(arguments.json, results)


@contextmanager
def _picture(file: str | None, size: tuple[int, int]) -> Iterator[Path]:
    """The file that is decoded; where none is given, a drawn one, which is removed afterwards."""
    if file is not None:
        yield Path(file)
        return
    image, _ = draw_example(size, 2, np.random.default_rng(0), _NOISE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "drawn.jpg")
        Image.fromarray(image).save(path, quality=90)
        yield path


def measure_stages(predictor: Predictor, path: Path, device: torch.device, repeats: int) -> list[Stage]:
    """Take an image file through all stages by the plain protocol, once to warm up and `repeats` times measured."""
    stages: dict[str, Stage] = {}

    def measured(name: str, work: Callable[[], Any]) -> Any:
        results = []
        wall, processor_time = measuring.call_seconds(lambda: results.append(work()), device, calls=1)
        stage = stages.setdefault(name, Stage(name, [], []))
        stage.seconds.append(wall)
        stage.cpu_seconds.append(processor_time)
        return results[0]

    _segment(predictor, path, lambda name, work: work())
    for _ in range(repeats):
        _segment(predictor, path, measured)
    return list(stages.values())


@torch.no_grad()
def _segment(predictor: Predictor, path: Path, stage: Callable[[str, Callable[[], Any]], Any]) -> None:
    """What `ccnet-hf segment` does with an image file, one stage after the other, each of them by way of `stage`."""
    config, processor = predictor.config, predictor.image_processor
    names = [config.id2label[label] for label in range(config.num_labels)]
    palette = complete_palette(processor.palette, len(names))
    image = stage("decode", lambda: read_image(path))
    inputs = stage("image processor", lambda: processor(image, return_tensors="pt", do_pad=False)["pixel_values"])
    logits = stage("network", lambda: predictor.runtime.logits(inputs))
    way = {
        "input_size": tuple(inputs.shape[-2:]),
        "target_size": (image.height, image.width),
        "letterbox": processor.active_letterbox_inverse,
    }
    labels = stage(
        "logits to labels",
        lambda: argmax_of_resized_logits(logits[0], config.align_corners, **way).cpu().numpy(),
    )
    drawn = stage("overlay", lambda: overlay(image, labels, palette, names))
    stage("overlay PNG", lambda: _compress(drawn, "overlay"))
    stage("label PNG", lambda: _compress(colorize(labels, palette), "labels"))


def _compress(image: Image.Image, name: str) -> int:
    """Compress an image as `ccnet-hf segment` does; returns the bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESSION[name])
    return buffer.tell()


def table(stages: list[Stage]) -> str:
    """Medians of processor time and by the clock, and each stage's fraction of all processor time."""
    lines = [("stage", "CPU ms", "least..most", "ms", "fraction")]
    total = sum(statistics.median(stage.cpu_seconds) for stage in stages)
    for stage in stages:
        median = statistics.median(stage.cpu_seconds)
        lines.append(
            (
                stage.name,
                f"{1e3 * median:.1f}",
                f"{1e3 * min(stage.cpu_seconds):.1f}..{1e3 * max(stage.cpu_seconds):.1f}",
                f"{1e3 * statistics.median(stage.seconds):.1f}",
                f"{median / total:.0%}" if total else "-",
            )
        )
    network = sum(statistics.median(stage.cpu_seconds) for stage in stages if stage.name == "network")
    wall = sum(statistics.median(stage.seconds) for stage in stages)
    lines.append(("all but the network", f"{1e3 * (total - network):.1f}", "", "", ""))
    lines.append(("all", f"{1e3 * total:.1f}", "", f"{1e3 * wall:.1f}", ""))
    return measuring.aligned(lines, left=1)
