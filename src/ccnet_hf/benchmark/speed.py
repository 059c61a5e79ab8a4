"""What is measured of a form of a network, compared with the network as it is, and printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.runtimes import RUNTIME_FORMS
from ccnet_hf.deployment.optimize import backend_by_machine
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits


@dataclass
class Speed:
    """One row: a form of the network. Lists hold one entry per repeat."""

    form: str
    seconds: list[float]  # of a batch, by the clock
    cpu_seconds: list[float]  # of all threads
    # Peak of what PyTorch allocates during the call; of a program of another runtime, which allocates by itself, what
    # the process grew by at most in its first call. `None` where that cannot be told.
    bytes: int | None
    error: float | None = None  # largest of the logits, as a fraction of the largest logit of the float32 model
    changed: float | None = None  # fraction of the pixels whose label is another one than the float32 model's
    making_seconds: float | None = None  # of making the form and its first call, by the clock


def compare_logits(
    logits: torch.Tensor, expected: torch.Tensor, align_corners: bool, size: tuple[int, int]
) -> tuple[float, float]:
    """Largest error of logits (B, num_labels, h, w), as a fraction of the largest expected one, and the fraction of
    the pixels of images of `size`, (height, width), whose label differs."""
    logits, expected = logits.float(), expected.float()
    error = ((logits - expected).abs().max() / expected.abs().max()).item()
    different = [
        (argmax_of_resized_logits(mine, align_corners, size) != argmax_of_resized_logits(theirs, align_corners, size))
        .float()
        .mean()
        .item()
        for mine, theirs in zip(logits, expected, strict=True)
    ]
    return error, statistics.mean(different)


def auto_line(rows: Sequence[Speed], model: PreTrainedModel, dtype: torch.dtype, clock: str) -> str | None:
    """How what `backend="auto"` takes for a model without an example compares with the fastest backend of the same
    dtype, by a clock as in `table`; `None` where that was not measured."""
    times = {
        row.form: statistics.median(getattr(row, clock))
        for row in rows
        if row.form in RUNTIME_FORMS and not RUNTIME_FORMS[row.form].int8 and RUNTIME_FORMS[row.form].dtype is None
    }
    chosen = backend_by_machine(model, dtype)
    if chosen not in times:
        return None
    best = min(times, key=times.get)
    return (
        f"auto without an example takes {chosen}: {times[chosen] / times[best]:.2f} times the time of the fastest "
        f"backend of the same dtype, {best}"
    )


def table(rows: Sequence[Speed], batch_size: int, clock: str) -> str:
    """Medians with their range, images a second, speed against the first row, memory, error.

    Args:
        rows: the first one is what the others are compared with.
        batch_size: images in a batch.
        clock: what the speedup is of, `"cpu_seconds"`, which other work on the machine hardly changes, or `"seconds"`.
    """
    header = ("form", "ms", "least..most", "CPU ms", "least..most", "images/s", "speedup", "least..most", "MiB")
    lines = [(*header, "error", "labels changed", "s to make")]
    first = getattr(rows[0], clock)
    for row in rows:
        times = getattr(row, clock)
        ratios = [theirs / mine if mine else 0.0 for theirs, mine in zip(first, times, strict=True)]
        lines.append(
            (
                row.form,
                *_milliseconds(row.seconds),
                *_milliseconds(row.cpu_seconds),
                f"{batch_size / statistics.median(row.seconds):.2f}",
                f"{statistics.median(ratios):.2f}x",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
                "-" if row.bytes is None else f"{row.bytes / 2**20:.0f}",
                "-" if row.error is None else f"{row.error:.0e}",
                "-" if row.changed is None else f"{row.changed:.3%}",
                "-" if row.making_seconds is None else f"{row.making_seconds:.0f}",
            )
        )
    return measuring.aligned(lines, left=1)


def _milliseconds(seconds: Sequence[float]) -> tuple[str, str]:
    return f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * min(seconds):.1f}..{1e3 * max(seconds):.1f}"
