"""The command that measures this package side by side with the plain way to do the same, in one run."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from ccnet_hf import __version__, criss_cross_attention
from ccnet_hf.command import run_command


BATCH_SIZE, QUERY_KEY_SIZE, HIDDEN_SIZE = 1, 64, 512

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def einsum_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The yardstick: two-dimensional criss-cross attention as published PyTorch code writes it, on NCHW tensors.

    Scores of columns and rows by einsum, a pixel's own entry of its column masked with -inf, one softmax over both,
    two einsum products.

    Args:
        query: (B, D, H, W).
        key: (B, D, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    height = query.shape[2]
    own_place = query.new_full((height,), float("-inf")).diag()
    column = torch.einsum("bdhw,bdiw->bhwi", query, key) + own_place[:, None]
    row = torch.einsum("bdhw,bdhj->bhwj", query, key)
    weights = torch.cat([column, row], dim=-1).softmax(dim=-1)
    column, row = weights[..., :height], weights[..., height:]
    output = torch.einsum("bciw,bhwi->bchw", value, column)
    output += torch.einsum("bchj,bhwj->bchw", value, row)
    return output


@dataclass
class OpArguments:
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=9, metadata={"help": "measurements of each form, in turn"})
    sizes: list[str] = field(
        default_factory=lambda: ["64x64", "97x97", "64x128", "128x256"],
        metadata={"metavar": "HxW", "help": "heights and widths of the feature map"},
    )
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "bfloat16"],
        metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtypes to measure"},
    )
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass
class Comparison:
    """One row: the einsum form and the operator on the same values. Lists hold one entry per repeat."""

    size: str
    dtype: str
    passes: str  # "forward", or "both": forward and backward
    einsum_seconds: list[float]
    operator_seconds: list[float]
    einsum_cpu_seconds: list[float]
    operator_cpu_seconds: list[float]
    einsum_bytes: int  # peak of what is allocated during the call, inputs not counted, results counted
    operator_bytes: int

    @property
    def speedups(self) -> list[float]:
        return [
            ours and theirs / ours for theirs, ours in zip(self.einsum_seconds, self.operator_seconds, strict=True)
        ]

    @property
    def speedup(self) -> float:
        return statistics.median(self.einsum_seconds) / statistics.median(self.operator_seconds)

    @property
    def cpu_speedup(self) -> float:
        return statistics.median(self.einsum_cpu_seconds) / statistics.median(self.operator_cpu_seconds)

    @property
    def memory_share(self) -> float:
        return self.operator_bytes / self.einsum_bytes


def benchmark_op(arguments: OpArguments) -> None:
    """Measure time and memory of the operator on channels_last tensors against the einsum form on NCHW tensors."""
    try:
        device = torch.device(arguments.device)
    except RuntimeError as error:
        raise ValueError(f"--device takes cpu, cuda, cuda:1, ..., got {arguments.device!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(
            f"cannot measure on {arguments.device}: this machine has no such device, or PyTorch no use of it"
        )
    for name in ("repeats", "threads"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    sizes = [_parse_size(size) for size in arguments.sizes]
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    environment = _environment(device)
    print(*(f"{name}: {value}" for name, value in environment.items()), sep="\n", end="\n\n")

    cases = [(size, dtype, backward) for dtype in arguments.dtypes for size in sizes for backward in (False, True)]
    rows = []
    for size, dtype, backward in tqdm(cases, desc="measuring", unit="case", disable=None, leave=False):
        rows.append(compare(*size, getattr(torch, dtype), backward, device, arguments.repeats))
    print(table(rows))
    if arguments.json:
        results = {"environment": environment, "repeats": arguments.repeats, "rows": [asdict(row) for row in rows]}
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


def compare(
    height: int, width: int, dtype: torch.dtype, backward: bool, device: torch.device, repeats: int
) -> Comparison:
    """Measure both forms on the same random values, in turn, so that other load on the machine meets both."""
    generator = torch.Generator().manual_seed(0)
    channels = (QUERY_KEY_SIZE, QUERY_KEY_SIZE, HIDDEN_SIZE, HIDDEN_SIZE)
    tensors = [torch.randn(BATCH_SIZE, size, height, width, generator=generator) for size in channels]
    # Scores of unit variance: an almost one-hot softmax would be no typical case for bfloat16.
    tensors[0] *= QUERY_KEY_SIZE**-0.5
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    calls = (
        _call(einsum_attention, tensors, backward),
        _call(criss_cross_attention, [tensor.to(memory_format=torch.channels_last) for tensor in tensors], backward),
    )
    for call in calls:
        call()
    measured = [[_seconds(call, device) for call in calls] for _ in range(repeats)]
    (theirs, theirs_cpu), (ours, ours_cpu) = (zip(*times, strict=True) for times in zip(*measured, strict=True))
    return Comparison(
        f"{height}x{width}",
        str(dtype).removeprefix("torch."),
        "both" if backward else "forward",
        *map(list, (theirs, ours, theirs_cpu, ours_cpu)),
        *(peak_memory(call, device) for call in calls),
    )


def _call(attention: Attention, tensors: Sequence[torch.Tensor], backward: bool) -> Callable[[], object]:
    """A function that runs `attention` once; the last of the tensors is the gradient of its result."""
    *inputs, grad_output = tensors
    if not backward:
        return torch.inference_mode()(lambda: attention(*inputs))
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(attention(*inputs), inputs, grad_output)


def _seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall clock and processor time of one call; the latter, summed over threads, hardly sees other processes."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    wait()
    elapsed = time.perf_counter() - start, time.process_time() - cpu_start
    del result
    return elapsed


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes PyTorch's allocator has given out at one time during `call`, beyond what it had before.

    On a CPU the profiler reports every allocation, those inside operators included; what a matrix library takes from
    the system on its own is in neither form's figure.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's own log lines, about missing GPUs and the like.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        result = call()
    del result
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def table(rows: Sequence[Comparison]) -> str:
    """Medians, their ratio, the least and largest ratio of a pair, and memory, in aligned columns."""
    header = (
        *("dtype", "size", "passes", "einsum ms", "ours ms", "speedup", "least..most", "CPU time"),
        *("einsum MiB", "ours MiB", "share"),
    )
    lines = [header]
    for row in rows:
        times = (1e3 * statistics.median(seconds) for seconds in (row.einsum_seconds, row.operator_seconds))
        lines.append(
            (
                *(row.dtype, row.size, row.passes),
                *(f"{milliseconds:.1f}" for milliseconds in times),
                f"{row.speedup:.2f}x",
                f"{min(row.speedups):.2f}..{max(row.speedups):.2f}",
                f"{row.cpu_speedup:.2f}x",
                *(f"{size / 2**20:.1f}" for size in (row.einsum_bytes, row.operator_bytes)),
                f"{row.memory_share:.0%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if index < 3 else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _parse_size(size: str) -> tuple[int, int]:
    numbers = size.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"--sizes takes heights and widths like 97x97, got {size!r}")
    return int(numbers[0]), int(numbers[1])


def _environment(device: torch.device) -> dict[str, str | int]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ccnet_hf": __version__,
        "tensors": f"batch {BATCH_SIZE}, {HIDDEN_SIZE} channels of value, {QUERY_KEY_SIZE} of query and key",
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# subcommand: (argument class, function)
SUBCOMMANDS = {"op": (OpArguments, benchmark_op)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in SUBCOMMANDS:
        return run_command(*SUBCOMMANDS[argv[0]], argv[1:], prog=f"benchmark.py {argv[0]}")
    lines = [f"  {name}  {function.__doc__}" for name, (_, function) in SUBCOMMANDS.items()]
    usage = "\n".join(["usage: benchmark.py SUBCOMMAND ...", "", *lines])
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"error: choose a subcommand from {', '.join(SUBCOMMANDS)} (see --help)", file=sys.stderr)
    return 2
