"""What a training shows while it runs: the live line, the trackers, and a log that outlives it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from ccnet_hf.errors import reading
from ccnet_hf.files import explained, write_text
from ccnet_hf.training.distributed import together


LOG_FILE = "training_log.jsonl"

# What the live line calls some of the numbers; losses stand there without the word.
_SHORT_NAMES = {"auxiliary_loss": "aux", "images_per_second": "img/s", "data_wait": "wait", "memory_gb": "GB"}


class Progress:
    """Adds up what the steps report and shows it every few steps; all processes call it alike.

    Numbers by name: `lr`, the losses (means over the steps since the last line and over processes), `gamma` (of the
    criss-cross attention; `gamma_1`, `gamma_2`, ... where there are several), `images_per_second`, `data_wait`
    (fraction of the time spent waiting for batches), `memory_gb` (10^9 bytes: peak on the GPU, on the CPU what the
    process holds now).

    Args:
        accelerator: whose main process shows the line and whose trackers get the numbers.
        model: has the gammas.
        output_dir: folder of the log, a line of JSON for every line shown.
        batch_size: images per step over all processes.
        start: steps done before; what the log says beyond them is dropped.
        stop: the last step.
        every: steps between two lines.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        output_dir: Path,
        batch_size: int,
        start: int,
        stop: int,
        every: int,
    ):
        self.accelerator = accelerator
        self.gammas = find_gammas(model)
        self.batch_size = batch_size
        self.stop = stop
        self.every = every
        self.file = output_dir / LOG_FILE
        with together():
            if accelerator.is_main_process:
                _truncate(self.file, start)
        self.bar = tqdm(total=stop, initial=start, desc="train", disable=not accelerator.is_main_process)
        self._losses: dict[str, float] = {}
        self._restart()

    def _restart(self) -> None:
        self._losses = dict.fromkeys(self._losses, 0.0)
        self._steps = 0
        self._seconds = self._waited = 0.0
        self._resumed = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Around evaluation and saving, which do not count for the speed."""
        self._seconds += time.perf_counter() - self._resumed
        yield
        self._resumed = time.perf_counter()

    def advance(self, step: int, losses: dict[str, float], lr: float) -> None:
        """After a step: its number, counted from 1, its losses on this process, and its learning rate."""
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value
        self._steps += 1
        self.bar.update()
        if step % self.every == 0 or step == self.stop:
            numbers = self._numbers(lr)
            self.bar.set_postfix({_short(name): f"{value:.3g}" for name, value in numbers.items()})
            self.log(step, numbers)
            self._restart()

    def _numbers(self, lr: float) -> dict[str, float]:
        names = list(self._losses)
        means = torch.tensor([self._losses[name] / self._steps for name in names], device=self.accelerator.device)
        numbers = {"lr": lr, **dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))}
        numbers |= {name: float(gamma.detach().mean()) for name, gamma in self.gammas.items()}
        seconds = self._seconds + time.perf_counter() - self._resumed
        numbers["images_per_second"] = self._steps * self.batch_size / seconds
        numbers["data_wait"] = self._waited / seconds
        if self.accelerator.device.type == "cuda":
            numbers["memory_gb"] = torch.cuda.max_memory_allocated(self.accelerator.device) / 1e9
        else:
            numbers["memory_gb"] = psutil.Process().memory_info().rss / 1e9
        return numbers

    def scores(self, step: int, numbers: dict[str, float]) -> None:
        """After an evaluation."""
        self.log(step, numbers)
        if self.accelerator.is_main_process:
            self.bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))

    def note(self, text: str) -> None:
        """Show a line of text beside the live line."""
        if self.accelerator.is_main_process:
            self.bar.write(text, file=sys.stderr)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Hand numbers to the trackers and the log."""
        with explained(self.file.parent):  # trackers may write there too
            self.accelerator.log(numbers, step=step)
        if self.accelerator.is_main_process:
            with explained(self.file):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        """Leave the line as it is."""
        self.bar.close()


def read_log(file: Path) -> list[dict[str, float]]:
    """The rows of a log, in order; a last line cut short by a kill is left out.

    Raises:
        InputError: the file cannot be read, or a line is no row of numbers with a step; the message names it.
    """
    if not file.is_file():
        return []
    with reading(file):
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        with reading(f"{file}, line {number},"):
            rows.append(_row(json.loads(line)))
    return rows


def _row(row: Any) -> dict[str, float]:
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 1:
        raise ValueError("it has no step")
    if wrong := [name for name, value in row.items() if type(value) not in (int, float)]:
        raise ValueError(f"its {wrong[0]} is no number")
    return row


def find_gammas(model: nn.Module) -> dict[str, nn.Parameter]:
    """The gammas of a model's attentions by the names they have in the log; shared ones count once."""
    # Layers of other networks call the scale of their output gamma, too; an attention has a query beside it.
    found = {
        id(module.gamma): module.gamma
        for module in model.modules()
        if isinstance(getattr(module, "gamma", None), nn.Parameter) and hasattr(module, "query")
    }
    if len(found) == 1:
        return {"gamma": next(iter(found.values()))}
    return {f"gamma_{number}": gamma for number, gamma in enumerate(found.values(), start=1)}


def _short(name: str) -> str:
    return _SHORT_NAMES.get(name, name.removesuffix("_loss"))


def _truncate(file: Path, step: int) -> None:
    """Drop what the log says of later steps, and of evaluations at this one, which are done again."""
    if not file.is_file():
        return
    rows = read_log(file) if step else []
    rows = [row for row in rows if row["step"] < step or (row["step"] == step and "lr" in row)]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
