"""`python -m ccnet_hf.zoo`: its help and its `list`."""

import json

import pytest

from ccnet_hf.recipes import zoo_recipes
from ccnet_hf.zoo.__main__ import SUBCOMMANDS, main


def test_json(capsys):
    assert main(["list", "--json"]) == 0
    variants = json.loads(capsys.readouterr().out)
    assert len({variant["name"] for variant in variants}) == len(zoo_recipes())
    (best,) = (variant for variant in variants if variant["short_name"] == "ccnet-r101-cityscapes")
    assert best["name"] == "ccnet-r101-cityscapes-769x769-80k"
    assert best["reported"]["mean_iou"] == 79.45
    assert best["inference"] == {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]}


def test_table(capsys):
    assert main(["list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(zoo_recipes())
    assert "reported mIoU" in header
    assert any(line.split()[:2] == ["ccnet-r50-ade20k-512x512-160k", "150"] and "42.08" in line for line in lines)


@pytest.mark.parametrize("arguments", [[], ["verify-all"], ["--json"]])
def test_wrong_command(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help(capsys):
    assert main(["--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(f"  {name} " in captured.out for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m ccnet_hf.zoo {name}")
