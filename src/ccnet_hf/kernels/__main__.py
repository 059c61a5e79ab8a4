"""`python -m ccnet_hf.kernels build|info|hub`: compile the CUDA operator, say what is in use, publish it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ccnet_hf.command import run_command, run_subcommand
from ccnet_hf.files import check_writable

from .build import build
from .kernel_builder import write_project
from .load import info
from .wheel import build_wheel


@dataclass
class BuildArguments:
    arch: list[str] | None = field(
        default=None,
        metadata={"help": "compute capabilities, e.g. 8.0 9.0+PTX; by default the GPUs of this machine"},
    )
    output: str | None = field(
        default=None,
        metadata={"help": "folder for the library or the wheel; by default the cache, with --wheel this folder"},
    )
    wheel: bool = field(default=False, metadata={"help": "make a wheel of this package with the library in it"})


@dataclass
class InfoArguments:
    pass


@dataclass
class HubArguments:
    output: str = field(metadata={"help": "folder for the kernel-builder project; it must not exist or be empty"})
    repo_id: str | None = field(default=None, metadata={"help": "Hub repository to publish to, e.g. me/my-kernel"})


def run_build(arguments: BuildArguments) -> None:
    """Compile the CUDA kernels of criss-cross attention with nvcc (about a minute, once)."""
    if arguments.wheel:
        check_writable(arguments.output or ".")  # before the work, not after it
    library = build(arguments.arch, None if arguments.wheel else arguments.output)
    print(build_wheel(library, arguments.output or ".") if arguments.wheel else library)


def run_info(arguments: InfoArguments) -> None:
    """Say what runs criss-cross attention on CUDA tensors, and if it is not the compiled kernels, why."""
    found = info()
    print(f"on CUDA   {'the compiled kernels' if found.path == 'cuda' else 'PyTorch'}")
    if found.reason is not None:
        print(f"because   {found.reason}")
    if found.library is not None:
        print(f"library   {found.library}")
        print(f"code for  {' '.join(found.targets)}")
    print(f"PyTorch   {found.torch_version}")


def run_hub(arguments: HubArguments) -> None:
    """Lay the kernels out as a kernel-builder project, to be published for the `kernels` library."""
    print(write_project(arguments.output, arguments.repo_id))


SUBCOMMANDS = {
    "build": (
        partial(run_command, BuildArguments, run_build),
        "compile the kernels for this machine's GPUs, or into a wheel",
    ),
    "info": (
        partial(run_command, InfoArguments, run_info),
        "say what runs on CUDA, and if it is not the kernels, why",
    ),
    "hub": (
        partial(run_command, HubArguments, run_hub),
        "lay the kernels out for the kernels library of Hugging Face",
    ),
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.kernels") -> int:
    """Run one subcommand. Returns its exit status."""
    return run_subcommand(SUBCOMMANDS, argv, prog=prog)


if __name__ == "__main__":
    raise SystemExit(main())
