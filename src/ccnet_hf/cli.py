"""`ccnet-hf SUBCOMMAND`: what the scripts do, for people who installed the package without the repository."""

from collections.abc import Sequence

from ccnet_hf.command import run_subcommand


# Each has the name of its script, where it has one.
SUBCOMMANDS = {
    "segment": ("ccnet_hf.inference.segment", "segment images"),
    "attend": ("ccnet_hf.inference.attend", "draw what a pixel of an image attends to"),
    "demo": ("ccnet_hf.demo", "open a web page that segments pictures and shows attention"),
    "train": ("ccnet_hf.training.training_arguments", "train a model"),
    "eval": ("ccnet_hf.evaluation.eval_arguments", "score a checkpoint on a dataset"),
    "export": ("ccnet_hf.exporting.export", "make a folder for ONNX Runtime, OpenVINO, PyTorch or a browser"),
    "prepare_dataset": ("ccnet_hf.data.preparation.prepare_arguments", "make a dataset of images and masks"),
    "convert_checkpoint": ("ccnet_hf.zoo.convert", "convert published checkpoints of mmsegmentation and others"),
    "push_to_hub": ("ccnet_hf.zoo.push", "publish checkpoints or a dataset on the Hub"),
    "benchmark": ("ccnet_hf.benchmark", "measure speed and memory"),
    "kernels": ("ccnet_hf.kernels.__main__", "compile the CUDA operator, say what is in use, lay it out for the Hub"),
    "zoo": ("ccnet_hf.zoo.__main__", "list the zoo, verify a converted folder, write it for mmsegmentation"),
}

# Experiments, which are evidence rather than tools.
EXPERIMENTS = {
    "far_marks": ("ccnet_hf.experiments.far_marks", "show what recurrence is for, on synthetic images"),
    "short_reach": ("ccnet_hf.experiments.short_reach", "ask if the head brings context that the backbone lacks"),
    "shapes": ("ccnet_hf.experiments.shapes", "show that instance segmentation learns, on generated pictures"),
    "receptive_field": ("ccnet_hf.experiments.receptive_field", "measure how far a checkpoint looks"),
}

# What version 0.1 called them.
FORMER_NAMES = {
    "prepare": SUBCOMMANDS["prepare_dataset"],
    "convert": SUBCOMMANDS["convert_checkpoint"],
    "push": SUBCOMMANDS["push_to_hub"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit status."""
    return run_subcommand(SUBCOMMANDS, argv, prog="ccnet-hf", unlisted=EXPERIMENTS | FORMER_NAMES)
