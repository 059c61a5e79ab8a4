"""`benchmark.py growth`: how time and memory grow with the image, of the network, its attention and the non-local
block, which attends from every position to all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
import transformers.utils.logging
from torch import nn
from tqdm import tqdm

from ccnet_hf import RecurrentCrissCrossAttention
from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.forms import NonLocalBlock
from ccnet_hf.benchmark.growth_points import Point, exponent, median_seconds, memory
from ccnet_hf.benchmark.networks import build_network, noise
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.files import atomic_file, check_file


_PROBE = 64  # pixels; of the image that tells how large the feature map is
_BLOCKS = ("network", "criss-cross attention", "non-local block")


@dataclass
class GrowthArguments:
    variant: str = field(
        default="ccnet-r50-cityscapes", metadata={"help": "recipe whose network is measured, with random weights"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    sizes: list[str] = field(
        default_factory=lambda: [f"{side}x{side}" for side in (256, 384, 512, 768, 1024, 1536, 2048)],
        metadata={"metavar": "HxW", "help": "heights and widths of the image; the attention sees the feature map"},
    )
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtype"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=3, metadata={"help": "measurements of each size; medians count"})
    output: str = field(default="growth.png", metadata={"metavar": "FILE", "help": "picture of the measurements"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


def benchmark_growth(arguments: GrowthArguments) -> None:
    """Draw how time and memory of inference grow with the image: the network, its attention, the non-local block."""
    from ccnet_hf.benchmark.growth_figure import draw_growth  # here, because it needs matplotlib

    transformers.utils.logging.disable_progress_bar()
    check_file(arguments.output)
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads)
    sizes = sorted((measuring.parse_size(size, "sizes") for size in arguments.sizes), key=math.prod)
    for size in sizes:
        measuring.check_elements("the stem's feature map", 16, *size)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    environment = measuring.environment(device)
    environment["network"] = f"{arguments.variant}, {arguments.dtype}"
    measuring.print_environment(environment)
    calls = _calls(arguments.variant, device, getattr(torch, arguments.dtype))
    points: list[Point] = []
    cases = [(name, size) for size in sizes for name in _BLOCKS]
    with torch.inference_mode():
        for name, size in tqdm(cases, desc="measuring", unit="case", disable=None, leave=False):
            try:
                points.append(_measure(name, size, calls, points, device, arguments.repeats))
            except InputError as error:
                print(f"{name} at {size[0]}x{size[1]}: left out: {error}")
            results = {"environment": environment, "points": [asdict(point) for point in points]}
            measuring.write_results(arguments.json, results)
    print(table(points))
    what = "processor time" if device.type == "cpu" else "time"
    with atomic_file(arguments.output) as unfinished:
        draw_growth({name: _of(points, name) for name in _BLOCKS if _of(points, name)}, what).save(unfinished, "PNG")
    print(f"\n{arguments.output} shows it")


def _calls(variant: str, device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """By name: from the size of an image to how much memory a call takes by its form alone, if it is known, and the
    call."""
    model = build_network(variant).to(device, dtype, memory_format=torch.channels_last)
    config = model.config
    with torch.inference_mode():
        probe = torch.zeros(1, 3, _PROBE, _PROBE, device=device, dtype=dtype)
        stride = _PROBE // model.base_model.backbone(probe).feature_maps[-1].shape[-1]
    channels = config.hidden_size, config.query_key_size or config.hidden_size // 8
    attention: nn.Module = RecurrentCrissCrossAttention(*channels, max(1, config.recurrence), gamma_init=0.3)
    attention.to(device, dtype)
    non_local = NonLocalBlock(*channels).to(device, dtype)
    nn.init.constant_(non_local.gamma, 0.3)

    def feature_map(size: Sequence[int]) -> torch.Tensor:
        shape = (1, channels[0], *(-(-side // stride) for side in size))
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(device, dtype)

    def of_network(size):
        pixel_values = noise((1, 3, *size)).to(device, dtype)
        return 0, lambda: model(pixel_values=pixel_values)

    def of_attention(size):
        hidden_state = feature_map(size).contiguous(memory_format=torch.channels_last)
        return 0, lambda: attention(hidden_state)

    def of_non_local(size):
        positions = math.prod(-(-side // stride) for side in size)
        # Scores and weights of all pairs; the rest is small beside them.
        pairs = 2 * positions**2 * torch.empty((), dtype=dtype).element_size()
        return pairs, lambda: non_local(feature_map(size))

    return dict(zip(_BLOCKS, (of_network, of_attention, of_non_local), strict=True))


def _measure(
    name: str,
    size: tuple[int, int],
    calls: dict[str, Callable],
    points: Sequence[Point],
    device: torch.device,
    repeats: int,
) -> Point:
    """Measure one block. Raises InputError where it takes more memory than there is, found out before it is taken:
    systems end a process rather than refuse it memory."""
    needed, call = calls[name](size)
    if earlier := _of(points, name):
        # At least as much as grows with the pixels.
        needed = max(needed, earlier[-1].bytes * math.prod(size) // earlier[-1].pixels)
    available = measuring.available_memory(device)
    if available is not None and needed > available:
        raise InputError(f"it takes {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} are free")
    with enough_memory("it"):
        peak = measuring.peak_memory(call, device)
        clock = 1 if device.type == "cpu" else 0
        seconds = [measuring.call_seconds(call, device)[clock] for _ in range(repeats)]
    return Point(name, *size, seconds, peak)


def _of(points: Sequence[Point], name: str) -> list[Point]:
    return [point for point in points if point.block == name]


def table(points: Sequence[Point]) -> str:
    """Times and memory by block and size, and the exponents."""
    lines = [("block", "image", "ms", "least..most", "MiB")]
    for name in _BLOCKS:
        of_block = _of(points, name)
        for point in of_block:
            milliseconds = [1e3 * seconds for seconds in point.seconds]
            lines.append(
                (
                    name,
                    f"{point.height}x{point.width}",
                    f"{statistics.median(milliseconds):.1f}",
                    f"{min(milliseconds):.1f}..{max(milliseconds):.1f}",
                    f"{point.bytes / 2**20:.1f}",
                )
            )
        powers = [exponent(of_block, value) for value in (median_seconds, memory)]
        shown = ["-" if power is None else f"{power:.2f}" for power in powers]
        lines.append((name, "power of the pixels", shown[0], "", shown[1]))
    return measuring.aligned(lines, left=2)
