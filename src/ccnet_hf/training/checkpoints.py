"""The folders of a training, written atomically: which there are, what is in them, which are kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers.processing_utils import PushToHubMixin

from ccnet_hf.errors import InputError, reading
from ccnet_hf.files import (
    check_writable,
    exclusive,
    explained,
    publish_files,
    publish_folder,
    remove_folder,
    unfinished_name,
)
from ccnet_hf.inference.loading import load_config, load_model
from ccnet_hf.remote_code import CONFIG_FILE
from ccnet_hf.training.distributed import from_main_process, together
from ccnet_hf.training.training_state import TrainingState


BEST_CHECKPOINT = "checkpoint-best"
_SCORES_FILE = "scores.json"


@contextmanager
def sole_training(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Make sure that the folder can be written, and keep other trainings from writing in it meanwhile.

    Raises:
        InputError: another training is writing in it.
        OSError: it cannot be made or written.
    """
    with ExitStack() as stack:
        with together():
            if accelerator.is_main_process:
                check_writable(output_dir)
                stack.enter_context(exclusive(output_dir, inside=True))
        yield


@contextmanager
def whole_folder(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Let all processes write a folder together, so that a reader finds all of it or nothing.

    Yields:
        A new empty folder beside `folder`, which takes its name when the block ends without an error in any process,
        and is removed otherwise. In the block the processes must not wait for each other after one may have failed.

    Raises:
        OSError: the folder cannot be written, e.g. because the disk is full; in every process.
    """
    with _written_together(folder, unfinished_name(folder), accelerator, publish_folder) as unfinished:
        yield unfinished


@contextmanager
def whole_model(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """As [`whole_folder`], but the files join those that `folder` holds, each in place of its namesake."""

    def publish(unfinished: Path, folder: Path) -> None:
        publish_files(unfinished, folder, last=CONFIG_FILE)

    with _written_together(folder, unfinished_name(folder / "model"), accelerator, publish) as unfinished:
        yield unfinished


@contextmanager
def _written_together(
    folder: Path, unfinished: Path, accelerator: Accelerator, publish: Callable[[Path, Path], None]
) -> Iterator[Path]:
    unfinished = from_main_process(unfinished)
    try:
        with together(), explained(folder):
            if accelerator.is_main_process:
                unfinished.mkdir(parents=True)
        with together(), explained(folder):
            yield unfinished
        with together(), explained(folder):
            if accelerator.is_main_process:
                publish(unfinished, folder)
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders a training can resume from, fewest steps first."""
    found = {}
    for folder in output_dir.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / "state").is_dir():
            found[int(match[1])] = folder
    return [found[step] for step in sorted(found)]


def find_checkpoint(output_dir: Path, which: str | None) -> Path | None:
    """The folder to resume from: `"last"` is the one with most steps in `output_dir`, anything else is a path.

    Raises:
        InputError: it is not there; or checkpoints of another training, or later ones, would be mixed with this one's.
    """
    found = list_checkpoints(output_dir)
    if which == "last":
        if not found:
            raise InputError(f"{output_dir} holds no checkpoint to resume from")
        return found[-1]
    if which is not None and not (Path(which) / "state").is_dir():
        raise InputError(f"{which} is not a checkpoint of a training")
    if found and (which is None or not found[-1].samefile(which)):
        raise InputError(
            f"{output_dir} holds {found[-1].name} of an earlier training: resume that with --resume_from_checkpoint "
            "last, or name another --output_dir"
        )
    return None if which is None else Path(which)


def remove_old_checkpoints(output_dir: Path, limit: int) -> None:
    """Keep the `limit` checkpoints with most steps; each of the others disappears at once, never by halves."""
    for folder in list_checkpoints(output_dir)[:-limit]:
        remove_folder(folder)


class Checkpoints:
    """Writes the folders of one training: its checkpoints, its best model, and at the end its trained one.

    Every folder has the model, ready for `from_pretrained`. All processes call the methods together.

    Args:
        state: of the training.
        processor: of the model's inputs; is saved beside it.
        output_dir: where the folders are, and the trained model.
        limit: how many checkpoints are kept, the newest; 0 for all.
    """

    def __init__(self, state: TrainingState, processor: PushToHubMixin, output_dir: Path, limit: int = 0):
        self.state = state
        self.processor = processor
        self.output_dir = output_dir
        self.limit = limit

    @property
    def _best(self) -> Path:
        return self.output_dir / BEST_CHECKPOINT

    def save(self) -> None:
        """Write `checkpoint-<step>`, with all that resuming needs in `state/`."""
        weights = self.state.weights()
        folder = checkpoint_folder(self.output_dir, self.state.step)
        with whole_folder(folder, self.state.accelerator) as unfinished:
            self.state.save(unfinished / "state")
            self._save_model(unfinished, weights)
        if self.limit and self.state.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.limit)

    def save_best(self, scores: Mapping[str, float]) -> None:
        """Write the model, and its scores, in `checkpoint-best`."""
        weights = self.state.weights()
        with whole_folder(self._best, self.state.accelerator) as unfinished:
            self._save_model(unfinished, weights)
            if self.state.accelerator.is_main_process:
                write_scores(unfinished, self.state.step, scores)

    def check_best(self) -> bool:
        """Whether there is a best model that can be the result; raises InputError where one is damaged."""
        with together():
            if self._best.is_dir():
                self._read_best()
        return self._best.is_dir()

    def save_trained(self, best: bool) -> dict[str, float]:
        """Write the model in `output_dir`: as it is, or as the best one was, whose scores are returned."""
        scores = {}
        if best:
            weights, scores = self._read_best()
            self.state.trained_model.load_state_dict(weights)
        weights = self.state.weights()
        with whole_model(self.output_dir, self.state.accelerator) as unfinished:
            self._save_model(unfinished, weights)
        return scores

    def _read_best(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Weights of the best model, checked as those of any checkpoint that is loaded, and its scores."""
        _, scores = read_scores(self._best)
        load_config(str(self._best))
        model = self.state.trained_model
        return load_model(str(self._best), model.config, model.dtype).state_dict(), scores

    def _save_model(self, folder: Path, weights: Mapping[str, torch.Tensor] | None) -> None:
        if self.state.accelerator.is_main_process:
            self.state.trained_model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)


def write_scores(folder: Path, step: int, scores: Mapping[str, float]) -> None:
    """Write down, beside a model, the step it is of and its scores."""
    (folder / _SCORES_FILE).write_text(json.dumps({"step": step, **scores}, indent=1) + "\n", encoding="utf-8")


def read_scores(folder: Path) -> tuple[int, dict[str, float]]:
    """The step and the scores that [`write_scores`] wrote.

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    file = folder / _SCORES_FILE
    with reading(file):
        scores = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(scores, dict) or type(scores.get("step")) is not int or scores["step"] < 0:
            raise ValueError("it has no step")
        if wrong := [name for name, value in scores.items() if type(value) not in (int, float)]:
            raise ValueError(f"{wrong[0]} is no number")
    return scores.pop("step"), scores
