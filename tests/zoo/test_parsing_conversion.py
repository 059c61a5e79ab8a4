"""Human parsers converted by the command: both sets of names, their constants, and what does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from schp_checkpoints import parsing_network, schp_state_dict, with_ce2p_names
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from ccnet_hf.recipes import CONVERTED_PARSERS, RECIPES, get_recipe
from ccnet_hf.zoo.authors import fold
from ccnet_hf.zoo.convert import main
from ccnet_hf.zoo.parsing import schp_key
from ccnet_hf.zoo.verify import main as verify


SIZES = {"hidden_size": 16, "decoder_channels": 16, "shortcut_channels": 8, "edge_channels": 8}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Every human parser of the zoo with a narrow network."""
    for name in (*CONVERTED_PARSERS, "ce2p-r101-lip"):
        recipe = get_recipe(name)
        backbone = {"depths": [1, 2, 2, 1], "hidden_sizes": [16, 32, 32, 64], "stem_size": 16}
        model = recipe.model | SIZES | {"backbone_config": recipe.model["backbone_config"] | backbone}
        monkeypatch.setitem(RECIPES, name, replace(recipe, model=model))


def convert(variant: str, content: dict, tmp_path, *arguments: str) -> int:
    torch.save(content, tmp_path / "file.pth")
    output = str(tmp_path / variant)
    return main(["--variant", variant, "--checkpoint", str(tmp_path / "file.pth"), "--output", output, *arguments])


@pytest.mark.parametrize("variant", CONVERTED_PARSERS)
@pytest.mark.parametrize("names", ["schp", "ce2p"])
def test_both_sets_of_names(variant, names, tmp_path):
    network = parsing_network(variant)
    file = schp_state_dict(network)
    assert convert(variant, with_ce2p_names(file) if names == "ce2p" else {"state_dict": file}, tmp_path) == 0
    assert verify([str(tmp_path / variant)]) == 0
    found = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / variant).state_dict()
    fold(file)
    for key, tensor in found.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, file[schp_key(key)], rtol=0, atol=0)


def test_what_each_file_reads_and_knows(tmp_path):
    """CE2P normalises blue, green and red with the constants of red, green and blue, and sees smaller images."""
    expected = {
        "schp-lip": (473, [0.485, 0.456, 0.406], 20, "Hat"),
        "schp-atr": (512, [0.485, 0.456, 0.406], 18, "Hat"),
        "schp-pascal": (512, [0.485, 0.456, 0.406], 7, "Head"),
        "ce2p-lip": (384, [0.406, 0.456, 0.485], 20, "Hat"),
        "ccnet-r101-lip": (473, [0.485, 0.456, 0.406], 20, "Hat"),
    }
    for variant, (side, mean, num_labels, name) in expected.items():
        assert convert(variant, schp_state_dict(parsing_network(variant)), tmp_path) == 0
        processor = AutoImageProcessor.from_pretrained(tmp_path / variant)
        assert dict(processor.size) == {"height": side, "width": side}
        assert list(processor.image_mean) == mean
        assert list(processor.image_std) == ([0.225, 0.224, 0.229] if variant == "ce2p-lip" else [0.229, 0.224, 0.225])
        assert processor.active_letterbox_inverse == "logits" and len(processor.palette) == num_labels
        config = json.loads((tmp_path / variant / "config.json").read_text())
        assert config["model_type"] == "ccnet_parsing" and config["id2label"]["1"] == name
        assert len(config["id2label"]) == num_labels and config["category_consistent_loss_weight"] == 0


def test_other_classes_and_rounds(tmp_path):
    network = parsing_network("ccnet-r101-lip", num_labels=3)
    file = schp_state_dict(network)
    file["context_encoding.cca.gamma"] = file["context_encoding.cca.gamma"].reshape(())
    assert convert("ccnet-r101-lip", file, tmp_path, "--num_labels", "3", "--recurrence", "1") == 0
    config = json.loads((tmp_path / "ccnet-r101-lip" / "config.json").read_text())
    assert config["recurrence"] == 1 and sorted(config["id2label"]) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("variant", "spoil", "arguments", "message"),
    [
        ("ce2p-r101-lip", None, (), "are of schp-lip, schp-atr, schp-pascal, ce2p-lip, ccnet-r101-lip"),
        ("schp-lip", None, ("--recurrence", "1"), "schp-lip has no attention, and so no recurrence"),
        ("schp-atr", None, (), "has 20 classes where 18 were expected"),
        ("ccnet-r101-lip", None, (), "missing: context_encoding.cca.gamma"),
        ("schp-lip", lambda file: file.pop("edge.conv4.bias"), (), "missing: edge.conv4.bias"),
        ("schp-lip", lambda file: file.update(extra=torch.ones(1)), (), "left over: extra"),
        ("schp-lip", lambda file: file["fushion.3.bias"].fill_(float("nan")), (), "fushion.3.bias holds NaN"),
    ],
)
def test_refusal(variant, spoil, arguments, message, tmp_path, capsys):
    file = schp_state_dict(parsing_network("schp-lip"))
    if spoil:
        spoil(file)
    assert convert(variant, file, tmp_path, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / variant).exists()


def test_nothing_is_published_for_download(tmp_path, capsys):
    assert main(["--variant", "schp-lip", "--output", str(tmp_path / "out")]) == 1
    assert "give its file with --checkpoint" in capsys.readouterr().err
