"""Every rewrite equals what it rewrites, in float64."""

import copy

import pytest
import timm
import torch
from tiny_models import tiny_backbone_config, tiny_model
from torch import nn
from transformers import ConvNextConfig, TimmBackboneConfig

from ccnet_hf import RecurrentCrissCrossAttention
from ccnet_hf.deployment.fusion import (
    ActivatedConv2d,
    FusedAttention,
    fold_batch_norm,
    fold_batch_norms,
    fuse,
    join_activations,
    merge_convolutions,
    scale_convolution,
    split_convolution,
)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def convolution(channels=4, out_channels=6, bias=True, **geometry):
    torch.manual_seed(out_channels)
    return nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias, dtype=torch.float64, **geometry)


def lively(module):
    """Batch norms with statistics, factors and shifts that are not those of an untrained network."""
    torch.manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_()
            child.running_var.uniform_(0.3, 3)
            if child.affine:
                nn.init.normal_(child.weight, 1, 0.5)
                nn.init.normal_(child.bias)
    return module.eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 4, 9, 11, dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_batch_norm_equals(bias, affine, images):
    plain = convolution(bias=bias, stride=2)
    normalization = lively(nn.BatchNorm2d(6, affine=affine, eps=1e-3, dtype=torch.float64))
    with torch.no_grad():
        weight, shift = fold_batch_norm(plain, normalization)
        equal(nn.functional.conv2d(images, weight, shift, 2, 1), normalization(plain(images)))


def test_merge_convolutions_equals(images):
    parts = [convolution(out_channels=3), convolution(out_channels=5, bias=False)]
    with torch.no_grad():
        equal(merge_convolutions(parts)(images), torch.cat([part(images) for part in parts], dim=1))


def test_split_convolution_equals(images):
    whole = convolution(stride=2, dilation=2)
    parts = split_convolution(whole, [1, 3])
    with torch.no_grad():
        equal(sum(part(x) for part, x in zip(parts, images.split([1, 3], dim=1), strict=True)), whole(images))


def test_scale_convolution_equals(images):
    plain = convolution()
    with torch.no_grad():
        equal(scale_convolution(plain, torch.tensor([0.3], dtype=torch.float64))(images), 0.3 * plain(images))


@pytest.mark.parametrize("recurrence", [1, 3])
def test_fused_attention_equals(recurrence):
    torch.manual_seed(0)
    attention = RecurrentCrissCrossAttention(16, recurrence=recurrence).double()
    nn.init.constant_(attention.gamma, 0.7)
    hidden_state = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        equal(FusedAttention(attention)(hidden_state), attention(hidden_state)[0])


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_fold_batch_norms_equals_in_other_libraries(name):
    network = lively(timm.create_model(name, features_only=True).double())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    has_batch_norm = any(isinstance(child, nn.BatchNorm2d) for child in network.modules())
    with torch.no_grad():
        expected = network(images)
        assert (fold_batch_norms(network, images) > 0) == has_batch_norm
        equal(network(images), expected)
    assert not any(isinstance(child, nn.BatchNorm2d) for child in network.modules())


class Reused(nn.Module):
    """A convolution whose output is read by more than its batch norm."""

    def __init__(self):
        super().__init__()
        self.convolution, self.normalization = convolution(), nn.BatchNorm2d(6, dtype=torch.float64)

    def forward(self, images):
        output = self.convolution(images)
        return self.normalization(output) + output


class Twice(nn.Module):
    """A batch norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = convolution(), convolution()
        self.normalization = nn.BatchNorm2d(6, dtype=torch.float64)

    def forward(self, images):
        return self.normalization(self.first(images)) * self.normalization(self.second(images))


@pytest.mark.parametrize("network", [Reused, Twice])
def test_what_cannot_be_folded_stays(network, images):
    module = lively(network())
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        expected = module(images)
        assert fold_batch_norms(module, images) == 0
        assert torch.equal(module(images), expected)
    assert {name: tensor.tolist() for name, tensor in module.state_dict().items() if name in before} == {
        name: tensor.tolist() for name, tensor in before.items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recurrence": 0},
        {"recurrence": 3, "head_activation": "leaky_relu"},
        {"concat_input": False},
        {"category_consistent_loss_weight": 1.0, "query_key_size": 3},
        {"backbone_config": tiny_backbone_config(contract_dilation=False, pool_ceil_mode=True)},
        {"backbone_config": tiny_backbone_config(pooled_shortcut=True), "attention_activation": "leaky_relu"},
        {"head_activation": "leaky_relu", "attention_activation": "relu"},
        {"backbone_config": TimmBackboneConfig(backbone="mobilenetv2_050", out_indices=[3, 4], output_stride=8)},
        {"backbone_config": ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_indices=[3, 4])},
    ],
    ids=[
        "default",
        "no attention",
        "three rounds",
        "no concatenation",
        "category loss",
        "authors",
        "paddleseg",
        "two activations",
        "timm",
        "convnext",
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_fuse_equals(fields, size):
    model = lively(tiny_model(**fields))
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    fused = fuse(model)
    with torch.no_grad():
        equal(fused(images).logits, copy.deepcopy(model).double()(images).logits)
    assert fused.config is not model.config and fused.config.to_dict() == model.config.to_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def chain():
    torch.manual_seed(0)
    return nn.Sequential(convolution(), nn.ReLU6(), convolution(6), nn.Identity(), nn.ReLU(inplace=True)).eval()


def test_join_activations_equals_and_joins_what_follows(images):
    network = chain()
    with torch.no_grad():
        expected = network(images)
        assert join_activations(network, images, (nn.ReLU6, nn.ReLU)) == 2
        assert isinstance(network[0], ActivatedConv2d) and isinstance(network[2], ActivatedConv2d)
        assert not any(isinstance(network[place], nn.ReLU6 | nn.ReLU) for place in (1, 4))
        equal(network(images), expected)


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.activation = convolution(out_channels=4), nn.ReLU()

    def forward(self, images):
        output = self.convolution(images)
        return self.activation(output) + output


def test_an_activation_is_not_joined_where_something_else_reads_the_convolution(images):
    network = ReadTwice()
    assert join_activations(network, images, (nn.ReLU,)) == 0
    assert type(network.convolution) is nn.Conv2d and type(network.activation) is nn.ReLU
