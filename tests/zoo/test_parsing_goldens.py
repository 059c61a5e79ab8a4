"""Human parsing against SCHP's network, directly and as a converted folder gives it back."""

import json
from pathlib import Path

import pytest
import torch
from golden_files import assert_close, load_golden
from schp_checkpoints import parsing_network, schp_state_dict
from transformers import AutoModelForSemanticSegmentation

from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses, edge_target
from ccnet_hf.zoo import convert_checkpoint
from ccnet_hf.zoo.authors import fold
from ccnet_hf.zoo.parsing import schp_key


# golden file: variant
GOLDENS = {
    "ce2p_pyramid_c7_1x3x113x81": "schp-pascal",
    "ce2p_pyramid_c20_2x3x97x97": "schp-lip",
    "ce2p_rcca_c20_2x3x97x97": "ccnet-r101-lip",
}
LOSSES = {"fusion_loss": "loss_fusion", "parsing_loss": "loss_parsing", "edge_loss": "loss_edge"}
KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference"


@pytest.mark.parametrize("name", GOLDENS)
def test_in_float64(name):
    """Logits, edge target, losses and gradients, from the file's own tensors."""
    golden = load_golden(name)
    network = parsing_network(GOLDENS[name])
    tensors = {key: tensor.double() for key, tensor in schp_state_dict(network).items()}
    fold(tensors)
    counters = {key: torch.tensor(0) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    state_dict = counters | {key: tensors[schp_key(key)] for key in network.state_dict() if key not in counters}
    network.load_state_dict(state_dict, assign=True)

    pixel_values = torch.from_numpy(golden["pixel_values"]).double().flip(1).requires_grad_()  # BGR there
    labels = torch.from_numpy(golden["labels"]).long()
    outputs = network(pixel_values, labels=labels)
    for output, wanted in (("logits", "fusion"), ("parsing_logits", "parsing"), ("edge_logits", "edge")):
        assert_close(outputs[output].detach(), golden[wanted], 1e-9, wanted)
    assert (edge_target(labels).numpy() == golden["edge_target"]).all()
    assert 0 < golden["edge_target"].mean() < 1
    parts = ccnet_parsing_losses(network.config, labels, outputs.logits, outputs.parsing_logits, outputs.edge_logits)
    for part, wanted in LOSSES.items():
        assert_close(parts[part].detach(), golden[wanted], 1e-9, wanted)
    assert_close(outputs.loss.detach(), golden["loss"], 1e-9, "loss")
    outputs.loss.backward()
    assert_close(pixel_values.grad.flip(1), golden["grad_input"], 1e-9, "gradient of the input")
    sources = {schp_key(key): parameter for key, parameter in network.named_parameters()}
    norms = [key for key in golden if key.startswith("grad_norm:")]
    assert norms
    for key in norms:
        assert_close(sources[key.removeprefix("grad_norm:")].grad.norm(), golden[key], 1e-9, key)


@pytest.mark.parametrize("name", GOLDENS)
def test_after_conversion(name, tmp_path):
    """In float32, through the file, the converter and the Auto classes."""
    golden, variant = load_golden(name), GOLDENS[name]
    torch.save({"state_dict": schp_state_dict(parsing_network(variant)), "epoch": 149}, tmp_path / "schp.pth")
    convert_checkpoint(variant, tmp_path / "schp.pth", tmp_path / variant)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / variant)
    assert model.category_projection is None
    with torch.no_grad():
        labels = torch.from_numpy(golden["labels"]).long()
        outputs = model(torch.from_numpy(golden["pixel_values"]).flip(1), labels=labels)
    for output, wanted in (("logits", "fusion"), ("parsing_logits", "parsing"), ("edge_logits", "edge")):
        assert_close(outputs[output], golden[wanted], 2e-4, wanted)
    assert_close(outputs.loss, golden["loss"], 2e-4, "loss")


@pytest.mark.parametrize(
    ("variant", "module", "number", "parameters"),
    [("schp-lip", "pyramid", 603, 66_723_928), ("ccnet-r101-lip", "rcca", 600, 67_574_489)],
)
def test_names_and_shapes_of_a_whole_file(variant, module, number, parameters):
    network = parsing_network(variant)
    entries = {
        schp_key(key): list(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert len(entries) == number
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    file = KEYS / f"keys_ce2p_{module}.json"
    if file.is_file():  # reference material beside the checkout
        expected = dict(json.loads(file.read_text()))
        assert entries == {
            key: [20 if side == "num_classes" else side for side in shape] for key, shape in expected.items()
        }
