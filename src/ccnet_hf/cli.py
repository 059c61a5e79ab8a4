"""`ccnet-hf SUBCOMMAND`: what the scripts do, for people who installed the package without the repository."""

from collections.abc import Sequence

from ccnet_hf.command import run_subcommand


SUBCOMMANDS = {
    "segment": ("ccnet_hf.inference.segment", "segment images"),
    "train": ("ccnet_hf.training.training_arguments", "train a model"),
    "eval": ("ccnet_hf.evaluation.eval_arguments", "score a checkpoint on a dataset"),
    "prepare": ("ccnet_hf.data.preparation.prepare_arguments", "turn a benchmark's archives into a dataset"),
    "convert": ("ccnet_hf.zoo.convert", "convert checkpoints of mmsegmentation or the authors"),
    "push": ("ccnet_hf.zoo.push", "publish checkpoints or a dataset on the Hub"),
    "far_marks": ("ccnet_hf.experiments.far_marks", "show what recurrence is for, on synthetic images"),
    "receptive_field": ("ccnet_hf.experiments.receptive_field", "measure how far a checkpoint looks"),
    "benchmark": ("ccnet_hf.benchmark", "measure speed and memory"),
    "kernels": ("ccnet_hf.kernels.__main__", "compile the CUDA operator, say what is in use, lay it out for the Hub"),
    "zoo": ("ccnet_hf.zoo.__main__", "list the model zoo, verify or export a converted folder"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit status."""
    return run_subcommand(SUBCOMMANDS, argv, prog="ccnet-hf")
