"""The options of every command that predicts."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import BaseImageProcessor, PreTrainedModel

from ccnet_hf.inference.loading import Dtype, load_checkpoint
from ccnet_hf.inference.predictor import Predictor


@dataclass(kw_only=True)
class PredictorArguments:
    """Which checkpoint predicts, and how; `Predictor` says what the options mean."""

    model_name_or_path: str = field(
        metadata={"metavar": "MODEL", "help": "folder of a CCNet checkpoint, or namespace/name on the Hub"}
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
    dtype: Dtype = field(
        default="auto", metadata={"help": "auto: as the checkpoint is stored, but float32 on the CPU"}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, ...; auto: the fastest there is"})

    def load_predictor(self) -> Predictor:
        """Load the checkpoint. Raises InputError for what `load_checkpoint` and `Predictor` refuse."""
        return self.make_predictor(*load_checkpoint(self.model_name_or_path, self.dtype, self.device))

    def make_predictor(self, model: PreTrainedModel, image_processor: BaseImageProcessor) -> Predictor:
        """A predictor of a checkpoint that is loaded. Raises InputError for what `Predictor` refuses."""
        return Predictor(
            model,
            image_processor,
            mode=self.mode,
            crop_size=self.crop_size,
            stride=self.stride,
            scales=self.scales,
            flip=self.flip,
        )
