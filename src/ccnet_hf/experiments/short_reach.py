"""The options of the experiment on a backbone that sees little; `short_reach_training` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command


# By name, the rounds of criss-cross attention; `None` is the non-local block.
CONTEXTS: dict[str, int | None] = {"convolutions": 0, "1 round": 1, "2 rounds": 2, "non-local": None}


@dataclass
class ShortReachArguments:
    output_dir: str = field(metadata={"help": "folder for short_reach.md"})
    dataset_name: str = field(metadata={"help": "CamVid, as prepare_dataset.py makes it"})
    backbone_checkpoint: str | None = field(
        default=None, metadata={"help": "EfficientNet-Lite0 of ImageNet, in timm's names; default: random weights"}
    )
    contexts: list[str] = field(
        default_factory=lambda: list(CONTEXTS), metadata={"choices": list(CONTEXTS), "help": "what brings context"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "of the head's weights, crops and order"}
    )
    max_train_steps: int = field(default=400, metadata={"help": "steps of every training"})
    test_split: str = field(default="test", metadata={"help": "split that is scored"})


def main(argv: Sequence[str] | None = None, prog: str = "short_reach.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(
        ShortReachArguments,
        "ccnet_hf.experiments.short_reach_training:run_experiment",
        argv,
        prog,
        description="Train a network that sees little with and without attention on CamVid; hours on a CPU.",
    )
