"""Human parsers and video models published with their cards and their code."""

import json
from dataclasses import replace

import pytest
import torch
from schp_checkpoints import parsing_network, schp_state_dict

from ccnet_hf import CCNetForVideoSegmentation
from ccnet_hf.recipes import RECIPES, get_recipe
from ccnet_hf.zoo import convert_checkpoint
from ccnet_hf.zoo.push import main
from ccnet_hf.zoo.repository import model_repositories


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A converted parser and a video model, narrow ones."""
    backbone = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "stem_size": 8}
    for name in ("schp-pascal", "ccnet-r101-lip", "ccnet-r101-camvid-video"):
        recipe = get_recipe(name)
        sizes = {"hidden_size": 16, "backbone_config": recipe.model["backbone_config"] | backbone}
        monkeypatch.setitem(RECIPES, name, replace(recipe, model=recipe.model | sizes))
    torch.save(schp_state_dict(parsing_network("schp-pascal")), tmp_path / "file.pth")
    convert_checkpoint("schp-pascal", tmp_path / "file.pth", tmp_path / "schp-pascal")
    video = get_recipe("ccnet-r101-camvid-video")
    CCNetForVideoSegmentation(video.config()).save_pretrained(tmp_path / video.name)
    video.image_processor().save_pretrained(tmp_path / video.name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "processor", "code"),
    [
        ("schp-pascal", "preprocessor_config.json", "modeling_ccnet_parsing.py"),
        ("ccnet-r101-camvid-video", "video_preprocessor_config.json", "modeling_ccnet_video.py"),
    ],
)
def test_what_a_repository_holds(folder, name, processor, code):
    (repository,) = model_repositories(get_recipe(name), folder, "me")
    assert repository.repo_id == f"me/{name}"
    assert {"README.md", "config.json", processor, "model.safetensors", code} <= set(repository.files)
    assert b"This project publishes neither weights nor a score of it" in repository.files["README.md"]
    auto_map = json.loads(repository.files["config.json"])["auto_map"]
    for references in auto_map.values():
        for reference in references if isinstance(references, list) else [references]:
            assert f"{reference.partition('.')[0]}.py" in repository.files


def test_the_command_says_what_would_go_where(folder, capsys):
    arguments = ["--checkpoints", str(folder), "--namespace", "me", "--private", "--dry_run"]
    assert main(["--variant", "schp-pascal", *arguments]) == 0
    assert "model me/schp-pascal: " in capsys.readouterr().out
    (folder / "schp-pascal").rename(folder / "ccnet-r101-lip")
    assert main(["--variant", "ccnet-r101-lip", *arguments]) == 1
    assert "is not ccnet-r101-lip's: id2label is" in capsys.readouterr().err
