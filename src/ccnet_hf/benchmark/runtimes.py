"""The forms of a network that `ccnet_hf.optimize` makes, and int8, made for being measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ccnet_hf.deployment.machine import has_bfloat16, require_packages
from ccnet_hf.deployment.programs import Format, load_program, make_program
from ccnet_hf.deployment.runtimes import RUNTIMES, check_model, rewrite
from ccnet_hf.errors import InputError
from ccnet_hf.exporting.calibration import make_quantizer
from ccnet_hf.inference.runtime import Runtime


@dataclass(frozen=True)
class RuntimeForm:
    """A backend of `ccnet_hf.optimize`, with what is special about it.

    Attributes:
        backend: its name.
        dtype: of the computation; `None` is the one that is asked for.
        int8: whether convolutions are in int8, calibrated on what is measured.
    """

    backend: str
    dtype: torch.dtype | None = None
    int8: bool = False


RUNTIME_FORMS = {
    "eager": RuntimeForm("eager"),
    "compile": RuntimeForm("compile"),
    "onnx": RuntimeForm("onnx"),
    "openvino": RuntimeForm("openvino"),
    "cuda_graphs": RuntimeForm("cuda_graphs"),
    "eager-bfloat16": RuntimeForm("eager", torch.bfloat16),
    "openvino-bfloat16": RuntimeForm("openvino", torch.bfloat16),
    "onnx-int8": RuntimeForm("onnx", int8=True),
    "openvino-int8": RuntimeForm("openvino", int8=True),
    "openvino-int8-bfloat16": RuntimeForm("openvino", torch.bfloat16, int8=True),
}


class Int8Runtime:
    """A model with all its convolutions in int8 as what a `Predictor` asks for, on the CPU.

    Args:
        model: on the CPU, in eval mode.
        program_format: "onnx" or "openvino".
        batches: of network input (B, 3, H, W), which it is calibrated on.
        dtype: of what is not in int8.

    Raises:
        InputError: a package is not installed, another dtype than the runtime has, or another kind of model.
    """

    def __init__(
        self, model: PreTrainedModel, program_format: Format, batches: Sequence[torch.Tensor], dtype: torch.dtype
    ):
        check_model(model)
        if model.device.type != "cpu":
            raise InputError(f"int8 runs on the CPU; the model is on {model.device}")
        require_packages(program_format)
        self.config = model.config
        inputs = [{"pixel_values": batch} for batch in batches]
        program = make_program(rewrite(model, torch.float32), program_format, make_quantizer(inputs))
        self._network = load_program(program, dtype)

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As `Runtime.logits`."""
        return self._network(pixel_values.float())


def make_runtime(name: str, model: PreTrainedModel, dtype: torch.dtype, batches: Sequence[torch.Tensor]) -> Runtime:
    """Make one of `RUNTIME_FORMS`.

    Args:
        name: of the form.
        model: in float32 and eval mode; is left as it is.
        dtype: of the forms that have none of their own.
        batches: of network input; int8 is calibrated on them.

    Raises:
        InputError: this machine or installation cannot make or run it.
    """
    form = RUNTIME_FORMS[name]
    if form.int8:
        return Int8Runtime(model, form.backend, batches, form.dtype or torch.float32)
    if form.dtype == torch.bfloat16 and not has_bfloat16(model.device):
        raise InputError("this device has no instructions for bfloat16")
    check_model(model)
    return RUNTIMES[form.backend](model, form.dtype or dtype)
