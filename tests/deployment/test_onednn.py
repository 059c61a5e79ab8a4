"""Convolution and activation as one call of oneDNN equal the two."""

import pytest
import torch
from torch import nn

from ccnet_hf.deployment import onednn
from ccnet_hf.deployment.fusion import ActivatedConv2d


ACTIVATIONS = [
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 0.7),
    nn.LeakyReLU(0.2),
    nn.Hardswish(),
    nn.SiLU(),
]

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no such calls")


def test_every_activation_of_the_table_is_here():
    assert {type(activation) for activation in ACTIVATIONS} == onednn.ACTIVATIONS.keys()
    assert set(onednn.JOINED) == onednn.ACTIVATIONS.keys() - {nn.Identity}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_one_call_equals_two(activation, groups):
    torch.manual_seed(0)
    network = nn.Sequential(
        ActivatedConv2d(nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, groups=groups), activation),
        nn.Conv2d(16, 4, 1),
        nn.Conv2d(4, 4, 3, padding="same"),
    )
    images = 3 * torch.randn(2, 8, 13, 17).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(images)
        onednn.use_onednn_convolutions(network)
        found = network(images)
    assert [type(layer) for layer in network] == [onednn.FusedConv2d, onednn.FusedConv2d, nn.Conv2d]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize(("kernel_size", "kind"), [(3, onednn.FusedConv2d), (5, onednn.PhasedConv2d)])
def test_dilated_depthwise_convolutions_on_subgrids(kernel_size, kind, dilation):
    torch.manual_seed(0)
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(8, 8, kernel_size, padding=padding, dilation=dilation, groups=8)
    network = nn.Sequential(ActivatedConv2d(convolution, nn.ReLU6()), nn.Conv2d(8, 4, 1))
    images = 3 * torch.randn(2, 8, 13, 18).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(images)
        onednn.use_onednn_convolutions(network)
        found = network(images)
    assert type(network[0]) is kind
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
