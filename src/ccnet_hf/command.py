"""How every command of the package meets its user: arguments from dataclasses, one line when something is wrong.

A command that needs an extra of the package is named rather than imported: `--help` and wrong arguments are answered
without the extra, and running it says which one to install.
"""

import argparse
import io
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import wraps
from importlib import import_module
from types import MappingProxyType
from typing import Any, get_args, get_origin

from transformers import HfArgumentParser

from ccnet_hf.errors import InputError


Main = Callable[[Sequence[str], str], int]  # arguments, program's name -> exit status
Subcommands = Mapping[str, tuple[str | Main, str]]  # name -> what runs it, and what it does

# Modules that not every installation has -> the extra of this package that brings them, as in pyproject.toml.
EXTRAS = {
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "matplotlib": "train",
    "psutil": "train",
    "pyarrow": "train",
    "scipy": "train",
    "tensorboard": "train",
    "yaml": "train",
    "timm": "timm",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "av": "video",
    "gradio": "demo",
    "playwright": "dev",
    "openvino": "export",
    "nncf": "export",
    "pycocotools": "coco",
}

_INTERRUPTED = 128 + signal.SIGINT  # exit status, as shells have it
_LONGEST_COMPLAINT = 2000  # characters; some repeat an argument or a name, however long it is


class _Switch(argparse.BooleanOptionalAction):
    def __init__(self, *arguments, help: str | None = None, **options):
        super().__init__(*arguments, help=help, **options)
        self.help = help  # to which some versions of Python add the default

    def format_usage(self) -> str:
        return self.option_strings[0]  # without the opposite, and every name in two spellings


class _StoreTuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, tuple(values))


class _HelpFormatter(argparse.HelpFormatter):
    """Says the default of an option where it has one, and every name in one spelling."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        has_default = not (action.required or default is None or default is False or shown in ("", argparse.SUPPRESS))
        return f"{action.help} (default: {shown})".replace("%", "%%") if has_default else action.help or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or len(action.option_strings) < 2 or "_" not in action.option_strings[0]:
            return super()._format_action_invocation(action)
        action = copy(action)
        action.option_strings = [name for name in action.option_strings if "_" in name or "-" not in name[5:]]
        return super()._format_action_invocation(action)


class _OneLineParser(HfArgumentParser):
    """`HfArgumentParser` whose complaint is a single line; argparse would print the whole usage first.

    A field with `metadata={"positional": True}` becomes a positional argument. A switch has an opposite, such as
    `--no-compile`, and takes no value, so that it cannot swallow the positional argument after it. A tuple takes as
    many values as its type has, and so does a list with a `metavar` of several names. Names are not abbreviated.

    Args:
        classes: the dataclasses; one with an `_argument_group_name` is a group of the help.
        defaults: by name of a field, in place of those that the dataclasses have.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, classes: Sequence[type], defaults: Mapping[str, Any] | None = None, **options):
        self._other_defaults = dict(defaults or {})
        super().__init__(classes, allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def add_argument(self, *names, **options):
        return self._add(super().add_argument, names, options)

    def add_argument_group(self, *arguments, **options):
        group = super().add_argument_group(*arguments, **options)
        add = group.add_argument
        group.add_argument = lambda *names, **options: self._add(add, names, options)
        return group

    def _add(self, add: Callable[..., argparse.Action], names: Sequence[str], options: dict[str, Any]) -> Any:
        """Add an argument as a dataclass means it."""
        if options.get("action") == "store_false":
            return None  # the opposite that `HfArgumentParser` gives a switch which is on
        name, kind = names[0].lstrip("-"), options.get("type")
        if name in self._other_defaults:
            options["default"] = self._other_defaults[name]
            options.pop("required", None)
        if options.pop("positional", False):
            names = (name,)
            options.pop("required", None)
        if options.get("const") is True:
            options = {"action": _Switch, "default": options["default"], "help": options.get("help")}
        elif get_origin(kind) is tuple:
            kinds = get_args(kind)
            options |= {"type": kinds[0], "nargs": "*" if Ellipsis in kinds else len(kinds), "action": _StoreTuple}
        elif isinstance(options.get("metavar"), tuple):
            options["nargs"] = len(options["metavar"])
        return add(*names, **options)

    def error(self, message: str):
        self.exit(2, f"error: {_one_line(message, 400)} (see --help)\n")

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """The dataclasses that `argv` makes; exits with status 2 where it makes none."""
        try:
            # Never from a file `train.args` that happens to lie beside `train.py`.
            *parsed, rest = self.parse_args_into_dataclasses(
                args=list(argv), return_remaining_strings=True, look_for_args_file=False
            )
        except InputError as error:  # arguments that do not go together
            self.error(str(error))
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return tuple(parsed)


def parse_some(classes: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """The dataclasses that some of `argv` make, all of whose fields have defaults; what else stands there is not
    looked at. Exits as [`run_command`] does where one of their arguments is wrong."""
    parser = _OneLineParser(classes, add_help=False)
    *parsed, _ = parser.parse_args_into_dataclasses(
        args=list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    return tuple(parsed)


def _interruptible(run: Callable[..., int]) -> Callable[..., int]:
    """Answer Ctrl-C with one line and exit status 130; an error that it leads to passes."""

    @wraps(run)
    def running(*arguments, **options) -> int:
        try:
            return run(*arguments, **options)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return _INTERRUPTED

    return running


@_interruptible
def run_command(
    arguments_class: type | Sequence[type],
    command: Callable[..., None] | str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    epilog: str | None = None,
    description: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> int:
    """Parse `argv` into `arguments_class` and run `command` on it.

    Args:
        arguments_class: dataclass with one field per option, as `HfArgumentParser` reads them; or several, all of
            which `command` is called with. One with an `_argument_group_name` is a group of the help.
        command: the function that does the work, or `"module:function"`, imported when the arguments are understood.
            What the user can mend it raises as `InputError`.
        argv: command line without the program's name; `None` takes `sys.argv[1:]`.
        prog: program name shown by `--help`.
        epilog: what `--help` says after the options.
        description: what `--help` says before the options; by default the docstring of `command`.
        defaults: by name of a field, in place of those that the dataclasses have.

    Returns:
        Exit status: 0, or 1 after one line on stderr when the input was bad or a file or the network failed; 2 after
        one line that names the extra of this package that is not installed; 130 after one line when it was
        interrupted (Ctrl-C). A wrong argument exits with status 2.
        Anything else is a mistake of the package's and keeps its traceback.
    """
    if description is None and not isinstance(command, str):
        description = (command.__doc__ or "").partition("\n\n    Raises:")[0]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    classes = [arguments_class] if isinstance(arguments_class, type) else arguments_class
    parser = _OneLineParser(classes, defaults, prog=prog, description=description, epilog=epilog)
    arguments = parser.parse(sys.argv[1:] if argv is None else argv)
    try:
        _imported(command)(*arguments)
    except (InputError, OSError) as error:
        print(f"error: {_one_line(_without_number(error))}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        print(f"error: {module} is not installed: pip install 'ccnet-hf[{EXTRAS[module]}]'", file=sys.stderr)
        return 2
    return 0


def _without_number(error: InputError | OSError) -> str:
    """What an error says, for people: an `OSError` puts its number in front of it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {str(error.filename)!r}"


def _one_line(text: str, longest: int = _LONGEST_COMPLAINT) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]} ..."


def _imported(command: Callable[..., None] | str) -> Callable[..., None]:
    if not isinstance(command, str):
        return command
    module, _, function = command.partition(":")
    return getattr(import_module(module), function)


@_interruptible
def run_subcommand(
    subcommands: Subcommands,
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    unlisted: Subcommands = MappingProxyType({}),
) -> int:
    """Run the subcommand that `argv` begins with, importing nothing of the others.

    Args:
        subcommands: name -> what runs it, a function or a module with `main(argv, prog)`, and what it does.
        argv: command line without the program's name; `None` takes `sys.argv[1:]`.
        prog: program name shown by `--help`.
        unlisted: further subcommands, which `--help` leaves out.

    Returns:
        The subcommand's exit status; 2 after one line on stderr where there is none; 130 after one where its import
        was interrupted.
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
    known = {**subcommands, **unlisted}
    if name not in known:
        problem = "no subcommand" if name is None else f"unknown subcommand {name!r}"
        print(f"error: {problem}, choose from {', '.join(subcommands)} (see --help)", file=sys.stderr)
        return 2
    run, _ = known[name]
    if isinstance(run, str):
        run = import_module(run).main
    return run(argv[1:], f"{prog} {name}")
