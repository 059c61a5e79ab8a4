"""How a training runs, beside the recipe that says what is trained. Nothing of the extra `train` is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ccnet_hf.limits import MAX_PROCESSES, MAX_SEED, check_range
from ccnet_hf.recipes import TrainingRecipe


_MAX_SHUFFLE_BUFFER = 1_000_000  # images held encoded; more would be hundreds of gigabytes


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a training runs; the fields' `help` says what each is.

    Raises:
        InputError: for a value outside what is allowed; the message names the field.
    """

    _argument_group_name = "run"

    output_dir: Path = field(metadata={"help": "folder for the model and its checkpoints"})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "images in one pass, the rest by accumulation; by default all of a step"}
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "modules that do not learn, e.g. model.backbone.stem"}
    )
    compile: bool = field(default=False, metadata={"help": "run the training steps through torch.compile"})
    seed: int = field(default=0, metadata={"help": "of every random draw"})
    deterministic: bool = field(
        default=False, metadata={"help": "deterministic algorithms on the GPU too, where there are any"}
    )
    checkpointing_steps: int | None = field(
        default=None,
        metadata={
            "help": "steps between two checkpoints, 0: none; by default as between evaluations, or a tenth of all"
        },
    )
    checkpoints_total_limit: int = field(
        default=2, metadata={"help": "how many checkpoints are kept, the newest; 0: all"}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "checkpoint folder, or 'last' for the newest in output_dir"}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "save the model with the best score in output_dir, instead of the last"}
    )
    logging_steps: int = field(default=10, metadata={"help": "steps between two lines of numbers"})
    shuffle_buffer_size: int = field(
        default=256, metadata={"help": "examples, held encoded in memory, that a stream's order is drawn from"}
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "processes that prepare batches"})

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "logging_steps"):
            check_range(name, getattr(self, name), 1, 10**9)
        for name in ("checkpointing_steps", "checkpoints_total_limit"):
            check_range(name, getattr(self, name), 0, 10**9)
        check_range("shuffle_buffer_size", self.shuffle_buffer_size, 1, _MAX_SHUFFLE_BUFFER)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_range("dataloader_num_workers", self.dataloader_num_workers, 0, MAX_PROCESSES)

    def images_per_pass(self, recipe: TrainingRecipe, num_processes: int) -> int:
        """How many images one of the processes takes at a time."""
        if self.per_device_train_batch_size is not None:
            return self.per_device_train_batch_size
        return recipe.batch_size // num_processes

    def checkpoint_interval(self, recipe: TrainingRecipe) -> int:
        """Steps between two checkpoints, 0 for none at all."""
        if self.checkpointing_steps is not None:
            return self.checkpointing_steps
        return recipe.eval_steps or math.ceil(recipe.max_train_steps / 10)
