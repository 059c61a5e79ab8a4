"""What computes logits: all that inference asks of a model, in whatever form it runs."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedConfig

from ccnet_hf.errors import InputError


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
    """A runtime as it is, and a model as its `ModelRuntime`.

    Raises:
        InputError: it is neither a runtime nor a model that gives an image class logits.
    """
    runtime = model
    if isinstance(model, nn.Module) and hasattr(model, "config") and not isinstance(model, Runtime):
        runtime = ModelRuntime(model)
    if not isinstance(runtime, Runtime) or not hasattr(runtime.config, "inference"):
        raise InputError(
            "`model` must be a model of semantic segmentation or of human parsing, as from_pretrained of its class "
            f"loads it, or a runtime, got {repr(model) if isinstance(model, str) else type(model).__name__}"
        )
    return runtime


def class_logits(runtime: Runtime, pixel_values: torch.Tensor) -> torch.Tensor:
    """`Runtime.logits`, where both can be images and their logits.

    Raises:
        InputError: `pixel_values` are not floating point, or a logit is NaN.
    """
    if not pixel_values.is_floating_point():
        raise InputError(
            f"pixel_values must be floating point, as the image processor gives them, got {pixel_values.dtype}"
        )
    return check_logits(runtime.logits(pixel_values))


def check_logits(logits: torch.Tensor) -> torch.Tensor:
    """The logits, or `InputError` where one is NaN, of which no class would be the right one."""
    if logits.isnan().any():
        raise InputError(
            "the model's logits hold NaN: its weights or its input do, or its numbers are too large for "
            f"{logits.dtype}"
        )
    return logits
