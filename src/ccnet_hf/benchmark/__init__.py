"""Measuring: the operator, whole models and what users would pick instead, growth with the image, the paper's
efficiency table, a picture's way from file to file, and the data loader."""

from collections.abc import Sequence
from functools import partial

from ccnet_hf.benchmark.data import DataArguments, benchmark_data
from ccnet_hf.benchmark.efficiency import MemoryArguments, benchmark_memory
from ccnet_hf.benchmark.end_to_end import EndToEndArguments, benchmark_end_to_end
from ccnet_hf.benchmark.growth import GrowthArguments, benchmark_growth
from ccnet_hf.benchmark.instances import InstanceArguments, benchmark_instances
from ccnet_hf.benchmark.model import ModelArguments, benchmark_model
from ccnet_hf.benchmark.op import OpArguments, benchmark_op
from ccnet_hf.command import run_command, run_subcommand


_COMMANDS = {
    "op": (OpArguments, benchmark_op),
    "model": (ModelArguments, benchmark_model),
    "growth": (GrowthArguments, benchmark_growth),
    "end_to_end": (EndToEndArguments, benchmark_end_to_end),
    "instances": (InstanceArguments, benchmark_instances),
    "memory": (MemoryArguments, benchmark_memory),
    "data": (DataArguments, benchmark_data),
}
SUBCOMMANDS = {
    name: (partial(run_command, arguments_class, command), command.__doc__.splitlines()[0])
    for name, (arguments_class, command) in _COMMANDS.items()
}


def main(argv: Sequence[str] | None = None, prog: str = "benchmark.py") -> int:
    """Run one subcommand. Returns its exit status."""
    return run_subcommand(SUBCOMMANDS, argv, prog=prog)
