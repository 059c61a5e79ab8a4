"""What computes logits: all that inference asks of a model, in whatever form it runs."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedConfig


@runtime_checkable
class Runtime(Protocol):
    """A network ready to compute. `Predictor` and `predict_logits` ask for nothing else.

    Attributes:
        config: of the model: classes, `align_corners` and `inference`.
    """

    config: PreTrainedConfig

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Class logits of a batch of network inputs.

        Args:
            pixel_values: (B, 3, H, W) normalised images, floating point, on any device; any H and W.

        Returns:
            (B, num_labels, h, w) logits, floating point, on the device of the computation; (h, w) is the output
            stride's part of (H, W).
        """


class ModelRuntime:
    """A PyTorch model as it is, such as `CCNetForSemanticSegmentation`, in eval mode.

    Args:
        model: its output has `logits`; of any dtype, on any device.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.config = model.config

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As `Runtime.logits`; the input is moved to the model's device and dtype."""
        parameters = list(self.model.parameters())
        # Weights that are offloaded have no device; Accelerate moves the input to where they will be.
        devices = [parameter.device for parameter in parameters if not parameter.is_meta]
        device = devices[0] if devices else pixel_values.device
        return self.model(pixel_values=pixel_values.to(device, parameters[0].dtype)).logits


def as_runtime(model: nn.Module | Runtime) -> Runtime:
    """A runtime as it is, and a model as its `ModelRuntime`."""
    return model if isinstance(model, Runtime) else ModelRuntime(model)
