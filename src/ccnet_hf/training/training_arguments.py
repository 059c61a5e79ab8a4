"""The fields of the training command: on the command line, or in a YAML file.

Nothing of the extra `train` but YAML, which transformers brings too, is imported until the training begins.
"""

from __future__ import annotations

import inspect
import re
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ccnet_hf.command import run_command
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.errors import InputError, reading
from ccnet_hf.limits import read_settings
from ccnet_hf.recipes import TrainingRecipe


_LARGEST_CONFIG = 2**20  # bytes

# Fields of `CCNetConfig` the command can change.
MODEL_FIELDS = (
    "recurrence",
    "loss_reduction",
    "ohem_threshold",
    "ohem_min_kept",
    "category_consistent_loss_weight",
)


@dataclass(kw_only=True)
class _RunArguments(DatasetArguments):
    variant: str = field(metadata={"help": "recipe, e.g. ccnet-r101-cityscapes-769x769-80k"})
    output_dir: str = field(metadata={"help": "folder for the model and its checkpoints"})
    config: str | None = field(
        default=None, metadata={"help": "YAML file of these fields; the command line overrides it"}
    )
    train_split: str = field(default="train", metadata={"help": "split to train on, or several: train+validation"})
    validation_split: str = field(default="validation", metadata={"help": "split to evaluate on"})
    num_labels: int | None = field(
        default=None,
        metadata={"help": "number of classes, where the dataset has its own, whose labels are taken as they are"},
    )
    shuffle_buffer_size: int = field(
        default=256, metadata={"help": "images, held encoded in memory, that a stream's order is drawn from"}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "start from this model"})
    backbone_checkpoint: str | None = field(
        default=None,
        metadata={"help": "file or Hub id a new model's backbone starts from; none: random; default: the recipe's"},
    )
    output_stride: int | None = field(default=None, metadata={"help": "of the backbone; default: the recipe's"})
    recurrence: int | None = field(default=None, metadata={"help": "rounds of attention; default: the recipe's"})
    loss_reduction: Literal["valid", "all"] | None = field(
        default=None, metadata={"help": "divide the loss by labelled or by all pixels; default: the recipe's"}
    )
    ohem_threshold: float | None = field(
        default=None, metadata={"help": "OHEM: learn from pixels whose class has at most this probability"}
    )
    ohem_min_kept: int | None = field(
        default=None, metadata={"help": "OHEM: but from about this many of a pass at least"}
    )
    category_consistent_loss_weight: float | None = field(
        default=None, metadata={"help": "weight of the category-consistent loss; default: the recipe's"}
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "modules that do not learn, e.g. model.backbone.stem"}
    )
    class_weight_power: float = field(
        default=0.0, metadata={"help": "classes weigh frequency ** -power in the loss; 0: all alike"}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "evaluate and save a moving average of the weights with this decay; 0: none"}
    )
    compile: bool = field(default=False, metadata={"help": "run the training steps through torch.compile"})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "images in one pass, the rest by accumulation; default: all of a step"}
    )
    checkpointing_steps: int | None = field(
        default=None,
        metadata={
            "help": "steps between two checkpoints, 0: none; default: as between evaluations, or a tenth of all steps"
        },
    )
    checkpoints_total_limit: int = field(
        default=2, metadata={"help": "how many checkpoints are kept, the newest; 0: all"}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "checkpoint folder, or 'last' for the newest in output_dir"}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "save the model with the best mIoU in output_dir, instead of the last"}
    )
    report_to: list[str] | None = field(
        default=None, metadata={"help": "trackers, e.g. tensorboard wandb, or none; default: tensorboard if installed"}
    )
    logging_steps: int = field(default=10, metadata={"help": "steps between two lines of numbers"})
    push_to_hub: bool = field(default=False, metadata={"help": "upload the trained model"})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "where to, e.g. me/my-ccnet; default: your account, named as output_dir"}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "make that repository private if it is new"})
    dataloader_num_workers: int = field(default=4, metadata={"help": "processes that prepare batches"})
    seed: int = field(default=0, metadata={"help": "of every random draw"})
    deterministic: bool = field(
        default=False, metadata={"help": "deterministic algorithms on the GPU too, where there are any"}
    )


def _optional(kind: Any) -> Any:
    """The type a parser takes for a field of a recipe: lists for tuples, and `None` for not given."""
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]
    return kind | None


def _recipe_fields() -> list[tuple[str, Any, Any]]:
    """The fields of `TrainingRecipe`, with what its docstring says of them as help."""
    attributes = (inspect.getdoc(TrainingRecipe) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    texts = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, flags=re.MULTILINE)
    # argparse would read a bare % as a placeholder.
    helps = {name: " ".join(text.replace("`", "").rstrip(".").split()).replace("%", "%%") for name, text in texts}
    kinds = get_type_hints(TrainingRecipe)
    return [
        (
            f.name,
            _optional(kinds[f.name]),
            field(default=None, metadata={"help": f"{helps.get(f.name, f.name)}; default: recipe"}),
        )
        for f in fields(TrainingRecipe)
    ]


TrainArguments = make_dataclass("TrainArguments", _recipe_fields(), bases=(_RunArguments,), kw_only=True)
TrainArguments.__doc__ = "What the training command is told. Fields named as in `TrainingRecipe` override the recipe."


class _Loader(yaml.SafeLoader):
    """Reads plain values only, as `yaml.safe_load`, and no field twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [name for name in names if isinstance(name, str) and names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def with_config_file(argv: Sequence[str]) -> list[str]:
    """A command line with the fields of the YAML file that its `--config` names put in front, so that it wins.

    Raises:
        InputError: the file cannot be read, is no mapping, has a key that is no field, or a value of the wrong type.
    """
    argv = list(argv)
    files = [value for name, value in pairwise(argv) if name == "--config"]
    files += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    if not files:
        return argv
    file = files[-1]
    content = _read_yaml(Path(file))
    switches = {f.name for f in fields(TrainArguments) if f.default is False}
    kinds = get_type_hints(TrainArguments)
    words: list[str] = []
    for name, value in content.items():
        if name not in kinds or name == "config":
            raise InputError(f"{file}: there is no field {reprlib.repr(name)}")
        if value is None or value == []:
            continue
        given = _words(value, kinds[name])
        if given is None:
            raise InputError(f"{file}: {name} is {_described(kinds[name])}, got {reprlib.repr(value)}")
        if name in switches:
            words += [f"--{name}"] * value
        elif isinstance(given, list):
            words += [f"--{name}", *given]
        else:
            words.append(f"--{name}={given}")  # in one word, for it may begin with a dash
    return words + argv


def _read_yaml(file: Path) -> dict:
    with reading(file):
        content = yaml.load(read_settings(file, _LARGEST_CONFIG), _Loader)
    if not isinstance(content, dict):
        raise InputError(f"{file} does not map fields to values")
    return content


def _words(value: Any, kind: Any) -> str | list[str] | None:
    """What a command line says for a value of a YAML file, or `None` if the value is not of this kind."""
    kind = _required(kind)
    if get_origin(kind) is list:
        words = [_words(part, get_args(kind)[0]) for part in (value if isinstance(value, list) else [value])]
        # A word that begins with a dash would be read as an option.
        return None if any(word is None or re.match(r"-\D", word) for word in words) else words
    if kind is bool:
        return str(value).lower() if isinstance(value, bool) else None
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if kind is int:
        return str(value) if isinstance(value, int) else None
    if kind is float:  # YAML takes 1e-3 for text
        return str(value) if not isinstance(value, str) or _is_decimal(value) else None
    return str(value) if not isinstance(value, float) and "\0" not in str(value) else None


def _required(kind: Any) -> Any:
    """The kind of what is given, of an option that may be left out."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    return parts[0] if NoneType in get_args(kind) else kind


def _is_decimal(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII) is not None


def _described(kind: Any) -> str:
    kind = _required(kind)
    if get_origin(kind) is list:
        return f"a list, each {_described(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[kind]


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Run the command; returns the exit status."""
    try:
        argv = with_config_file(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(
        TrainArguments,
        "ccnet_hf.training.train:train",
        argv,
        prog,
        description="Train a CCNet by a recipe; start it with `accelerate launch`.",
    )
