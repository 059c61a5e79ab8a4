"""Human parsers are rewritten as image models are: the same logits, the given model left alone."""

import copy

import pytest
import torch
from tiny_models import tiny_backbone_config, tiny_parsing_model
from torch import nn

import ccnet_hf
from ccnet_hf.deployment.fusion import FusedHead, FusedPyramidPooling, _mean_weights, fuse
from ccnet_hf.deployment.programs import make_program
from ccnet_hf.deployment.runtimes import rewrite
from ccnet_hf.deployment.winograd import WinogradConv2d


MODELS = {
    "rcca": {},
    "pyramid": {"context_module": "pyramid"},
    "leaky, corners aligned": {"head_activation": "leaky_relu", "align_corners": True, "recurrence": 1},
    "pyramid, corners aligned": {"context_module": "pyramid", "align_corners": True},
    "with what only the losses need": {"category_consistent_loss_weight": 1.0},
}
SHAPES = [(2, 3, 64, 96), (1, 3, 97, 65)]


def images(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_rewriting_equals_in_float64(name, lively):
    model = lively(tiny_parsing_model(**MODELS[name]))
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert isinstance(fused.context, FusedPyramidPooling if "pyramid" in name else FusedHead)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    assert fused.parsing_classifier is None and fused.edge_branch.classifier is None
    exact = copy.deepcopy(model).double()
    for shape in SHAPES:
        with torch.no_grad():
            found, expected = (network(images(shape, torch.float64)).logits for network in (fused, exact))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("length", [1, 2, 5, 6, 13, 30])
@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_means_as_products(length, number):
    signal = torch.randn(1, 1, length, dtype=torch.float64)
    expected = nn.functional.adaptive_avg_pool1d(signal, number)
    torch.testing.assert_close(signal @ _mean_weights(length, number, signal).T, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rcca", "pyramid"])
def test_eager_gives_the_model_s_logits(name, lively):
    wide = tiny_backbone_config(
        hidden_sizes=[16, 32, 64, 256],
        output_stride=16,
        contract_dilation=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    model = lively(tiny_parsing_model(**MODELS[name], backbone_config=wide))
    runtime = ccnet_hf.optimize(model, "eager")
    assert any(isinstance(layer, WinogradConv2d) for layer in runtime.network.modules())
    with torch.no_grad():
        expected = model(images(SHAPES[1])).logits
    assert (runtime.logits(images(SHAPES[1])) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert runtime.check(images(SHAPES[1])) == 0


@pytest.mark.parametrize("name", ["rcca", "pyramid"])
def test_bfloat16(name, lively):
    model = lively(tiny_parsing_model(**MODELS[name]))
    runtime = ccnet_hf.optimize(model, "eager", torch.bfloat16)
    assert {weight.dtype for weight in runtime.network.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected = model(images(SHAPES[0])).logits
    assert (runtime.logits(images(SHAPES[0])).float() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["rcca", "pyramid"])
def test_a_program_takes_images_of_any_size_and_number(name, lively):
    pytest.importorskip("transformers.exporters")
    pytest.importorskip("torch", minversion="2.11", reason="the exporters need PyTorch 2.11")
    model = lively(tiny_parsing_model(**MODELS[name]))
    program = make_program(rewrite(model, torch.float32), "torch")
    program.to("cpu")
    for shape in SHAPES:
        with torch.no_grad():
            expected = model(images(shape)).logits
        found = program(pixel_values=images(shape)).logits
        assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-4 * expected.abs().max()
