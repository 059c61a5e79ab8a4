"""The options of every command that predicts."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import BaseImageProcessor

from ccnet_hf.deployment.optimize import optimize
from ccnet_hf.deployment.programs import ExportedRuntime, is_exported
from ccnet_hf.errors import InputError
from ccnet_hf.inference.instances import InstancePredictor
from ccnet_hf.inference.loading import Dtype, load_checkpoint, load_config, load_image_processor
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.runtime import Runtime
from ccnet_hf.inference.video import CCNetVideoSession
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation


@dataclass(kw_only=True)
class PredictorArguments:
    """Which checkpoint predicts, and how; `Predictor` says what the options mean."""

    model_name_or_path: str = field(
        metadata={
            "metavar": "MODEL",
            "help": "folder of a CCNet, also an exported one, or namespace/name on the Hub",
        }
    )
    mode: Literal["whole", "slide"] | None = field(
        default=None, metadata={"help": "whole image or sliding window; default: what the checkpoint says"}
    )
    crop_size: list[int] | None = field(
        default=None,
        metadata={"metavar": ("H", "W"), "help": "height and width of the window; default: what the checkpoint says"},
    )
    stride: list[int] | None = field(
        default=None,
        metadata={"metavar": ("H", "W"), "help": "vertical and horizontal distance of windows; default: as above"},
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "metavar": "RATIO",
            "help": "average over these ratios of the image as loaded; 1.0 alone: the checkpoint's test size",
        },
    )
    flip: bool = field(default=False, metadata={"help": "average over mirrored views too; sizes as for --scales"})
    average: Literal["probabilities", "logits"] | None = field(
        default=None,
        metadata={
            "help": "what --scales and --flip average; logits: over ratios of the network's input, as PaddleSeg "
            "tests; default: what the checkpoint says"
        },
    )
    dtype: Dtype = field(
        default="auto", metadata={"help": "auto: as the checkpoint is stored, but float32 on the CPU"}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, ...; auto: the fastest there is"})

    num_frames: int | None = field(
        default=None, metadata={"help": "frames of a clip, of a video checkpoint; default: what it says"}
    )
    runtime: Literal["auto", "eager", "compile", "openvino", "onnx"] | None = field(
        default=None,
        metadata={
            "help": "a faster form of the model, see ccnet_hf.optimize; eager needs nothing more, compile minutes "
            "at first, openvino and onnx the extra export; --dtype auto is float32 then; default: the model as it is"
        },
    )

    def load_predictor(self) -> Predictor | InstancePredictor | CCNetVideoSession:
        """Load the checkpoint, of a video model as its session, or a folder of `ccnet-hf export`. Raises InputError
        for what `load_checkpoint`, `optimize` and the predictors refuse, and for options that a checkpoint has nothing
        of."""
        model, processor = self._load()
        if isinstance(model, CCNetForVideoSegmentation):
            if self._has_views:
                raise InputError("a video checkpoint sees whole frames as they are: no --scales, --flip, --mode slide")
            return CCNetVideoSession(model, processor, self.num_frames)
        if self.num_frames is not None:
            raise InputError("--num_frames is for video checkpoints; this one sees every frame for itself")
        if isinstance(model.config, CCNetInstanceConfig):
            if self._has_views:
                raise InputError("instances are found in whole images: no --mode slide, --scales, --flip and windows")
            return InstancePredictor(model, processor)
        return Predictor(
            model,
            processor,
            mode=self.mode,
            crop_size=self.crop_size,
            stride=self.stride,
            scales=self.scales,
            flip=self.flip,
            average=self.average,
        )

    @property
    def _has_views(self) -> bool:
        """Whether an image is to be seen other than once and as a whole."""
        is_augmented = self.flip or list(self.scales) != [1.0] or self.average is not None
        return bool(is_augmented or self.mode == "slide" or self.crop_size or self.stride)

    def _load(self) -> tuple[nn.Module | Runtime, BaseImageProcessor]:
        if is_exported(self.model_name_or_path):
            if self.runtime is not None or self.device not in ("auto", "cpu"):
                raise InputError(f"{self.model_name_or_path} is exported: its runtime and device are set")
            config = load_config(self.model_name_or_path)
            dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
            runtime = ExportedRuntime(self.model_name_or_path, config, dtype)
            return runtime, load_image_processor(self.model_name_or_path, config)
        # What is rewritten is rounded once, from the numbers as they are stored.
        dtype = self.dtype if self.runtime is None else "float32"
        model, image_processor = load_checkpoint(self.model_name_or_path, dtype, self.device)
        if self.runtime is not None:
            if isinstance(model.config, CCNetInstanceConfig) or isinstance(model, CCNetForVideoSegmentation):
                raise InputError("--runtime is for semantic segmentation of images; this checkpoint runs as it is")
            model = optimize(model, self.runtime, None if self.dtype == "auto" else getattr(torch, self.dtype))
        return model, image_processor
