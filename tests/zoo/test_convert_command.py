"""`convert_checkpoint.py` without `--checkpoint`: the zoo's files, downloaded or from a folder, one or all of them."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_server import FileServer

from ccnet_hf import network
from ccnet_hf.recipes import RECIPES, get_recipe
from ccnet_hf.zoo.convert import main


@pytest.fixture
def published(small_variant, small_checkpoint, monkeypatch):
    """A server that publishes the checkpoint of `small_variant`."""
    content = io.BytesIO()
    torch.save({"state_dict": small_checkpoint}, content)
    name = f"ccnet_small_20200616_142517-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(network.time, "sleep", lambda seconds: None)
    with FileServer(content.getvalue()) as server:
        recipe = replace(get_recipe(small_variant), checkpoint_file=name, checkpoint_url=server.url(name))
        monkeypatch.setitem(RECIPES, small_variant, recipe)
        yield server


@pytest.fixture
def zoo_of_three(published, small_variant, monkeypatch) -> list[str]:
    """A zoo of nothing but three variants with that checkpoint."""
    small = RECIPES[small_variant]
    names = ["ccnet-a", "ccnet-b", "ccnet-c"]
    for name in [*RECIPES]:
        monkeypatch.delitem(RECIPES, name)
    for name in names:
        file = small.checkpoint_file.replace("small", name)
        recipe = replace(small, name=name, checkpoint_file=file, checkpoint_url=published.url(file))
        monkeypatch.setitem(RECIPES, name, recipe)
    return names


def names(folder: Path) -> list[str]:
    """What a folder holds, but for the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class TestOne:
    def test_downloaded_into_a_folder_and_taken_from_it(self, published, small_variant, tmp_path):
        for name in ("first", "second"):
            arguments = ["--variant", small_variant, "--checkpoints", str(tmp_path / "files")]
            assert main([*arguments, "--output", str(tmp_path / name)]) == 0
            assert (tmp_path / name / "config.json").is_file()
        assert names(tmp_path / "files") == [RECIPES[small_variant].checkpoint_file]
        assert len(published.ranges) == 1

    def test_into_torchs_cache(self, published, small_variant, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
        assert main(["--variant", small_variant, "--output", str(tmp_path / "folder")]) == 0
        assert names(tmp_path / "cache" / "checkpoints") == [RECIPES[small_variant].checkpoint_file]

    def test_cut(self, published, small_variant, tmp_path):
        published.faults = [("cut", 10_000), 503]
        arguments = ["--variant", small_variant, "--checkpoints", str(tmp_path / "files")]
        assert main([*arguments, "--output", str(tmp_path / "folder")]) == 0
        assert published.ranges == [None, "bytes=10000-", "bytes=10000-"]

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda server: setattr(server, "faults", [404]), "the server answers 404"),
            (lambda server: setattr(server, "faults", [500] * 9), "the server answers 500"),
            (lambda server: setattr(server, "content", b"<html>"), "not the file its name promises"),
        ],
    )
    def test_refusal(self, spoil, reason, published, small_variant, tmp_path, capsys):
        spoil(published)
        arguments = ["--variant", small_variant, "--checkpoints", str(tmp_path / "files")]
        assert main([*arguments, "--output", str(tmp_path / "folder")]) == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("error: ") and reason in errors[-1]
        assert names(tmp_path) == ["files"] and names(tmp_path / "files") == []


class TestAll:
    def test_all_and_again(self, zoo_of_three, published, tmp_path, capsys):
        arguments = ["--all", "--checkpoints", str(tmp_path / "files"), "--output", str(tmp_path / "zoo")]
        assert main(arguments) == 0
        assert names(tmp_path / "zoo") == zoo_of_three
        assert names(tmp_path / "files") == sorted(recipe.checkpoint_file for recipe in RECIPES.values())
        assert len(published.ranges) == 3
        assert main(arguments) == 0
        assert capsys.readouterr().out.count("is there already") == 3

    def test_a_bad_file_keeps_nothing_else_back(self, zoo_of_three, published, tmp_path, capsys):
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / RECIPES["ccnet-a"].checkpoint_file).write_bytes(b"bad")
        assert main(["--all", "--checkpoints", str(tmp_path / "files"), "--output", str(tmp_path / "zoo")]) == 1
        assert "1 of 3 variants were not converted: ccnet-a: " in capsys.readouterr().err.splitlines()[-1]
        assert names(tmp_path / "zoo") == ["ccnet-b", "ccnet-c"]

    def test_no_network_is_found_out_once(self, zoo_of_three, published, tmp_path):
        published.faults = [500] * 99
        assert main(["--all", "--checkpoints", str(tmp_path / "files"), "--output", str(tmp_path / "zoo")]) == 1
        assert len(published.ranges) == network.ATTEMPTS
        assert not (tmp_path / "zoo").exists()

    @pytest.mark.parametrize("options", [["--all"], ["--variant", "ccnet-a"]])
    def test_a_folder_that_cannot_be_written_is_found_before_the_download(
        self, options, zoo_of_three, published, tmp_path, capsys, full_disk
    ):
        (tmp_path / "file").touch()
        arguments = [*options, "--checkpoints", str(tmp_path / "files"), "--output"]
        assert main([*arguments, str(tmp_path / "file" / "zoo")]) == 1
        assert "cannot be written: not a directory" in capsys.readouterr().err
        with full_disk(1000):
            assert main([*arguments, str(tmp_path / "zoo")]) == 1
        assert "cannot be written: file too large" in capsys.readouterr().err
        assert published.ranges == [] and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--variant", "ccnet-r101-cityscapes"],
        ["--output", "folder"],
        ["--output", "folder", "--variant", "ccnet-r101-cityscapes", "--all"],
        ["--output", "folder", "--all", "--checkpoint", "file.pth"],
        ["--output", "folder", "--all", "--recurrence", "2"],
        ["--output", "folder", "--all", "--num_labels", "2"],
        ["--output", "folder", "--variant", "v", "--checkpoint", "file.pth", "--checkpoints", "files"],
        ["--output", "folder", "--variant", "v", "--recurrence", "two"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
