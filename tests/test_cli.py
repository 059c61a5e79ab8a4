"""`ccnet-hf SUBCOMMAND`."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ccnet_hf.cli import SUBCOMMANDS, main


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_a_help_text(name, capsys):
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit) as exit_:
        main([name, *{"zoo": ["list"], "benchmark": ["op"], "kernels": ["info"]}.get(name, []), "--help"])
    assert exit_.value.code == 0
    assert f"usage: ccnet-hf {name}" in capsys.readouterr().out
    assert callable(import_module(SUBCOMMANDS[name][0]).main)


def test_help_lists_every_subcommand(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output and purpose in output for name, (_, purpose) in SUBCOMMANDS.items())


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ccnet_hf", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "usage: ccnet-hf SUBCOMMAND" in done.stdout


def test_every_script_that_only_calls_the_package_is_a_subcommand():
    scripts = Path(__file__).parents[1] / "scripts"
    texts = [file.read_text() for file in scripts.glob("*.py")]
    found = [re.search(r"^from (ccnet_hf[\w.]*) import main$", text, re.MULTILINE) for text in texts]
    modules = {match[1] for match in found if match}
    assert len(modules) > 5 and modules <= {module for module, _ in SUBCOMMANDS.values()}


@pytest.mark.parametrize(
    ("arguments", "problem"), [([], "no subcommand"), (["segmnt"], "unknown subcommand 'segmnt'")]
)
def test_without_a_subcommand_it_says_which_there_are(arguments, problem, capsys):
    assert main(arguments) == 2
    expected = f"error: {problem}, choose from {', '.join(SUBCOMMANDS)} (see --help)\n"
    assert capsys.readouterr().err == expected
