"""The options of the experiment on generated pictures of instances; `shapes_training` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command


@dataclass
class ShapesArguments:
    output_dir: str = field(metadata={"help": "folder for the pictures, the model that is trained on and its result"})
    attention: bool = field(default=True, metadata={"help": "put criss-cross attention into the trunk"})
    max_train_steps: int = field(default=1500, metadata={"help": "steps of the training"})
    num_train: int = field(default=800, metadata={"help": "pictures that are trained on"})
    num_validation: int = field(default=100, metadata={"help": "pictures that are scored"})
    seed: int = field(default=0, metadata={"help": "of weights and order"})


def main(argv: Sequence[str] | None = None, prog: str = "shapes.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(
        ShapesArguments,
        "ccnet_hf.experiments.shapes_training:run_experiment",
        argv,
        prog,
        description="Train a small Mask R-CNN on generated pictures and score it; minutes on a CPU.",
    )
