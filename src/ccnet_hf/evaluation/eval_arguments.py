"""The options of the command that scores a checkpoint; nothing of the extra `train` is imported until it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.inference.predictor_arguments import PredictorArguments


@dataclass(kw_only=True)
class EvalArguments(DatasetArguments, PredictorArguments):
    split: str = field(default="validation", metadata={"help": "split to score on"})
    label_column_name: str = field(
        default="label", metadata={"help": "column of label maps; '' for a split without labels, with --export_dir"}
    )
    name_prefix: str = field(default="", metadata={"help": "score only examples whose name starts so"})
    batch_size: int = field(default=1, metadata={"help": "images in one forward pass, where their sizes are equal"})
    output_json: str | None = field(default=None, metadata={"help": "file for scores and confusion matrix"})
    output_markdown: str | None = field(default=None, metadata={"help": "file for the table of classes"})
    export_dir: str | None = field(
        default=None, metadata={"help": "folder for label id PNG files as the Cityscapes test server takes them"}
    )


def main(argv: Sequence[str] | None = None, prog: str = "eval.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(
        EvalArguments,
        "ccnet_hf.evaluation.eval:evaluate",
        argv,
        prog,
        description="Score a CCNet on a split: mIoU and accuracies from one confusion matrix, at every image's size.",
    )
