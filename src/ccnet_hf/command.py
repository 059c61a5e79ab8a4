"""How every command of the package meets its user: arguments from one dataclass, one line when something is wrong."""

import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from transformers import HfArgumentParser

from ccnet_hf.errors import InputError


Main = Callable[[Sequence[str], str], int]  # arguments, program's name -> exit status


class _Switch(BooleanOptionalAction):
    def format_usage(self) -> str:
        return self.option_strings[0]  # without the opposite, and every name in two spellings


class _OneLineParser(HfArgumentParser):
    """`HfArgumentParser` whose complaint is a single line; argparse would print the whole usage first.

    A field with `metadata={"positional": True}` becomes a positional argument. A switch has an opposite, such as
    `--no-compile`, and takes no value, so that it cannot swallow the positional argument after it. A `metavar` of
    several names takes as many values. Names are not abbreviated.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, **options)

    def add_argument(self, *names, positional: bool = False, **options):
        if positional:
            names = (names[0].lstrip("-"),)
            options.pop("required", None)
        if options.get("const") is True and options.get("default") is False:
            options = {"action": _Switch, "default": False, "help": options.get("help")}
        if isinstance(options.get("metavar"), tuple):
            options["nargs"] = len(options["metavar"])
        return super().add_argument(*names, **options)

    def error(self, message: str):
        self.exit(2, f"error: {message} (see --help)\n")


def run_command(
    arguments_class: type,
    command: Callable[[Any], None],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    epilog: str | None = None,
) -> int:
    """Parse `argv` into `arguments_class` and run `command` on it.

    Args:
        arguments_class: dataclass with one field per option, as `HfArgumentParser` reads them.
        command: the function that does the work. What the user can mend it raises as `InputError`.
        argv: command line without the program's name; `None` takes `sys.argv[1:]`.
        prog: program name shown by `--help`.
        epilog: what `--help` says after the options.

    Returns:
        Exit status: 0, or 1 after one line on stderr when the input was bad or a file or the network failed. A wrong
        argument exits with status 2. Anything else is a mistake of the package's and keeps its traceback.
    """
    parser = _OneLineParser(arguments_class, prog=prog, description=command.__doc__, epilog=epilog)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(args=argv)
    except ValueError as error:
        parser.error(str(error))
    try:
        command(arguments)
    except (InputError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def run_subcommand(
    subcommands: Mapping[str, tuple[str | Main, str]], argv: Sequence[str] | None = None, *, prog: str
) -> int:
    """Run the subcommand that `argv` begins with, importing nothing of the others.

    Args:
        subcommands: name -> what runs it, a function or a module with `main(argv, prog)`, and what it does.
        argv: command line without the program's name; `None` takes `sys.argv[1:]`.
        prog: program name shown by `--help`.

    Returns:
        The subcommand's exit status; 2 after one line on stderr where there is none.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv else None
    if name in ("-h", "--help"):
        width = max(map(len, subcommands))
        lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in subcommands.items()]
        print(
            f"usage: {prog} SUBCOMMAND ...", "", *lines, "", f"{prog} SUBCOMMAND --help lists its arguments", sep="\n"
        )
        return 0
    if name not in subcommands:
        problem = "no subcommand" if name is None else f"unknown subcommand {name!r}"
        print(f"error: {problem}, choose from {', '.join(subcommands)} (see --help)", file=sys.stderr)
        return 2
    run, _ = subcommands[name]
    if isinstance(run, str):
        run = import_module(run).main
    return run(argv[1:], f"{prog} {name}")
