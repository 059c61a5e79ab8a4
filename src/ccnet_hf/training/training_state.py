"""What a training goes on from: tensors, random numbers and progress, saved whole and checked before they are used."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import explained
from ccnet_hf.training.deepspeed_state import DEEPSPEED_FOLDER, load_deepspeed, save_deepspeed
from ccnet_hf.training.distributed import gathered, shared_out, together
from ccnet_hf.training.optimization import fill_optimizer, optimizer_misfit, optimizer_tensors
from ccnet_hf.training.random_states import get_random_states, set_random_states
from ccnet_hf.training.state_files import StateReader, write_json, write_manifest, write_tensors


_PROGRESS_FILE, _MODEL_FILE, _OPTIMIZER_FILE = "progress.json", "model.safetensors", "optimizer.safetensors"
_AVERAGE_FILE = "average.safetensors"


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is, beside its tensors.

    Attributes:
        step: steps done.
        best_mean_iou: of the evaluations so far; `None` before the first.
        corrupt: messages about the examples that had to be replaced.
        kept: what a resumed training cannot change, by name.
        num_processes: that trained.
        scaler: of fp16's gradients, its state by name; empty without one.
        stream_positions: (epoch, examples taken of it) by process, of a stream where that is known.

    Raises:
        ValueError: a value is of another kind.
    """

    step: int
    best_mean_iou: float | None
    corrupt: list[str]
    kept: dict[str, Any]
    num_processes: int
    scaler: dict[str, float]
    stream_positions: list[tuple[int, int] | None] | None = None

    def __post_init__(self):
        best, positions = self.best_mean_iou, self.stream_positions
        right = {
            "step": _is_count(self.step),
            "best_mean_iou": best is None or _is_number(best),
            "corrupt": isinstance(self.corrupt, list) and all(isinstance(message, str) for message in self.corrupt),
            "kept": isinstance(self.kept, dict),
            "num_processes": _is_count(self.num_processes) and self.num_processes > 0,
            "scaler": isinstance(self.scaler, dict) and all(map(_is_number, self.scaler.values())),
            "stream_positions": positions is None or _are_places(positions, self.num_processes),
        }
        for name, is_right in right.items():
            if not is_right:
                raise ValueError(f"its {name} is {reprlib.repr(getattr(self, name))}")


class TrainingState:
    """What a training goes on from, so that it ends as if it had never stopped: weights, optimizer, moving average,
    random numbers, and how far it is.

    A state is the folder `state` of a checkpoint, in safetensors and JSON and with the SHA-256 of each file, so that
    resuming runs nothing that somebody has put there, and never goes on from a damaged file. The tensors are whole,
    however the processes share them out; DeepSpeed alone has files of its own.

    Args:
        accelerator: that prepared the others.
        model: that is trained.
        optimizer: of its parameters.
        average: moving average of the weights, if there is one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None = None,
    ):
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        self.average = average
        self._has_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED

    def save(self, folder: Path, progress: TrainingProgress) -> None:
        """Write the state into a new `folder`; all processes take part.

        Raises:
            OSError: it cannot be written; in every process.
        """
        tensors = {file: self._gathered(part) for file, part in self._tensors().items()}
        with together(), explained(folder):
            folder.mkdir(exist_ok=True)
            if self.accelerator.is_main_process:
                for file, part in tensors.items():
                    write_tensors(folder / file, part)
                write_json(folder / _PROGRESS_FILE, asdict(progress))
            write_json(folder / self._random_states_file, get_random_states(self.accelerator.device))
        if self._has_deepspeed:
            save_deepspeed(self.model, folder)
        with together(), explained(folder):
            if self.accelerator.is_main_process:
                write_manifest(folder)

    def resume(self, checkpoint: Path, kept: Mapping[str, Any]) -> TrainingProgress:
        """Check every file of a checkpoint's state, then take it over; all processes take part.

        Args:
            checkpoint: folder with `state` in it.
            kept: what must be as it was, by name.

        Returns:
            What was saved with it.

        Raises:
            InputError: a file is missing, damaged or no such file, and the message names it; or the state is of
                another model or other settings.
        """
        folder = checkpoint / "state"
        with together():
            reader = StateReader(folder)
            with reading(folder / _PROGRESS_FILE):
                progress = TrainingProgress(**dict(reader.json(_PROGRESS_FILE)))
            _check_kept(checkpoint, progress.kept, kept)
            tensors = self._read_tensors(checkpoint, reader, progress.step)
            random_states = self._read_random_states(checkpoint, reader, progress)
        if self._has_deepspeed:
            load_deepspeed(self.model, folder)
        else:
            self._take_over(tensors)
        with together():
            if progress.scaler and self.accelerator.scaler is not None:
                with reading(folder / _PROGRESS_FILE):
                    self.accelerator.scaler.load_state_dict(dict(progress.scaler))
            if random_states is not None:
                with reading(folder / self._random_states_file):
                    set_random_states(random_states, self.accelerator.device)
        return progress

    @property
    def _random_states_file(self) -> str:
        return f"random_states_{self.accelerator.process_index}.json"

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The tensors of this training by file and name, as this process has them."""
        if self._has_deepspeed:
            return {}
        model = self.accelerator.unwrap_model(self.model)
        tensors = {_MODEL_FILE: model.state_dict(), _OPTIMIZER_FILE: optimizer_tensors(model, self.optimizer)}
        return tensors if self.average is None else tensors | {_AVERAGE_FILE: self.average.state_dict()}

    def _gathered(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole tensors, on the CPU; only the main process keeps them."""
        whole = {}
        for name, tensor in tensors.items():
            tensor = gathered(tensor.detach())
            if self.accelerator.is_main_process:
                whole[name] = tensor.cpu()
        return whole

    def _read_tensors(self, checkpoint: Path, reader: StateReader, step: int) -> dict[str, dict[str, torch.Tensor]]:
        """The whole tensors of the state by file and name, which fit this training's."""
        ours = self._tensors()
        needed = list(ours) or [DEEPSPEED_FOLDER]
        if missing := [name for name in needed if not reader.has(name)]:
            raise InputError(f"{checkpoint} {_OTHER}: its state has no {missing[0]}")
        if self.average is None and reader.has(_AVERAGE_FILE):
            raise InputError(f"{checkpoint} {_OTHER}: its state has the moving average {_AVERAGE_FILE}")
        reader.verify(DEEPSPEED_FOLDER)
        theirs = {file: reader.tensors(file) for file in ours}
        for file, tensors in theirs.items():
            if file == _OPTIMIZER_FILE:
                model = self.accelerator.unwrap_model(self.model)
                misfit = optimizer_misfit(model, self.optimizer, tensors, step)
            else:
                misfit = _misfit(tensors, ours[file])
            if misfit:
                raise InputError(f"{checkpoint} {_OTHER}: in {reader.folder / file}, {misfit}")
        return theirs

    def _read_random_states(
        self, checkpoint: Path, reader: StateReader, progress: TrainingProgress
    ) -> dict[str, Any] | None:
        """The states of this process's generators; `None` where it is one of more processes than saved theirs."""
        num_processes = self.accelerator.num_processes
        if progress.num_processes != num_processes and self.accelerator.is_main_process:
            print(
                f"{checkpoint} was saved by {progress.num_processes} processes and goes on in {num_processes}: the "
                "random numbers, and so the weights, differ from those of a training without a break",
                file=sys.stderr,
            )
        if self.accelerator.process_index >= progress.num_processes:
            return None
        with reading(reader.folder / self._random_states_file):
            return dict(reader.json(self._random_states_file))

    def _take_over(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Put whole tensors in the place of this training's."""
        with torch.no_grad():
            for file, ours in self._tensors().items():
                if file != _OPTIMIZER_FILE:
                    for name, tensor in ours.items():
                        tensor.copy_(shared_out(tensors[file][name], tensor))
        fill_optimizer(self.accelerator.unwrap_model(self.model), self.optimizer, tensors[_OPTIMIZER_FILE])


_OTHER = "is of another model or other settings"


def _check_kept(checkpoint: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a state of a training that differs in what cannot change."""
    changed = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if changed:
        raise InputError(
            f"{checkpoint} was trained with {', '.join(f'{name} {theirs.get(name)}' for name in changed)}, this run "
            f"has {', '.join(f'{name} {ours.get(name)}' for name in changed)}: resume with the same, or start anew "
            "from that model (--model_name_or_path)"
        )


def _misfit(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> str | None:
    """What keeps tensors from taking the place of others, `None` if nothing does."""
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs:
            return f"{name} is missing"
        if name not in ours:
            return f"{name} belongs to nothing"
        kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (theirs[name], ours[name])]
        if kinds[0] != kinds[1]:
            return f"{name} is {kinds[0]}, not {kinds[1]}"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_places(values: Any, number: int) -> bool:
    """Whether they are so many pairs of an epoch and a number of examples, or `None` instead of one."""
    return (
        isinstance(values, list)
        and len(values) == number
        and all(
            value is None or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value)))
            for value in values
        )
    )
