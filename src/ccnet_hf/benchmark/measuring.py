"""Time and memory of a call, the machine it ran on, and tables of both."""

import ctypes
import gc
import json
import math
import os
import platform
import re
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ccnet_hf import __version__, kernels
from ccnet_hf.errors import InputError
from ccnet_hf.files import check_file, write_text
from ccnet_hf.limits import MAX_BATCH_SIZE, MAX_PROCESSES, MAX_THREADS, check_range


# Calls measured as one where launching and measuring would be a large part of a single call.
_CUDA_CALLS = 20
_WARM_UP_SECONDS = 0.2

MAX_ELEMENTS = 2**31  # of a tensor that is measured: 8 GB as float32
_LARGEST = {
    "threads": MAX_THREADS,
    "num_workers": MAX_PROCESSES,
    "repeats": 1_000_000,
    "num_examples": 1_000_000,
    **dict.fromkeys(("batch_size", "batch_sizes"), MAX_BATCH_SIZE),
    **dict.fromkeys(("hidden_size", "query_key_size"), 65_536),
}


def find_device(name: str) -> torch.device:
    """The device of this name, made the current one; `InputError` if nothing can be measured on it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device takes cpu, cuda, cuda:1, ..., got {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"cannot measure on {name}: this machine has no such device, or PyTorch no use of it")
    if device.type == "cuda":
        index = device.index or 0
        if index >= torch.cuda.device_count():
            raise InputError(f"cannot measure on {name}: PyTorch finds {torch.cuda.device_count()} CUDA device(s)")
        # CUDA graphs capture on the current device, and Triton launches there, wherever the tensors are.
        torch.cuda.set_device(index)
    return device


def check_results(file: str | None) -> None:
    """Find out before the work that the file for the results, if one is asked for, cannot be written (`OSError`)."""
    if file is not None:
        check_file(file)


def write_results(file: str | None, results: Mapping[str, Any]) -> None:
    """Write what was measured as JSON, if a file is asked for."""
    if file is not None:
        write_text(file, json.dumps(results, indent=1) + "\n")


def check_counts(**numbers: int | None) -> None:
    """`InputError` naming the option whose number is less than 1, or more than can be measured."""
    for name, number in numbers.items():
        check_range(f"--{name}", number, 1, _LARGEST[name])


def check_elements(what: str, *sizes: int) -> None:
    """`InputError` if a tensor of these sizes is larger than can be measured."""
    elements = math.prod(sizes)
    if elements > MAX_ELEMENTS:
        raise InputError(f"{what} would have {elements:,} elements, {MAX_ELEMENTS:,} are allowed")


def parse_size(size: str, option: str) -> tuple[int, int]:
    """Height and width of `"97x97"`."""
    numbers = size.split("x")
    if len(numbers) != 2 or not all(re.fullmatch("0*[1-9][0-9]{,8}", number) for number in numbers):
        raise InputError(f"--{option} takes heights and widths like 97x97, got {reprlib.repr(size)}")
    return int(numbers[0]), int(numbers[1])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(calls: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Keep a GPU busy for a moment: left idle, as while something is compiled, it lowers its clock."""
    calls = list(calls)
    end = time.perf_counter() + _WARM_UP_SECONDS
    while device.type == "cuda" and time.perf_counter() < end:
        for call in calls:
            call()
        synchronize(device)


def call_seconds(call: Callable[[], object], device: torch.device, calls: int | None = None) -> tuple[float, float]:
    """Wall clock and processor time of one call; the latter, summed over threads, hardly sees other processes.

    On CUDA, unless `calls` is given, the mean of calls in a row, as in a network: the device works while the next call
    is prepared.
    """
    if calls is None:
        calls = _CUDA_CALLS if device.type == "cuda" else 1
    synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = call()
    synchronize(device)
    elapsed = (time.perf_counter() - start) / calls, (time.process_time() - cpu_start) / calls
    del result
    return elapsed


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """`call` as a CUDA graph: what the device alone needs, without the time that launching takes on the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> object:
        graph.replay()
        return result

    # The graph reads tensors at their addresses, and nothing but `call` may hold them.
    replay.call = call
    return replay


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes PyTorch's allocator has given out at one time during `call`, beyond what it had before.

    On a CPU the profiler reports every allocation, those inside operators included; what a matrix library takes from
    the system on its own is not in the figure.
    """
    if device.type == "cuda":
        # A first call also allocates what libraries keep for later ones, each thread's cuBLAS workspace above all.
        call()
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


@dataclass
class Growth:
    """What the process's resident memory grew by at most, in bytes; `None` where the system does not tell."""

    bytes: int | None = None


@contextmanager
def resident_growth() -> Iterator[Growth]:
    """Measure the memory of libraries that allocate by themselves, on Linux: what the body adds at most to the
    process's resident memory. What they keep for a next call is seen in the first one alone."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # memory that was freed but not given back would be taken unseen
    growth = Growth()
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        clear.write_text("5")  # sets the peak back to what is resident now
        before = _resident_bytes(status, "VmRSS")
    except OSError:
        yield growth
        return
    yield growth
    growth.bytes = max(0, _resident_bytes(status, "VmHWM") - before)


def _resident_bytes(status: Path, name: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, `None` where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def saved_memory(call: Callable[[], torch.Tensor], known: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `call`, every storage once, those of `known` not counted."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(storages.values())


def environment(device: torch.device) -> dict[str, str | int]:
    """What a figure depends on: date, device, threads, versions, and on CUDA what runs the operator."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    values = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ccnet_hf": __version__,
    }
    if device.type == "cuda":
        found = kernels.info()
        values["operator"] = "the compiled kernels" if found.path == "cuda" else f"PyTorch: {found.reason}"
    return values


def print_environment(values: dict[str, str | int]) -> None:
    """One line a value, and an empty one."""
    print(*(f"{name}: {value}" for name, value in values.items()), sep="\n", end="\n\n")


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Cells in columns, the first `left` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if index < left else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
