"""Static int8 by NNCF that keeps the labels, as a quantizer of transformers' exporters.

NNCF corrects the biases of quantized convolutions, without which a MobileNet's labels change. Where the labels change
all the same, its accuracy control gives float32 back to the convolutions that do it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import nncf
import torch
from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters
from transformers.exporters.configs import ExportFormat
from transformers.exporters.quantizers.base import ExportQuantizer
from transformers.exporters.utils import onnx_feed, openvino_feed

from ccnet_hf.deployment.programs import Network


if TYPE_CHECKING:
    import numpy as np
    import onnx
    import openvino


_MOST_CHANGED = 0.01  # fraction of labels
_RANKING_PICTURES = 4  # those that change most, on which every convolution is tried in float32
_MOST_FLOAT = 8  # groups of convolutions that may stay in float32, so that int8 stays what it is for


class ConvolutionQuantizer(ExportQuantizer):
    """Quantizes convolutions, weights by channel; the matrix products of the attention keep their digits.

    Args:
        calibration_dataset: network inputs, `{"pixel_values": (1, 3, H, W) float32}` each; may be read more than once.
        network: in float32; its labels, at output stride, are those to keep. Without it all are quantized.
    """

    supported_formats: ClassVar = (ExportFormat.ONNX, ExportFormat.OPENVINO)
    required_packages: ClassVar = ("nncf",)

    def __init__(self, calibration_dataset: Collection[dict[str, torch.Tensor]], network: Network | None = None):
        super().__init__(calibration_dataset)
        self.network = network

    def quantize(self, model: Any, sample_inputs: dict[str, Any], export_format: ExportFormat) -> Any:
        """As every quantizer's of transformers' exporters: the quantized program, with its weights in memory."""
        if export_format == ExportFormat.OPENVINO:
            return self._quantize(model, lambda inputs: openvino_feed(model, inputs), _openvino_network)
        import onnx_ir

        names = [graph_input.name for graph_input in model.graph.inputs]
        feed = functools.partial(onnx_feed, names)
        return onnx_ir.from_proto(self._quantize(onnx_ir.to_proto(model), feed, _onnx_network))

    def _quantize(self, model: Any, feed: Callable[[dict], dict], load: Callable[[Any], Callable]) -> Any:
        pictures = _Feeds(self.calibration_dataset, feed)
        calibration = nncf.Dataset(pictures, lambda item: item[1])
        options = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": len(self.calibration_dataset),
            "ignored_scope": nncf.IgnoredScope(types=["MatMul"]),
        }
        if self.network is None:
            return nncf.quantize(model, calibration, **options)
        with torch.no_grad():
            labels = [self.network(inputs["pixel_values"]).argmax(1).numpy() for inputs in self.calibration_dataset]

        def equal_labels(program: Any, chosen: Iterable[tuple[int, dict]]) -> tuple[float, list[float]]:
            network = load(program)
            equal = [(network(inputs).argmax(1) == labels[number]).mean().item() for number, inputs in chosen]
            return sum(equal) / len(equal), equal

        return nncf.quantize_with_accuracy_control(
            model,
            calibration,
            nncf.Dataset(pictures),
            equal_labels,
            max_drop=_MOST_CHANGED,
            advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                max_num_iterations=_MOST_FLOAT, ranking_subset_size=_RANKING_PICTURES, num_ranking_workers=1
            ),
            **options,
        )


class _Feeds:
    """Every picture's number, and what a program is fed for it."""

    def __init__(self, dataset: Collection[dict[str, torch.Tensor]], feed: Callable[[dict], dict]):
        self.dataset, self.feed = dataset, feed

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        return ((number, self.feed(inputs)) for number, inputs in enumerate(self.dataset))


def _openvino_network(program: openvino.CompiledModel) -> Callable[[dict], np.ndarray]:
    return lambda inputs: program(inputs)[0]


def _onnx_network(program: onnx.ModelProto) -> Callable[[dict], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


__all__ = ["ConvolutionQuantizer"]
