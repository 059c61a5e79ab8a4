"""`python -m ccnet_hf.kernels build|info|hub`: compile the CUDA operator, say what is in use, publish it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ccnet_hf.command import run_command

from .build import build
from .hub import write_project
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


# command: (its arguments, the function that does it, what it does)
COMMANDS = {
    "build": (BuildArguments, run_build, "compile the kernels for this machine's GPUs, or into a wheel"),
    "info": (InfoArguments, run_info, "say what runs on CUDA, and if it is not the kernels, why"),
    "hub": (HubArguments, run_hub, "lay the kernels out for the kernels library of Hugging Face"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: python -m ccnet_hf.kernels COMMAND ...", "", sep="\n")
        for name, (_, _, purpose) in COMMANDS.items():
            print(f"  {name:6} {purpose}")
        return 0
    if not argv or argv[0] not in COMMANDS:
        seen = f", not {argv[0]!r}" if argv else ""
        print(f"error: say what to do: {', '.join(COMMANDS)}{seen} (see --help)", file=sys.stderr)
        return 2
    arguments_class, command, _ = COMMANDS[argv[0]]
    return run_command(arguments_class, command, argv[1:], prog=f"python -m ccnet_hf.kernels {argv[0]}")


if __name__ == "__main__":
    raise SystemExit(main())
