"""Networks whose batch norms do something, and a runtime of every kind that this machine can make."""

import pytest
import torch
from torch import nn

from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetFrozenBatchNorm


@pytest.fixture
def lively():
    """Gives batch norms statistics, factors and shifts that are not those of an untrained network."""

    def enliven(module: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        for child in module.modules():
            if isinstance(child, nn.BatchNorm2d | CCNetResNetFrozenBatchNorm):
                child.running_mean.normal_(0, 0.1)
                child.running_var.uniform_(0.5, 2)
                nn.init.normal_(child.weight, 1, 0.2)
                nn.init.normal_(child.bias, 0, 0.1)
        return module.eval()

    return enliven
