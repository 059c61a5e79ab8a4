"""`ccnet-hf SUBCOMMAND`."""

from importlib import import_module

import pytest

from ccnet_hf.cli import SUBCOMMANDS, main


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_a_help_text(name, capsys):
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit) as exit_:
        main([name, *{"zoo": ["list"], "benchmark": ["op"], "kernels": ["info"]}.get(name, []), "--help"])
    assert exit_.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert callable(import_module(SUBCOMMANDS[name][0]).main)


def test_help_lists_every_subcommand(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output and purpose in output for name, (_, purpose) in SUBCOMMANDS.items())


def test_without_a_subcommand_it_shows_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_unknown_subcommand(capsys):
    assert main(["segmnt"]) == 2
    assert capsys.readouterr().err == f"error: unknown subcommand 'segmnt', choose from {', '.join(SUBCOMMANDS)}\n"
