"""`ccnet-hf SUBCOMMAND`: what the scripts do, for people who installed the package without the repository."""

import sys
from collections.abc import Sequence
from importlib import import_module


# subcommand: (module with `main(argv) -> int`, what it does)
SUBCOMMANDS = {
    "segment": ("ccnet_hf.inference.segment", "segment pictures"),
    "train": ("ccnet_hf.training.train", "train a model"),
    "eval": ("ccnet_hf.evaluation.evaluate", "score a checkpoint on a dataset"),
    "prepare": ("ccnet_hf.data.prepare", "turn a benchmark's archives into a dataset"),
    "convert": ("ccnet_hf.zoo.convert", "convert checkpoints of mmsegmentation or the authors"),
    "push": ("ccnet_hf.zoo.push", "publish checkpoints or a dataset on the Hub"),
    "far_marks": ("ccnet_hf.training.far_marks", "show what recurrence is for, on drawn pictures"),
    "receptive_field": ("ccnet_hf.evaluation.receptive_field", "measure how far a checkpoint looks"),
    "benchmark": ("ccnet_hf.benchmark", "measure speed and memory"),
    "kernels": ("ccnet_hf.kernels.__main__", "compile the CUDA operator, say what is in use, lay it out for the Hub"),
    "zoo": ("ccnet_hf.zoo.__main__", "list the model zoo, verify or export a converted folder"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand, importing nothing of the others. Returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, SUBCOMMANDS))
        lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in SUBCOMMANDS.items()]
        print(
            "usage: ccnet-hf SUBCOMMAND ...",
            "",
            *lines,
            "",
            "ccnet-hf SUBCOMMAND --help lists its arguments",
            sep="\n",
        )
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        print(f"error: unknown subcommand {argv[0]!r}, choose from {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return 2
    module, _ = SUBCOMMANDS[argv[0]]
    return import_module(module).main(argv[1:])
