"""Static int8 of ONNX programs by NNCF, as a quantizer of transformers' exporters.

ONNX Runtime's own static quantization, which transformers offers, lets the errors of quantized convolutions add up;
NNCF corrects the biases for them, without which a MobileNet's labels change.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import nncf
import onnx_ir
import torch
from transformers.exporters.configs import ExportFormat
from transformers.exporters.quantizers.base import CalibrationSet, ExportQuantizer
from transformers.exporters.utils import onnx_feed


class NNCFOnnxQuantizer(ExportQuantizer):
    """Quantizes convolutions, weights by channel; the matrix products of the attention keep their digits.

    Args:
        calibration_dataset: network inputs, `{"pixel_values": (1, 3, H, W) float32}` each; may be read more than once.
    """

    supported_formats: ClassVar = (ExportFormat.ONNX,)
    required_packages: ClassVar = ("onnx", "onnx_ir", "nncf")

    def __init__(self, calibration_dataset: Collection[dict[str, torch.Tensor]]):
        super().__init__(calibration_dataset)
        self.subset_size = len(calibration_dataset)

    def quantize(
        self, model: onnx_ir.Model, sample_inputs: dict[str, Any], export_format: ExportFormat
    ) -> onnx_ir.Model:
        """As every quantizer's of transformers' exporters: the quantized program, with its weights in memory."""
        names = [graph_input.name for graph_input in model.graph.inputs]
        inputs = CalibrationSet(self.calibration_dataset, sample_inputs, lambda sample: onnx_feed(names, sample))
        quantized = nncf.quantize(
            onnx_ir.to_proto(model),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=self.subset_size,
            ignored_scope=nncf.IgnoredScope(types=["MatMul"]),
        )
        return onnx_ir.from_proto(quantized)


__all__ = ["NNCFOnnxQuantizer"]
