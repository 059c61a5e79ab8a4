"""The door: what a reader raises is one sentence that names the file; mistakes of the package keep their traceback."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import ccnet_hf
from ccnet_hf.command import run_command
from ccnet_hf.errors import InputError, describe, enough_memory, is_out_of_memory, reading, using


@dataclass
class NoArguments:
    pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("size"), "file.json cannot be read: KeyError: 'size'"),
        (AttributeError("no items"), "file.json cannot be read: AttributeError: no items"),
        (TypeError("two\nlines"), "file.json cannot be read: two lines"),
        (RecursionError("maximum recursion depth"), "file.json cannot be read: it is nested too deeply"),
        (MemoryError(), "file.json cannot be read: it needs more memory than there is"),
        (PermissionError(13, "Permission denied"), "file.json cannot be read: permission denied"),
        (EOFError(), "file.json cannot be read: EOFError"),
        (InputError("other: wrong"), "other: wrong"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_exception_of_a_reader_names_the_file(error, told):
    with pytest.raises(InputError) as caught, reading("file.json"):
        raise error
    assert str(caught.value) == told
    assert caught.value is error or caught.value.__cause__ is error


def test_an_interruption_is_no_fault_of_the_file():
    with pytest.raises(KeyboardInterrupt), reading("file"):
        raise KeyboardInterrupt


def test_a_text_without_end_is_cut():
    assert len(describe(ValueError("x" * 100_000))) < 500


def test_values_of_a_user():
    with (
        pytest.raises(InputError, match=r"^config\.yaml: recurrence must be at least 0, got -1$"),
        using("config.yaml"),
    ):
        ccnet_hf.CCNetConfig(recurrence=-1)
    with pytest.raises(ZeroDivisionError), using("config.yaml"):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "error", [InputError("no\nsuch thing"), FileNotFoundError(2, "No such file"), ConnectionError("reset")]
)
def test_a_command_tells_what_a_user_can_mend_in_one_line(error, capsys):
    def command(arguments):
        raise error

    assert run_command(NoArguments, command, []) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1


def test_a_mistake_of_the_package_keeps_its_traceback():
    with pytest.raises(ValueError, match="broadcast"):
        run_command(NoArguments, lambda arguments: np.ones(3) + np.ones(4), [])


def test_an_interrupted_command_is_one_line(capsys):
    def command(error):
        def run(arguments):
            try:
                raise KeyboardInterrupt
            finally:
                if error is not None:
                    raise error

        return run

    assert run_command(NoArguments, command(None), []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    # What goes wrong on the way out is told.
    assert run_command(NoArguments, command(OSError("the disk fails")), []) == 1
    assert capsys.readouterr().err == "error: the disk fails\n"
    with pytest.raises(ZeroDivisionError):
        run_command(NoArguments, command(ZeroDivisionError()), [])


def test_it_is_public():
    assert ccnet_hf.InputError is InputError and issubclass(InputError, ValueError)


def test_a_missing_module_is_one_line_only_where_an_extra_brings_it(capsys):
    def command(name):
        def run(arguments):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run

    assert run_command(NoArguments, command("scipy.io"), []) == 2
    assert capsys.readouterr().err == "error: scipy is not installed: pip install 'ccnet-hf[train]'\n"
    with pytest.raises(ModuleNotFoundError, match=r"ccnet_hf\.nowhere"):
        run_command(NoArguments, command("ccnet_hf.nowhere"), [])


def test_a_command_may_be_named(capsys):
    with pytest.raises(SystemExit):
        run_command(NoArguments, "no_such_module:function", ["--help"])
    assert "usage" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError):
        run_command(NoArguments, "no_such_module:function", [])


def test_what_says_that_memory_is_out():
    for error in (
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("can't allocate memory: you"),
    ):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes"), ValueError("out of memory"), OSError(28, "No space left")):
        assert not is_out_of_memory(error)


def test_names_that_are_no_text_can_be_printed(tmp_path, monkeypatch):
    def command(arguments):
        print("image\udcff.png")

    with (tmp_path / "out.txt").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command(NoArguments, command, []) == 0
    assert (tmp_path / "out.txt").read_text() == "image\\udcff.png\n"


def test_what_needs_too_much_memory_is_one_sentence():
    message = "^a.png needs more memory than there is; --mode slide needs less$"
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        with pytest.raises(InputError, match=message), enough_memory("a.png", "--mode slide needs less"):
            raise error
    with pytest.raises(RuntimeError, match="something else"), enough_memory("a.png"):
        raise RuntimeError("something else")
