"""Measuring: the operator, whole models and the paper's efficiency table beside the plain way, and the data loader."""

import sys
from collections.abc import Sequence

from ccnet_hf.benchmark.data import DataArguments, benchmark_data
from ccnet_hf.benchmark.efficiency import MemoryArguments, benchmark_memory
from ccnet_hf.benchmark.model import ModelArguments, benchmark_model
from ccnet_hf.benchmark.op import OpArguments, benchmark_op
from ccnet_hf.command import run_command


# subcommand: (argument class, function)
SUBCOMMANDS = {
    "op": (OpArguments, benchmark_op),
    "model": (ModelArguments, benchmark_model),
    "memory": (MemoryArguments, benchmark_memory),
    "data": (DataArguments, benchmark_data),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in SUBCOMMANDS:
        return run_command(*SUBCOMMANDS[argv[0]], argv[1:], prog=f"benchmark.py {argv[0]}")
    lines = [f"  {name:<8}{function.__doc__.splitlines()[0]}" for name, (_, function) in SUBCOMMANDS.items()]
    usage = "\n".join(["usage: benchmark.py SUBCOMMAND ...", "", *lines])
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"error: choose a subcommand from {', '.join(SUBCOMMANDS)} (see --help)", file=sys.stderr)
    return 2
