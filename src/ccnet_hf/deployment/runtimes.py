"""The forms that a model takes for inference. Each has what `ccnet_hf.inference.runtime.Runtime` asks for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import nn

from ccnet_hf.deployment import onednn
from ccnet_hf.deployment.fusion import Rewritable, example_image, fuse, join_activations
from ccnet_hf.deployment.machine import has_amx, has_bfloat16, require_packages
from ccnet_hf.deployment.phases import is_faster_by_phases
from ccnet_hf.deployment.programs import check_dtype, load_program, make_program
from ccnet_hf.deployment.winograd import use_winograd
from ccnet_hf.errors import InputError
from ccnet_hf.models.modeling_ccnet_parsing import CCNetForHumanParsing
from ccnet_hf.models.modeling_ccnet_resnet import CCNetResNetBackbone, CCNetResNetFrozenBatchNorm
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits


_MAX_CUDA_GRAPHS = 8  # sizes of input; every graph keeps the memory of its temporaries


class OptimizedRuntime(ABC):
    """A model in a form made for inference.

    Args:
        model: what it computes; kept for `check`, and left as it is.
        dtype: of the computation.

    Attributes:
        config: of the model.
        backend: the name of the form.
        dtype: of the computation.
        device: of the computation.
    """

    backend: str

    def __init__(self, model: Rewritable, dtype: torch.dtype):
        self.config, self.dtype, self.device = model.config, dtype, model.device
        self._model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}(backend={self.backend!r}, dtype={self.dtype}, device={str(self.device)!r})"

    @torch.no_grad()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Class logits of a batch of network inputs.

        Args:
            pixel_values: (B, 3, H, W) normalised images, floating point, on any device; any H and W.

        Returns:
            (B, num_labels, h, w) logits, floating point, on `device`; (h, w) is the output stride's part of (H, W).
        """
        return self._logits(pixel_values.to(self.device, torch.float32))

    @abstractmethod
    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As `logits`, of float32 input on `device`."""

    @torch.no_grad()
    def check(self, images: torch.Tensor | Iterable[torch.Tensor]) -> float:
        """Print and return the fraction of pixels whose label differs from the given model's in float32.

        Args:
            images: (B, 3, H, W) normalised images as the image processor gives them, or several such tensors.
        """
        reference = self._model
        if reference.training or reference.dtype != torch.float32:
            reference = copy.deepcopy(reference).float().eval()
        different = pixels = 0
        for batch in [images] if isinstance(images, torch.Tensor) else images:
            size = tuple(batch.shape[-2:])
            expected = reference(pixel_values=batch.to(self.device, torch.float32)).logits
            for mine, theirs in zip(self.logits(batch), expected, strict=True):
                labels = [
                    argmax_of_resized_logits(logits, self.config.align_corners, size, size)
                    for logits in (mine, theirs)
                ]
                different += (labels[0] != labels[1]).sum().item()
                pixels += labels[0].numel()
        if not pixels:
            raise InputError("check needs at least one image")
        print(f"{different / pixels:.4%} of {pixels} pixels get another label than in float32")
        return different / pixels


def check_model(model: nn.Module) -> None:
    """Raise InputError unless a model is one that `rewrite` knows: for semantic segmentation of images, or for human
    parsing."""
    if not isinstance(model, Rewritable) or isinstance(model, CCNetForVideoSegmentation):
        raise InputError(
            "this takes a CCNetForSemanticSegmentation or CCNetForHumanParsing, of images, "
            f"not a {type(model).__name__}"
        )


def rewrite(model: Rewritable, dtype: torch.dtype, winograd: bool = False, use_onednn: bool = False) -> nn.Module:
    """The network in fewer operations, see `fuse`, its numbers rounded to `dtype` once.

    Args:
        model: is left as it is.
        dtype: of the computation. A backbone of depthwise convolutions, which bfloat16 makes neither better nor
            faster, stays in float32, but for human parsing, where more than the head reads its feature maps.
        winograd: whether to save multiplications in the wide 3x3 convolutions.
        use_onednn: whether convolutions and what follows them, sum and activation, become one call.
    """
    fused = fuse(model)
    backbone = fused.base_model.backbone
    if use_onednn and not isinstance(backbone, CCNetResNetBackbone):
        # In float64 still, where equal is equal.
        join_activations(backbone, example_image(backbone.device), onednn.JOINED)
    stays = dtype == torch.bfloat16 and is_mobile(model) and not isinstance(model, CCNetForHumanParsing)
    others = [part for owner in {fused, fused.base_model} for part in owner.children()]
    others = [part for part in others if part not in (fused.base_model, backbone)]
    for part, part_dtype in ((backbone, torch.float32 if stays else dtype), *((part, dtype) for part in others)):
        if winograd:
            # The filters are transformed in float64, before anything is rounded.
            use_winograd(part, 4 if part_dtype == torch.float32 else 2, part_dtype)
        part.to(dtype=part_dtype, memory_format=torch.channels_last)
    if use_onednn and _takes_onednn(backbone):
        if isinstance(backbone, CCNetResNetBackbone):
            onednn.use_onednn(backbone)
        else:
            onednn.use_onednn_convolutions(backbone)
    return fused


def is_mobile(model: Rewritable) -> bool:
    """Whether a model's backbone is one of depthwise convolutions with batch norm, as MobileNets and EfficientNets
    are."""
    layers = list(model.base_model.backbone.modules())
    is_depthwise = any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in layers)
    return is_depthwise and any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def has_large_phases(model: Rewritable) -> bool:
    """Whether a dilated depthwise convolution of a model's backbone is larger than 3x3, as in EfficientNets."""
    layers = model.base_model.backbone.modules()
    return any(isinstance(layer, nn.Conv2d) and is_faster_by_phases(layer) for layer in layers)


def _takes_onednn(backbone: nn.Module) -> bool:
    attends = isinstance(backbone, CCNetResNetBackbone) and any(
        stage.attention is not None for stage in backbone.stages
    )
    return (
        backbone.device.type == "cpu"
        and onednn.is_available()
        and (backbone.dtype == torch.float32 or (backbone.dtype == torch.bfloat16 and has_bfloat16(backbone.device)))
        and not attends
        and not any(isinstance(layer, nn.BatchNorm2d | CCNetResNetFrozenBatchNorm) for layer in backbone.modules())
    )


def winograd_wins(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a quarter (float32) or less than half (bfloat16) of the multiplications is worth the transforms: on
    processors, but for bfloat16 on those whose products are faster than their memory."""
    return device.type == "cpu" and (dtype == torch.float32 or (dtype == torch.bfloat16 and not has_amx()))


class EagerRuntime(OptimizedRuntime):
    """The rewritten network, run by PyTorch."""

    backend = "eager"

    def __init__(self, model: Rewritable, dtype: torch.dtype):
        super().__init__(model, dtype)
        self.network = rewrite(model, dtype, winograd_wins(self.device, dtype), use_onednn=True)

    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixel_values).logits


class CompiledRuntime(OptimizedRuntime):
    """The rewritten network through `torch.compile`, which takes a minute or two at the first call, and again where
    sizes of input change for the first time."""

    backend = "compile"

    def __init__(self, model: Rewritable, dtype: torch.dtype):
        super().__init__(model, dtype)
        self.network = rewrite(model, dtype, winograd_wins(self.device, dtype))
        self.network.compile()

    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixel_values).logits


class CudaGraphRuntime(OptimizedRuntime):
    """The rewritten network on CUDA, recorded once for every shape of input and replayed without Python.

    Not run yet: no machine with a GPU was at hand.
    """

    backend = "cuda_graphs"

    def __init__(self, model: Rewritable, dtype: torch.dtype):
        super().__init__(model, dtype)
        if self.device.type != "cuda":
            raise InputError(f"the backend cuda_graphs needs a model on CUDA; this one is on {self.device}")
        self.network = rewrite(model, dtype)
        self._graphs: OrderedDict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = OrderedDict()

    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        shape = pixel_values.shape
        if shape not in self._graphs:
            if len(self._graphs) == _MAX_CUDA_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[shape] = self._record(pixel_values)
        self._graphs.move_to_end(shape)
        graph, graph_input, graph_output = self._graphs[shape]
        graph_input.copy_(pixel_values)
        graph.replay()
        return graph_output.clone()  # the next replay writes over it

    def _record(self, pixel_values: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self.device):
            graph_input = pixel_values.clone()
            # Libraries choose algorithms and take workspaces in the first calls, which a graph must not record.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.network(pixel_values=graph_input)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                graph_output = self.network(pixel_values=graph_input).logits
        return graph, graph_input, graph_output


class ProgramRuntime(OptimizedRuntime):
    """The rewritten network as a program of another runtime, on the CPU. It takes a minute to make."""

    def __init__(self, model: Rewritable, dtype: torch.dtype):
        super().__init__(model, dtype)
        if self.device.type != "cpu":
            raise InputError(f"the backend {self.backend} runs on the CPU; the model is on {self.device}")
        check_dtype(self.backend, self.dtype)
        require_packages(self.backend)
        # Half precision is a matter of the runtime, whose program stays in float32.
        self._network = load_program(make_program(rewrite(model, torch.float32), self.backend), dtype)

    def _logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._network(pixel_values.float())


class OnnxRuntime(ProgramRuntime):
    """The rewritten network in ONNX Runtime."""

    backend = "onnx"


class OpenVINORuntime(ProgramRuntime):
    """The rewritten network in OpenVINO."""

    backend = "openvino"


RUNTIMES: dict[str, type[OptimizedRuntime]] = {
    runtime.backend: runtime
    for runtime in (EagerRuntime, CompiledRuntime, OnnxRuntime, OpenVINORuntime, CudaGraphRuntime)
}
