"""The options of the training command, on the command line or in a YAML file.

Nothing of the extra `train` but YAML, which transformers brings too, is imported until the training begins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from transformers import PreTrainedConfig

from ccnet_hf.command import parse_some, run_command
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.errors import InputError
from ccnet_hf.limits import check_range
from ccnet_hf.recipes import Recipe, TrainingRecipe, get_recipe
from ccnet_hf.training.config_file import with_config_file
from ccnet_hf.training.settings import TrainingSettings


@dataclass(kw_only=True)
class ModelArguments:
    """Which model is trained. The fields of `CHANGES` are `None` where a model that is trained on keeps its own."""

    _argument_group_name = "model"

    variant: str | None = field(
        default=None, metadata={"help": "recipe, e.g. ccnet-r101-cityscapes-769x769-80k, whose values are defaults"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "start from this model instead of a new one of the recipe"}
    )
    backbone_checkpoint: str | None = field(
        default=None,
        metadata={"help": "file or Hub id that the backbone of a new model starts from; none: random"},
    )
    num_labels: int | None = field(
        default=None,
        metadata={"help": "number of classes of a dataset of your own, whose labels are taken as they are"},
    )
    output_stride: int | None = field(default=None, metadata={"help": "of the backbone: 8, 16 or 32"})
    recurrence: int | None = field(default=None, metadata={"help": "rounds of attention"})
    loss_reduction: Literal["valid", "all"] | None = field(
        default=None, metadata={"help": "divide the loss by labelled or by all pixels"}
    )
    ohem_threshold: float | None = field(
        default=None, metadata={"help": "OHEM: learn from pixels whose class has at most this probability"}
    )
    ohem_min_kept: int | None = field(
        default=None, metadata={"help": "OHEM: but from about this many of a pass at least"}
    )
    category_consistent_loss_weight: float | None = field(
        default=None, metadata={"help": "weight of the category-consistent loss"}
    )
    lovasz_loss_weight: float | None = field(
        default=None, metadata={"help": "weight of the Lovasz-softmax loss, which is added"}
    )
    dice_loss_weight: float | None = field(default=None, metadata={"help": "weight of the Dice loss, which is added"})
    focal_loss_weight: float | None = field(
        default=None, metadata={"help": "weight of the focal loss, which is added"}
    )
    num_frames: int | None = field(default=None, metadata={"help": "frames of a clip, of video models"})
    class_weight_power: float = field(
        default=0.0, metadata={"help": "classes weigh frequency ** -power in the loss; 0: all alike"}
    )

    CHANGES = (
        *("recurrence", "loss_reduction", "ohem_threshold", "ohem_min_kept", "category_consistent_loss_weight"),
        *("lovasz_loss_weight", "dice_loss_weight", "focal_loss_weight", "num_frames"),
    )

    attention_stage: str | None = field(
        default=None,
        metadata={"help": "stage of the backbone that holds criss-cross attention, e.g. stage3, or none"},
    )

    def __post_init__(self):
        check_range("--class_weight_power", self.class_weight_power, 0, 10)
        if self.model_name_or_path and self.backbone_checkpoint:
            raise InputError("--model_name_or_path brings its own backbone, --backbone_checkpoint is for a new model")

    def changed(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The values of a configuration, with those that are given here."""
        values = config.to_dict()
        if self.num_labels is not None:
            check_range("--num_labels", self.num_labels, 2, 255)  # label maps are held in bytes, 255 being no class
            values = {name: value for name, value in values.items() if name not in ("id2label", "label2id")}
            values["num_labels"] = self.num_labels
        if self.output_stride is not None:
            if self.output_stride not in (8, 16, 32):  # timm takes other numbers for one of these
                raise InputError(f"--output_stride is 8, 16 or 32, got {self.output_stride}")
            backbone = values["backbone_config"]
            if "output_stride" not in backbone:
                raise InputError(f"--output_stride: a backbone of type {backbone['model_type']!r} has none to choose")
            values["backbone_config"] = backbone | {"output_stride": self.output_stride}
        if self.attention_stage is not None:
            backbone = values["backbone_config"]
            if "attention_stage" not in backbone:
                raise InputError(
                    f"--attention_stage: a backbone of type {backbone['model_type']!r} has none to choose"
                )
            stage = None if self.attention_stage == "none" else self.attention_stage
            values["backbone_config"] = backbone | {"attention_stage": stage}
        changes = {name: value for name in self.CHANGES if (value := getattr(self, name)) is not None}
        for name in changes:
            if name not in values:
                raise InputError(f"--{name}: models of type {config.model_type!r} have nothing of the kind")
        return values | changes


@dataclass(kw_only=True)
class TrainingDataArguments(DatasetArguments):
    """What is trained on, and what is evaluated on."""

    _argument_group_name = "dataset"

    train_split: str = field(default="train", metadata={"help": "split to train on, or several: train+validation"})
    validation_split: str = field(default="validation", metadata={"help": "split to evaluate on"})


@dataclass(kw_only=True)
class PublishingArguments:
    """Where the numbers of a training and its model go."""

    _argument_group_name = "report"

    config: str | None = field(
        default=None, metadata={"help": "YAML file of these options; the command line overrides it"}
    )
    report_to: list[str] | None = field(
        default=None,
        metadata={"help": "trackers, e.g. tensorboard wandb, or none; by default tensorboard, if installed"},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload the trained model"})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "where to, e.g. me/my-ccnet; by default your account, named as output_dir"}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "make that repository private if it is new"})


# What the command is called with, and the groups of its help.
ARGUMENTS = (ModelArguments, TrainingDataArguments, TrainingRecipe, TrainingSettings, PublishingArguments)


def recipe_defaults(recipe: Recipe, new_model: bool) -> dict[str, Any]:
    """What options of the training command are by default for a recipe, by name.

    Args:
        recipe: to train by.
        new_model: whether the model is the recipe's; else it is another's, which keeps its own values.
    """
    defaults = dict(vars(recipe.training))
    if new_model:
        config = recipe.config()
        defaults |= {name: getattr(config, name, None) for name in ModelArguments.CHANGES}
        defaults["output_stride"] = getattr(config.backbone_config, "output_stride", None)
        defaults["backbone_checkpoint"] = recipe.backbone_checkpoint
    return defaults


def given_options(arguments: Sequence[Any], recipe: Recipe | None) -> dict[str, Any]:
    """The options that are not as they are by default, by name, as YAML has them.

    Args:
        arguments: instances of `ARGUMENTS`; the first says whether the model is new.
        recipe: that `--variant` names.
    """
    defaults = recipe_defaults(recipe, new_model=not arguments[0].model_name_or_path) if recipe else {}
    given = {}
    for part in arguments:
        for f in fields(part):
            value = getattr(part, f.name)
            if value not in (defaults.get(f.name, f.default), []):
                given[f.name] = list(value) if isinstance(value, tuple) else value
    return given


def run_training(command: Callable[..., None] | str, argv: Sequence[str], prog: str = "train.py") -> int:
    """Call `command` with the dataclasses of `ARGUMENTS` that a command line makes; as [`run_command`].

    The variant is read first, for its recipe's values are the defaults of the other options.
    """
    try:
        argv = with_config_file(argv, ARGUMENTS)
        (model,) = parse_some((ModelArguments,), argv)
        recipe = get_recipe(model.variant) if model.variant else None
        if recipe is None and not model.model_name_or_path and not {"-h", "--help"}.intersection(argv):
            raise InputError("--variant names the recipe to train by, or --model_name_or_path a model to train on")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(
        ARGUMENTS,
        command,
        argv,
        prog,
        description="Train a CCNet by a recipe; start it with `accelerate launch`.",
        epilog="What is said to be the default is that of the recipe where --variant names one: try --variant NAME "
        "--help. Without a recipe, the first five options of the group recipe must be given.",
        defaults=recipe_defaults(recipe, new_model=not model.model_name_or_path) if recipe else None,
    )


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Run the command; returns the exit status."""
    return run_training("ccnet_hf.training.train:train", sys.argv[1:] if argv is None else argv, prog)
