"""Builds the host simulator from the kernels' sources and runs calls in it."""

import os
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch


SIMULATOR = Path(__file__).resolve().parent
SOURCES = SIMULATOR.parents[2] / "src" / "ccnet_hf" / "kernels" / "csrc"
DATA_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
FORWARD, FORWARD_RESIDUAL, BACKWARD = range(3)


class SimulationError(RuntimeError):
    """The simulator or the address sanitizer found a fault; the message is what it said."""


def find_compiler() -> str | None:
    return shutil.which("g++")


class Simulator:
    """The kernels in `sources`, compiled for the host.

    Args:
        folder: where to build.
        sources: folder with the kernels.
        sanitize: whether to find accesses out of bounds; some ten times slower.
        optimize: whether it is built to run often; otherwise it is built in half the time.
    """

    def __init__(self, folder: Path, sources: Path = SOURCES, sanitize: bool = False, optimize: bool = True):
        self.executable = folder / "simulate"
        flags = [
            "-std=c++17",
            "-O1" if optimize else "-O0",
            "-fno-strict-aliasing",
            "-U_FORTIFY_SOURCE",
            "-Wno-unknown-pragmas",
        ]
        flags += ["-DCRISS_CROSS_SIMULATOR", f"-I{SIMULATOR}", f"-I{sources}"]
        if sanitize:
            # Some kernels place an executable of changing address where GCC 12's sanitizer keeps its memory.
            flags += ["-fsanitize=address", "-g1", "-no-pie", "-fno-pie"]
        files = [sources / "forward.cu", sources / "backward.cu", SIMULATOR / "simulator.cpp", SIMULATOR / "main.cpp"]
        objects = [folder / f"{file.stem}.o" for file in files]
        commands = [
            [find_compiler(), *flags, "-x", "c++", "-c", str(file), "-o", str(object_file)]
            for file, object_file in zip(files, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        _run([find_compiler(), *flags, *map(str, objects), "-o", str(self.executable)])

    def forward(self, query, key, value, gamma=None, residual=None, output=None, seed=0):
        """(B, channels, H, W) tensors -> output, by default in the memory layout of `value`, logsumexp (B, H, W)."""
        if output is None:
            output = torch.full_like(value, torch.nan)
        logsumexp = value.new_full((value.shape[0], *value.shape[2:]), torch.nan, dtype=torch.float32)
        inputs = (query, key, value) if gamma is None else (query, key, value, gamma, residual)
        operation = FORWARD if gamma is None else FORWARD_RESIDUAL
        return self._call(operation, query, value, inputs, (output, logsumexp), seed, gamma)

    def backward(self, grad, query, key, value, output, logsumexp, seed=0):
        """The gradients of query, key and value, each in the memory layout of what it belongs to."""
        inputs = (grad, query, key, value, output, logsumexp)
        results = tuple(torch.full_like(tensor, torch.nan) for tensor in (query, key, value))
        return self._call(BACKWARD, query, value, inputs, results, seed)

    def _call(self, operation, query, value, inputs, results, seed, gamma=None):
        batch, channels, height, width = query.shape
        gamma_type = 0 if gamma is None else DATA_TYPES[gamma.dtype]
        numbers = (
            operation,
            DATA_TYPES[query.dtype],
            batch,
            height,
            width,
            channels,
            value.shape[1],
            seed,
            gamma_type,
        )
        request = struct.pack("=9q", *numbers) + b"".join(map(_pack, (*inputs, *results)))
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
        environment.pop("LD_PRELOAD", None)
        answer = subprocess.run([self.executable], input=request, capture_output=True, env=environment)
        if answer.returncode:
            raise SimulationError(f"exit {answer.returncode}: {answer.stderr.decode(errors='replace')[:2000]}")
        self.launches = struct.unpack_from("=q", answer.stdout)[0]
        offset = 8
        for result in results:
            storage = _storage(result)
            found = np.frombuffer(answer.stdout, np.uint8, storage.numel(), offset)
            storage.copy_(torch.from_numpy(found.copy()))
            offset += storage.numel()
        return results


def _storage(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _pack(tensor: torch.Tensor) -> bytes:
    """Storage with its size, the tensor's offset and its strides over batch, rows and columns."""
    strides = [tensor.stride(i) for i in (0, 2, 3)] if tensor.dim() == 4 else [0, 0, 0]
    storage = _storage(tensor).numpy().tobytes()
    return struct.pack("=5q", len(storage), tensor.storage_offset() * tensor.element_size(), *strides) + storage


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
