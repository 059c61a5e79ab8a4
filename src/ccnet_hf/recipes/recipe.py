"""How every published CCNet is built, fed, trained and tested: the one table the rest of the package reads.

The 16 zoo variants are mmsegmentation's `configs/ccnet`, resolved. What they share is the defaults of the dataclasses
and of `CCNetConfig`; what differs by benchmark stands in `_PROTOCOLS`; what differs by variant in `_ZOO`. Beside them
stand the authors' own training on Cityscapes, a training on LIP, and our small checkpoints for CamVid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ccnet_hf.data.benchmarks import Benchmark, get_benchmark
from ccnet_hf.errors import InputError
from ccnet_hf.limits import MAX_BATCH_SIZE, MAX_PIXELS, check_range
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything of a training that decides its result. Defaults: mmsegmentation's schedule for CCNet.

    Attributes:
        crop_size: (height, width) of the random crop, in pixels.
        scale: (long, short) side of the keep-ratio resize that a random ratio multiplies before the crop, in pixels.
        ratio_range: that ratio is uniform in this range.
        ratio_step: the ratio is one of low, low + step, ..., high; 0 draws any number in between.
        cat_max_ratio: a crop is redrawn, up to ten times, while one class covers this share of it; 1 takes any.
        photometric_distortion: brightness, contrast, saturation and hue, each with probability 1/2.
        pad_before_normalization: pad small crops with black (VOC12Aug) instead of the mean colour.
        batch_size: images per step, over all processes.
        max_train_steps: length of the schedule, and of the training.
        eval_steps: steps between two evaluations; 0 for none.
        optimizer: `"sgd"` or `"adamw"`; weight decay applies to every parameter.
        learning_rate: of the first step, or of the end of the warm-up.
        min_learning_rate: floor of the polynomial schedule.
        power: lr(t) = min + (lr - min) * (1 - t / max_train_steps) ** power.
        momentum: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        warmup_steps: steps of linear warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them.
        backbone_learning_rate_factor: the backbone learns at `learning_rate` times this.

    Raises:
        InputError: for a value outside what is allowed; the message names the field.
    """

    crop_size: tuple[int, int]
    scale: tuple[int, int]
    batch_size: int
    max_train_steps: int
    eval_steps: int
    ratio_range: tuple[float, float] = (0.5, 2.0)
    ratio_step: float = 0.0
    cat_max_ratio: float = 0.75
    photometric_distortion: bool = True
    pad_before_normalization: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    min_learning_rate: float = 1e-4
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    max_grad_norm: float = 0.0
    backbone_learning_rate_factor: float = 1.0

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
    "photometric_distortion": _SWITCH,
    "pad_before_normalization": _SWITCH,
    "optimizer": (lambda value: value in ("sgd", "adamw"), "'sgd' or 'adamw'"),
    "learning_rate": (lambda value: _is_number(value) and value > 0, "a positive number"),
    "min_learning_rate": _NUMBER_OR_0,
    "power": _NUMBER_OR_0,
    "momentum": (lambda value: _is_number(value) and 0 <= value < 1, "in [0, 1)"),
    "weight_decay": _NUMBER_OR_0,
    "warmup_steps": _COUNT_OR_0,
    "max_grad_norm": _NUMBER_OR_0,
    "backbone_learning_rate_factor": _NUMBER_OR_0,
}

# Beyond these, memory runs out, or float32 does not hold what is computed of them.
_LARGEST = {
    "batch_size": MAX_BATCH_SIZE,
    **dict.fromkeys(("max_train_steps", "eval_steps", "warmup_steps"), 10**9),
    **dict.fromkeys(("learning_rate", "min_learning_rate", "backbone_learning_rate_factor"), 10**9),
    **dict.fromkeys(("ratio_step", "power", "weight_decay", "max_grad_norm"), 10**9),
}
_MAX_RATIO_STEPS = 10**6


def override_training(recipe: TrainingRecipe, values: Mapping[str, Any]) -> TrainingRecipe:
    """A recipe with other values for the named fields, as a command line or a YAML file gives them.

    Args:
        recipe: is left as it is.
        values: by field; lists stand for tuples, and `None` for what is not given.

    Raises:
        InputError: there is no such field, or its value is not allowed; the message names the field.
    """
    known = [field.name for field in fields(TrainingRecipe)]
    for name in values:
        if name not in known:
            raise InputError(f"a training recipe has no {name!r}; it has {', '.join(known)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: its model, its input, its training and its test.

    Attributes:
        name: e.g. `"ccnet-r101-cityscapes-769x769-80k"`; also the folder and the Hub repository.
        benchmark: name of the benchmark it is trained and scored on.
        model: keyword arguments of `CCNetConfig`, the backbone's as a dict with its `model_type`.
        size: `shortest_edge` and `longest_edge` of the keep-ratio resize at test time.
        image_mean: of the RGB channels, for pixels scaled to 0..1.
        image_std: likewise.
        training: how it is trained.
        backbone_checkpoint: Hub id of the ImageNet weights that a new model's backbone starts from, or `None`.
        tta_ratios: scales of the multi-scale test, each with and without flip.
        reported: scores and costs as the zoo reports them (never measured here), or `None` for our own checkpoints.
        checkpoint_file: the zoo's file; the end of its name is the start of its sha256.
        checkpoint_url: where the zoo publishes it.
        mmseg_config: name of the mmsegmentation config.
    """

    name: str
    benchmark: str
    model: dict[str, Any]
    size: dict[str, int]
    training: TrainingRecipe
    backbone_checkpoint: str | None = None
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    tta_ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    reported: dict[str, float | None] | None = None
    checkpoint_file: str | None = None
    checkpoint_url: str | None = None
    mmseg_config: str | None = None

    def config(self, **changes: Any) -> CCNetConfig:
        """Build the model's config with the benchmark's class names; `changes` are further `CCNetConfig` arguments."""
        id2label = get_benchmark(self.benchmark).id2label
        names = {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        return CCNetConfig(**({} if "num_labels" in changes else names) | deepcopy(self.model) | changes)

    def image_processor(self) -> CCNetImageProcessor:
        """Build the image processor of the single-scale test."""
        benchmark: Benchmark = get_benchmark(self.benchmark)
        return CCNetImageProcessor(
            size=dict(self.size),
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            do_reduce_labels=benchmark.reduce_labels,
            align_corners=self.model.get("align_corners", False),
            palette=[list(colour) for colour in benchmark.palette],
        )


# benchmark: (long, short) of the resize in training and test, images per GPU, pad before normalisation
_PROTOCOLS = {
    "cityscapes": ((2048, 1024), 2, False),
    "ade20k": ((2048, 512), 4, False),
    "voc12aug": ((2048, 512), 4, True),
}
_GPUS = 4
_DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}

# benchmark, depth, crop (h, w), thousands of steps, date and hash of the checkpoint, then as reported: mIoU, mIoU with
# multi-scale and flip, GB of memory in training, frames/s on a V100 (the last two for the shorter schedule only)
_ZOO = (
    ("cityscapes", 50, (512, 1024), 40, "20200616_142517-4123f401", 77.76, 78.87, 6.0, 3.32),
    ("cityscapes", 101, (512, 1024), 40, "20200616_142540-a3b84ba6", 76.35, 78.19, 9.5, 2.31),
    ("cityscapes", 50, (769, 769), 40, "20200616_145125-76d11884", 78.46, 79.93, 6.8, 1.43),
    ("cityscapes", 101, (769, 769), 40, "20200617_101428-4f57c8d0", 76.94, 78.62, 10.7, 1.01),
    ("cityscapes", 50, (512, 1024), 80, "20200617_010421-869a3423", 79.03, 80.16, None, None),
    ("cityscapes", 101, (512, 1024), 80, "20200617_203935-ffae8917", 78.87, 79.90, None, None),
    ("cityscapes", 50, (769, 769), 80, "20200617_010421-73eed8ca", 79.29, 81.08, None, None),
    ("cityscapes", 101, (769, 769), 80, "20200618_011502-ad3cd481", 79.45, 80.66, None, None),
    ("ade20k", 50, (512, 512), 80, "20200615_014848-aa37f61e", 41.78, 42.98, 8.8, 20.89),
    ("ade20k", 101, (512, 512), 80, "20200615_014848-1f4929a3", 43.97, 45.13, 12.2, 14.11),
    ("ade20k", 50, (512, 512), 160, "20200616_084435-7c97193b", 42.08, 43.13, None, None),
    ("ade20k", 101, (512, 512), 160, "20200616_000644-e849e007", 43.71, 45.04, None, None),
    ("voc12aug", 50, (512, 512), 20, "20200617_193212-fad81784", 76.17, 77.51, 6.0, 20.45),
    ("voc12aug", 101, (512, 512), 20, "20200617_193212-0007b61d", 77.27, 79.02, 9.5, 13.64),
    ("voc12aug", 50, (512, 512), 40, "20200613_232127-c2a15f02", 75.96, 77.04, None, None),
    ("voc12aug", 101, (512, 512), 40, "20200613_232127-c30da577", 77.87, 78.90, None, None),
)


def _zoo_recipe(
    benchmark: str,
    depth: int,
    crop_size: tuple[int, int],
    kilosteps: int,
    stamp: str,
    mean_iou: float,
    mean_iou_multi_scale_flip: float,
    training_memory_gb: float | None,
    frames_per_second_v100: float | None,
) -> Recipe:
    (long, short), batch_per_gpu, pad_before_normalization = _PROTOCOLS[benchmark]
    height, width = crop_size
    crop = f"{height}x{width}"
    # With an odd crop the corners of map and image fall together: odd test size, aligned corners, sliding windows.
    odd = height % 2 == 1
    if odd:
        long, short = long + 1, short + 1
    # mmsegmentation divides the loss by all pixels, ignored ones included.
    model = {
        "backbone_config": {
            "model_type": "ccnet_resnet",
            "depths": _DEPTHS[depth],
            "out_features": ["stage3", "stage4"],
        },
        "align_corners": odd,
        "loss_reduction": "all",
        "inference": {"mode": "slide", "crop_size": list(crop_size), "stride": [513, 513]}
        if odd
        else {"mode": "whole"},
    }
    published = f"ccnet_r{depth}-d8_{crop}_{kilosteps}k_{benchmark}"
    checkpoint_file = f"{published}_{stamp}.pth"
    return Recipe(
        name=f"ccnet-r{depth}-{benchmark}-{crop}-{kilosteps}k",
        benchmark=benchmark,
        model=model,
        size={"shortest_edge": short, "longest_edge": long},
        training=TrainingRecipe(
            crop_size=crop_size,
            scale=(long, short),
            batch_size=_GPUS * batch_per_gpu,
            max_train_steps=1000 * kilosteps,
            eval_steps=100 * kilosteps,
            pad_before_normalization=pad_before_normalization,
        ),
        # mmsegmentation's resnet50_v1c and resnet101_v1c are GluonCV's too.
        backbone_checkpoint=f"timm/resnet{depth}c.gluon_in1k",
        reported={
            "mean_iou": mean_iou,
            "mean_iou_multi_scale_flip": mean_iou_multi_scale_flip,
            "training_memory_gb": training_memory_gb,
            "frames_per_second_v100": frames_per_second_v100,
        },
        checkpoint_file=checkpoint_file,
        checkpoint_url=f"https://download.openmmlab.com/mmsegmentation/v0.5/ccnet/{published}/{checkpoint_file}",
        mmseg_config=f"ccnet_r{depth}-d8_{_GPUS}xb{batch_per_gpu}-{kilosteps}k_{benchmark}-{crop}",
    )


def _authors_recipe(name: str, **losses: Any) -> Recipe:
    """The authors' network and training on Cityscapes, as in their repository speedinghzl/CCNet; `losses` are added.

    Reported there: 78.40 to 79.74 over three runs, with OHEM 78.67 to 80.00; 80.5 in the paper with the
    category-consistent loss. Their ImageNet weights, the scene parsing group's `resnet101-imagenet.pth`, are not on
    the Hub. GluonCV's network with the same stem stands in for it, and its normalisation for their BGR mean.
    """
    return Recipe(
        name=name,
        benchmark="cityscapes",
        model={
            "backbone_config": {
                "model_type": "ccnet_resnet",
                "depths": _DEPTHS[101],
                "stem_size": 128,
                "contract_dilation": False,
                "pool_ceil_mode": True,
                "out_features": ["stage3", "stage4"],
            },
            "head_activation": "leaky_relu",
            "auxiliary_channels": 512,
            "align_corners": True,
            "inference": {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]},
            **losses,
        },
        size={"shortest_edge": 1024, "longest_edge": 2048},
        training=TrainingRecipe(
            crop_size=(769, 769),
            scale=(2048, 1024),
            ratio_range=(0.7, 2.1),
            ratio_step=0.1,
            cat_max_ratio=1.0,
            photometric_distortion=False,
            batch_size=8,
            max_train_steps=60_000,
            eval_steps=6_000,
            min_learning_rate=0.0,
            weight_decay=1e-4,
        ),
        backbone_checkpoint="timm/resnet101s.gluon_in1k",
    )


def _lip_recipe(name: str) -> Recipe:
    """CCNet with the category-consistent loss on LIP, trained as CE2P is (Liu et al., AAAI 2019): 150 epochs.

    The paper's 55.47 is CE2P with RCCA as its context module. Its edge branch is not part of this model.
    """
    return Recipe(
        name=name,
        benchmark="lip",
        model={
            "backbone_config": {
                "model_type": "ccnet_resnet",
                "depths": _DEPTHS[101],
                "out_features": ["stage3", "stage4"],
            },
            "align_corners": True,
            "category_consistent_loss_weight": 1.0,
        },
        size={"shortest_edge": 473, "longest_edge": 473},
        training=TrainingRecipe(
            crop_size=(473, 473),
            scale=(473, 473),
            ratio_range=(0.5, 1.5),
            cat_max_ratio=1.0,
            photometric_distortion=False,
            batch_size=40,
            max_train_steps=114_000,
            eval_steps=11_400,
            learning_rate=7e-3,
            min_learning_rate=0.0,
        ),
        backbone_checkpoint="timm/resnet101c.gluon_in1k",
    )


def _camvid_recipe(name: str, recurrence: int) -> Recipe:
    """The small checkpoint that the demo uses; with `recurrence=0` its control without attention."""
    return Recipe(
        name=name,
        benchmark="camvid",
        model={
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": "mobilenetv2_100",
                "out_indices": [4],
                "output_stride": 16,
            },
            "hidden_size": 128,
            "recurrence": recurrence,
            "use_auxiliary_head": False,
        },
        # Frames are 480x360: enlarged by half, poles, signs and people span more of the output stride.
        size={"shortest_edge": 540, "longest_edge": 720},
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        training=TrainingRecipe(
            crop_size=(320, 416),
            scale=(720, 540),
            ratio_range=(0.5, 1.4),
            batch_size=4,
            max_train_steps=1300,
            eval_steps=1300,
            optimizer="adamw",
            learning_rate=1e-3,
            min_learning_rate=1e-3,  # constant; a second, shorter stage lets it fall to 0 (the checkpoint's card)
            weight_decay=0.01,
            warmup_steps=60,
            max_grad_norm=5.0,
            backbone_learning_rate_factor=0.3,
        ),
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(_zoo_recipe(*row) for row in _ZOO),
        _authors_recipe("ccnet-r101-cityscapes-authors"),
        _authors_recipe("ccnet-r101-cityscapes-authors-ohem", ohem_threshold=0.7, ohem_min_kept=100_000),
        _authors_recipe("ccnet-r101-cityscapes-authors-ccl", category_consistent_loss_weight=1.0),
        _lip_recipe("ccnet-r101-lip"),
        _camvid_recipe("ccnet-mobilenetv2-camvid", recurrence=2),
        _camvid_recipe("ccnet-mobilenetv2-camvid-r0", recurrence=0),
    )
}

# The best single-scale variant of every backbone and benchmark.
SHORT_NAMES: dict[str, str] = {
    "ccnet-r50-cityscapes": "ccnet-r50-cityscapes-769x769-80k",
    "ccnet-r101-cityscapes": "ccnet-r101-cityscapes-769x769-80k",
    "ccnet-r50-ade20k": "ccnet-r50-ade20k-512x512-160k",
    "ccnet-r101-ade20k": "ccnet-r101-ade20k-512x512-80k",
    "ccnet-r50-voc12aug": "ccnet-r50-voc12aug-512x512-20k",
    "ccnet-r101-voc12aug": "ccnet-r101-voc12aug-512x512-40k",
}


def zoo_recipes() -> list[Recipe]:
    """The recipes that mmsegmentation publishes a checkpoint for."""
    return [recipe for recipe in RECIPES.values() if recipe.checkpoint_file]


def get_recipe(name: str) -> Recipe:
    """Return the recipe with this name or short name; `InputError` with the known names if there is none."""
    full_name = SHORT_NAMES.get(name, name)
    if full_name not in RECIPES:
        raise InputError(f"unknown variant {name!r}; known are {', '.join([*RECIPES, *SHORT_NAMES])}")
    return RECIPES[full_name]
