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
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import explained
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.deepspeed_state import DEEPSPEED_FOLDER, load_deepspeed, save_deepspeed
from ccnet_hf.training.distributed import gathered, shared_out, together
from ccnet_hf.training.optimization import fill_optimizer, optimizer_misfit, optimizer_tensors
from ccnet_hf.training.random_states import get_random_states, set_random_states
from ccnet_hf.training.settings import TrainingSettings
from ccnet_hf.training.state_files import StateReader, write_json, write_manifest, write_tensors


_PROGRESS_FILE, _MODEL_FILE, _OPTIMIZER_FILE = "progress.json", "model.safetensors", "optimizer.safetensors"
_AVERAGE_FILE = "average.safetensors"

# fields of `TrainingProgress` by what they were called in states of earlier versions
_EARLIER_NAMES = {"best_mean_iou": "best_score", "kept": "fixed"}

# fixed settings that states of earlier versions do not have, and what those were trained with
_LATER_SETTINGS = {"decay_norms_and_biases": True, "layer_decay": 1.0}


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is, beside its tensors.

    Attributes:
        step: steps done.
        best_score: highest deciding score of the evaluations so far; `None` before the first.
        corrupt: messages about the examples that had to be replaced.
        fixed: what a resumed training cannot change, by name.
        num_processes: that trained.
        scaler: of fp16's gradients, its state by name; empty without one.
        stream_positions: (epoch, examples taken of it) by process, of a stream where they are known.

    Raises:
        ValueError: a value is of another kind.
    """

    step: int
    best_score: float | None
    corrupt: list[str]
    fixed: dict[str, Any]
    num_processes: int
    scaler: dict[str, float]
    stream_positions: list[tuple[int, int]] | None = None

    def __post_init__(self):
        best, positions = self.best_score, self.stream_positions
        right = {
            "step": _is_count(self.step),
            "best_score": best is None or _is_number(best),
            "corrupt": isinstance(self.corrupt, list) and all(isinstance(message, str) for message in self.corrupt),
            "fixed": isinstance(self.fixed, dict),
            "num_processes": _is_count(self.num_processes) and self.num_processes > 0,
            "scaler": isinstance(self.scaler, dict) and all(map(_is_number, self.scaler.values())),
            "stream_positions": positions is None or _are_positions(positions, self.num_processes),
        }
        for name, is_right in right.items():
            if not is_right:
                raise ValueError(f"its {name} is {reprlib.repr(getattr(self, name))}")

    @classmethod
    def from_json(cls, content: Any) -> TrainingProgress:
        """What a state says, one of an earlier version as well.

        Raises:
            ValueError, TypeError: it is something else.
        """
        values = {_EARLIER_NAMES.get(name, name): value for name, value in dict(content).items()}
        positions = values.get("stream_positions")
        if isinstance(positions, list) and None in positions:
            values["stream_positions"] = None  # some were known; a stream is found again only by all of them
        return cls(**values)


def fixed_settings(recipe: TrainingRecipe, settings: TrainingSettings, dataset: Dataset) -> dict[str, Any]:
    """What a resumed training cannot change: the examples of every step, and what the optimizer's state brings."""
    names = ("batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "backbone_learning_rate_factor")
    values = {name: getattr(recipe, name) for name in (*names, *_LATER_SETTINGS)}
    values |= {"seed": settings.seed, "streaming": dataset.streamed}
    if dataset.streamed:
        return values | {"shuffle_buffer_size": settings.shuffle_buffer_size}
    return values | {"number of examples": len(dataset)}


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
        fixed: what must be the same when it is resumed, by name, as JSON holds it.

    Attributes:
        step: steps done.
        best_score: highest deciding score of the evaluations so far; `None` before the first.
        corrupt: messages about the examples this process had to replace; after resuming, those of all processes.
        stream_position: where in a stream this process goes on, (epoch, examples taken of it); `None` where it is not
            known, as after another number of processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None = None,
        fixed: Mapping[str, Any] | None = None,
    ):
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        self.average = average
        self.fixed = dict(fixed or {})
        self.step = 0
        self.best_score: float | None = None
        self.corrupt: list[str] = []
        self.stream_position: tuple[int, int] | None = None
        self._has_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED

    @property
    def trained_model(self) -> PreTrainedModel:
        """The model as it would be saved now: the average where there is one."""
        return self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The weights as they are saved, from all processes, each of which may hold a part of them; `None` where the
        trained model has them itself."""
        return self.accelerator.get_state_dict(self.model) if self.average is None else None

    def progress(self) -> TrainingProgress:
        """How far the training is, in all processes, which ask for it together."""
        positions = gather_object([self.stream_position])
        scaler = self.accelerator.scaler
        return TrainingProgress(
            step=self.step,
            best_score=self.best_score,
            corrupt=self.all_corrupt(),
            fixed=self.fixed,
            num_processes=self.accelerator.num_processes,
            scaler={} if scaler is None else scaler.state_dict(),
            stream_positions=None if None in positions else positions,
        )

    def all_corrupt(self) -> list[str]:
        """Messages about the examples any process had to replace; all processes ask for them together."""
        return sorted(set(gather_object(self.corrupt)))

    def save(self, folder: Path) -> None:
        """Write the state into a new `folder`; all processes take part.

        Raises:
            OSError: it cannot be written; in every process.
        """
        progress = self.progress()
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

    def resume(self, checkpoint: Path) -> None:
        """Check every file of a checkpoint's state, then take it over; all processes take part.

        Args:
            checkpoint: folder with `state` in it.

        Raises:
            InputError: a file is missing, damaged or no such file, and the message names it; or the state is of
                another model or other settings.
        """
        folder = checkpoint / "state"
        with together():
            reader = StateReader(folder)
            with reading(folder / _PROGRESS_FILE):
                progress = TrainingProgress.from_json(reader.json(_PROGRESS_FILE))
            _check_fixed(checkpoint, progress.fixed, self.fixed)
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
        self.step, self.best_score, self.corrupt = progress.step, progress.best_score, progress.corrupt
        # Of another number of processes the positions are unknown, and the loader reads all that came before again.
        if progress.stream_positions and progress.num_processes == self.accelerator.num_processes:
            self.stream_position = tuple(progress.stream_positions[self.accelerator.process_index])

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


def _check_fixed(checkpoint: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a state of a training that differs in what cannot change."""
    theirs = {name: value for name, value in _LATER_SETTINGS.items() if name in ours} | dict(theirs)
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


def _are_positions(values: Any, number: int) -> bool:
    """Whether they are so many pairs of an epoch and a number of examples."""
    return (
        isinstance(values, list)
        and len(values) == number
        and all(isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value)) for value in values)
    )
