"""What a recipe says: how one checkpoint is built, fed, trained and tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from ccnet_hf.data.benchmarks import Benchmark, get_benchmark
from ccnet_hf.errors import InputError
from ccnet_hf.limits import MAX_BATCH_SIZE, MAX_PIXELS, check_range
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.configuration_ccnet_parsing import CCNetParsingConfig
from ccnet_hf.models.configuration_ccnet_video import CCNetVideoConfig
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor


def _option(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything of a training that decides its result; the fields' `help` says what each is.

    The defaults are mmsegmentation's schedule for CCNet.

    Raises:
        InputError: for a value outside what is allowed; the message names the field.
    """

    _argument_group_name = "recipe"

    crop_size: tuple[int, int] = _option("height and width of the random crop, in pixels", metavar=("H", "W"))
    scale: tuple[int, int] = _option(
        "long and short side, in pixels, of the keep-ratio resize that a random ratio multiplies before the crop",
        metavar=("LONG", "SHORT"),
    )
    batch_size: int = _option("images per step, over all processes")
    max_train_steps: int = _option("length of the schedule, and of the training")
    eval_steps: int = _option("steps between two evaluations; 0 for none")
    ratio_range: tuple[float, float] = _option(
        "the ratio is uniform in this range", (0.5, 2.0), metavar=("LOW", "HIGH")
    )
    ratio_step: float = _option("the ratio is one of low, low + step, ..., high; 0 draws any number in between", 0.0)
    cat_max_ratio: float = _option(
        "a crop is redrawn, up to ten times, while one class covers this fraction of it; 1 takes any", 0.75
    )
    letterbox: bool = _option(
        "warp the whole image into the crop's size, as CE2P does it, instead of resizing and cropping; the ratio's "
        "range is then that of the extent, and ratio_step, cat_max_ratio and pad_before_normalization do not count",
        False,
    )
    photometric_distortion: bool = _option(
        "change brightness, contrast, saturation and hue, each with probability 1/2", True
    )
    pad_before_normalization: bool = _option(
        "pad small crops with black, as for VOC12Aug, instead of the mean colour", False
    )
    optimizer: Literal["sgd", "adamw"] = _option("what takes the steps", "sgd")
    learning_rate: float = _option("of the first step, or of the end of the warm-up", 0.01)
    min_learning_rate: float = _option("floor of the polynomial schedule", 1e-4)
    power: float = _option("lr(t) = min + (lr - min) * (1 - t / max_train_steps) ** power", 0.9)
    momentum: float = _option("of SGD", 0.9)
    weight_decay: float = _option("L2 for SGD, decoupled for AdamW", 5e-4)
    decay_norms_and_biases: bool = _option(
        "weight decay applies to every parameter; without it, to the weights of convolutions and linear layers alone, "
        "and so to no norm, bias or position embedding",
        True,
    )
    warmup_steps: int = _option("steps of linear warm-up", 0)
    warmup_start: float = _option("fraction of the learning rate the warm-up begins at; 0: its first step", 0.0)
    decay_steps: tuple[int, ...] = _option(
        "the learning rate falls to a tenth after each of these many steps, instead of polynomially", ()
    )
    frozen_modules: tuple[str, ...] = _option("modules that do not learn, beside those of --freeze", ())
    group_by_shape: bool = _option("make batches of wide images and of high ones, where the dataset has sizes", False)
    max_grad_norm: float = _option("gradients are clipped to this norm; 0 leaves them", 0.0)
    backbone_learning_rate_factor: float = _option("the backbone learns at the learning rate times this", 1.0)
    layer_decay: float = _option(
        "each layer of the backbone (a stage, or a block where there are no stages) learns at this times the learning "
        "rate of the next one; 1: all alike",
        1.0,
    )
    ema_decay: float = _option("evaluate and save a moving average of the weights with this decay; 0: none", 0.0)

    def __post_init__(self):
        for name, (is_allowed, description) in _ALLOWED.items():
            value = getattr(self, name)
            if not is_allowed(value):
                raise InputError(f"{name} must be {description}, got {value!r}")
        for name, most in _LARGEST.items():
            check_range(name, getattr(self, name), 0, most)
        if math.prod(self.crop_size) > MAX_PIXELS:
            raise InputError(f"crop_size must be at most {MAX_PIXELS:,} pixels, got {self.crop_size}")
        low, high = self.ratio_range
        if self.scale[0] > MAX_PIXELS or math.prod(self.scale) * high**2 > MAX_PIXELS:
            raise InputError(
                f"scale and ratio_range must make images of at most {MAX_PIXELS:,} pixels, "
                f"got {self.scale} times {high}"
            )
        if self.ratio_step and (high - low) / self.ratio_step > _MAX_RATIO_STEPS:
            raise InputError(
                f"ratio_step must be 0 or make at most {_MAX_RATIO_STEPS:,} steps of ratio_range, "
                f"got {self.ratio_step}"
            )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_pair(value: Any, is_kind: Callable[[Any], bool] = _is_number) -> bool:
    """Whether `value` is two positive numbers."""
    return isinstance(value, tuple) and len(value) == 2 and all(is_kind(v) and v > 0 for v in value)


_COUNT = (lambda value: _is_integer(value) and value >= 1, "a positive integer")
_COUNT_OR_0 = (lambda value: _is_integer(value) and value >= 0, "an integer, at least 0")
_NUMBER_OR_0 = (lambda value: _is_number(value) and value >= 0, "a number, at least 0")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")

# field of `TrainingRecipe`: what it may be, as a test and in words
_ALLOWED = {
    "crop_size": (lambda value: _is_pair(value, _is_integer), "two positive integers, height and width"),
    "scale": (
        lambda value: _is_pair(value, _is_integer) and value[0] >= value[1],
        "two positive integers, long and short",
    ),
    "batch_size": _COUNT,
    "max_train_steps": _COUNT,
    "eval_steps": _COUNT_OR_0,
    "ratio_range": (lambda value: _is_pair(value) and value[0] <= value[1], "two positive numbers, low and high"),
    "ratio_step": _NUMBER_OR_0,
    "cat_max_ratio": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "letterbox": _SWITCH,
    "photometric_distortion": _SWITCH,
    "pad_before_normalization": _SWITCH,
    "optimizer": (lambda value: value in ("sgd", "adamw"), "'sgd' or 'adamw'"),
    "learning_rate": (lambda value: _is_number(value) and value > 0, "a positive number"),
    "min_learning_rate": _NUMBER_OR_0,
    "power": _NUMBER_OR_0,
    "momentum": (lambda value: _is_number(value) and 0 <= value < 1, "in [0, 1)"),
    "weight_decay": _NUMBER_OR_0,
    "decay_norms_and_biases": _SWITCH,
    "warmup_steps": _COUNT_OR_0,
    "warmup_start": (lambda value: _is_number(value) and 0 <= value <= 1, "in [0, 1]"),
    "decay_steps": (
        lambda value: isinstance(value, tuple) and all(_is_integer(v) and 1 <= v <= 10**9 for v in value),
        "integers from 1 to 1,000,000,000",
    ),
    "frozen_modules": (
        lambda value: isinstance(value, tuple) and all(isinstance(v, str) for v in value),
        "names of modules",
    ),
    "group_by_shape": _SWITCH,
    "max_grad_norm": _NUMBER_OR_0,
    "backbone_learning_rate_factor": _NUMBER_OR_0,
    "layer_decay": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "ema_decay": (lambda value: _is_number(value) and 0 <= value < 1, "in [0, 1)"),
}

# Beyond these, memory runs out, or float32 does not hold what is computed of them.
_LARGEST = {
    "batch_size": MAX_BATCH_SIZE,
    **dict.fromkeys(("max_train_steps", "eval_steps", "warmup_steps"), 10**9),
    **dict.fromkeys(("learning_rate", "min_learning_rate", "backbone_learning_rate_factor"), 10**9),
    **dict.fromkeys(("ratio_step", "power", "weight_decay", "max_grad_norm"), 10**9),
}
_MAX_RATIO_STEPS = 10**6


# Blocks in the four stages of a ResNet, by its depth.
RESNET_DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}


_CONFIGS = {
    "semantic": CCNetConfig,
    "parsing": CCNetParsingConfig,
    "video": CCNetVideoConfig,
    "instance": CCNetInstanceConfig,
}


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: its model, its input, its training and its test.

    Attributes:
        name: e.g. `"ccnet-r101-cityscapes-769x769-80k"`; also the folder and the Hub repository.
        benchmark: name of the benchmark it is trained and scored on.
        model: keyword arguments of its configuration, the backbone's as a dict with its `model_type`.
        size: `shortest_edge` and `longest_edge` of the keep-ratio resize at test time; `height` and `width` of the
            network's input where images are letterboxed.
        image_mean: of the RGB channels, for pixels scaled to 0..1.
        image_std: likewise.
        training: how it is trained.
        task: what the model is for, a row of `ccnet_hf.evaluation.tasks.TASKS`; decides the configuration's class.
        backbone_checkpoint: Hub id of the weights that a new model's backbone starts from, or `None`.
        backbone_terms: what those were trained on and under which licence they are, in words, for the model's card.
        pad_size: `height` and `width` that the processor pads test images to, if it does.
        tta_ratios: scales of the multi-scale test, each with and without flip.
        reported: scores and costs as the zoo reports them (never measured here), or `None` for our own checkpoints.
        checkpoint_file: the zoo's file, in a folder if its name says nothing; mmsegmentation's names end with the
            start of their sha256.
        checkpoint_url: where the zoo publishes it.
        mmseg_config: name of the mmsegmentation config, where that is where it is from.
    """

    name: str
    benchmark: str
    model: dict[str, Any]
    size: dict[str, int]
    training: TrainingRecipe
    task: str = "semantic"
    backbone_checkpoint: str | None = None
    backbone_terms: str | None = None
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pad_size: dict[str, int] | None = None
    tta_ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    reported: dict[str, float | None] | None = None
    checkpoint_file: str | None = None
    checkpoint_url: str | None = None
    mmseg_config: str | None = None

    @property
    def config_class(self) -> type[CCNetConfig | CCNetParsingConfig | CCNetInstanceConfig]:
        """Of the configurations of this recipe's models."""
        return _CONFIGS[self.task]

    def config(self, **changes: Any) -> CCNetConfig | CCNetParsingConfig:
        """Build the model's config with the benchmark's class names; `changes` are further arguments of it."""
        id2label = get_benchmark(self.benchmark).id2label
        names = {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        return self.config_class(**({} if "num_labels" in changes else names) | deepcopy(self.model) | changes)

    def image_processor(self) -> CCNetImageProcessor | CCNetVideoProcessor:
        """Build the image processor of the single-scale test, or the video processor."""
        benchmark: Benchmark = get_benchmark(self.benchmark)
        fields = {
            "size": dict(self.size),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "do_reduce_labels": benchmark.reduce_labels,
            "align_corners": self.model.get("align_corners", False),
            "palette": [list(colour) for colour in benchmark.palette],
        }
        if self.pad_size is not None:
            fields |= {"do_pad": True, "pad_size": dict(self.pad_size)}
        if self.task == "video":
            return CCNetVideoProcessor(**fields)
        return CCNetImageProcessor(**fields, do_letterbox=self.training.letterbox)
