"""What a training begins with: its model, new or another's, the image processor, and the datasets."""

from __future__ import annotations

import sys

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ccnet_hf.data.loading import SegmentationDataset, class_names
from ccnet_hf.errors import InputError, using
from ccnet_hf.evaluation.tasks import TASKS, Task, find_task
from ccnet_hf.inference.loading import (
    load_config,
    load_image_processor,
    load_weights,
    require_backbone,
)
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor
from ccnet_hf.recipes import Recipe, TrainingRecipe
from ccnet_hf.training.initialization import load_backbone_checkpoint
from ccnet_hf.training.training_arguments import ModelArguments, TrainingDataArguments


# What a model may get when it is trained on: attention where it had none, heads of losses it was not trained with.
_ADDED_PARTS = ("model.head.attention.", "context.attention.", "auxiliary_head.", "category_projection.")


def choose_task(arguments: ModelArguments, recipe: Recipe | None) -> Task:
    """The task of the recipe, else that of the model which is trained on."""
    return TASKS[recipe.task] if recipe else find_task(load_config(arguments.model_name_or_path))


def build_model(arguments: ModelArguments, recipe: Recipe | None, task: Task, is_resumed: bool) -> PreTrainedModel:
    """Build the recipe's model, new or with the given backbone, or load the model that is trained on.

    Args:
        arguments: which it is, and what is changed in it.
        recipe: that `--variant` names.
        task: what [`choose_task`] returned.
        is_resumed: whether a checkpoint brings the weights.

    Raises:
        InputError: there is no such model, it is of another task, or a value is not allowed.
        OSError: a file cannot be read or downloaded.
    """
    source, model_class = arguments.model_name_or_path, task.load("model")
    config = _starting_config(source, model_class) if source else recipe.config()
    if config.model_type != model_class.config_class.model_type:
        raise InputError(f"{source} is a model of type {config.model_type!r}, and {recipe.name} trains another")
    values = arguments.changed(config)
    with using(source or f"--variant {arguments.variant}"):
        config = model_class.config_class.from_dict(values)  # checks the values
    require_backbone(config)
    if source:
        return _load_model(source, model_class, config)
    model = model_class(config)
    if is_resumed:
        return model
    checkpoint = arguments.backbone_checkpoint
    if checkpoint and checkpoint != "none":
        load_backbone_checkpoint(getattr(model.base_model, "backbone", model.base_model), checkpoint)
    elif PartialState().is_main_process:
        print("the backbone starts from random weights; --backbone_checkpoint names others", file=sys.stderr)
    return model


def _starting_config(source: str, model_class: type[PreTrainedModel]) -> PreTrainedConfig:
    """The configuration of the model that is trained on. Of an image model, a video model's begins with its values."""
    config = load_config(source)
    if model_class is CCNetForVideoSegmentation and config.model_type == CCNetConfig.model_type:
        return model_class.config_class.from_pretrained(source)
    return config


def _load_model(source: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model in `source`, in training's float32; parts that `config` adds or shapes otherwise start anew."""
    model, found = load_weights(model_class, source, config, torch.float32, is_partial=True)
    missing = [key for key in found["missing_keys"] if not key.startswith(_ADDED_PARTS) and ".attention." not in key]
    mismatched = [key for key, *_ in found["mismatched_keys"] if "classifier." not in key]
    if missing or mismatched:
        raise InputError(f"{source} has no fitting {sorted(missing + mismatched)[0]}")
    return model


def build_image_processor(
    arguments: ModelArguments, data: TrainingDataArguments, recipe: Recipe | None, training: TrainingRecipe
) -> BaseImageProcessor:
    """The image processor of the model that is trained on, or the recipe's, for the size that is trained on."""
    if source := arguments.model_name_or_path:
        image_processor = load_image_processor(source, load_config(source))
        if recipe is not None and recipe.task == "video":
            image_processor = CCNetVideoProcessor.from_pretrained(source)
    else:
        image_processor = recipe.image_processor()
    if hasattr(image_processor, "do_letterbox"):
        image_processor.do_letterbox = training.letterbox
    if training.letterbox:
        image_processor.size = dict(zip(("height", "width"), training.crop_size, strict=True))
    else:
        image_processor.size = {"shortest_edge": min(training.scale), "longest_edge": max(training.scale)}
    if arguments.num_labels is not None and hasattr(image_processor, "palette"):  # classes of the dataset's own
        image_processor.palette, image_processor.do_reduce_labels = None, False
    if data.do_reduce_labels is not None:
        image_processor.do_reduce_labels = data.do_reduce_labels
    return image_processor


def name_classes(config: PreTrainedConfig, dataset: Dataset) -> None:
    """Call the classes of a model what the dataset calls them.

    Raises:
        InputError: the dataset names another number of classes.
    """
    names = class_names(dataset.dataset) if isinstance(dataset, SegmentationDataset) else None
    if names is None:
        return
    if len(names) != config.num_labels:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise InputError(
            f"the dataset names {len(names)} classes ({shown}), and the model has {config.num_labels}: give "
            f"--num_labels {len(names)}"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}


def build_datasets(
    data: TrainingDataArguments,
    training: TrainingRecipe,
    seed: int,
    task: Task,
    config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
) -> tuple[Dataset, Dataset | None]:
    """What is trained on, augmented, and what is evaluated on, or `None` where nothing is.

    Raises:
        InputError: a split cannot be read; the message names the option that chooses another.
    """
    if not data.label_column_name:
        raise InputError("--label_column_name '' leaves nothing to learn from")
    build, transform = task.load("dataset"), task.load("augmentation")(training, config, image_processor)
    examples = data.load_split(data.train_split, "--train_split names another")
    dataset = build(data, examples, config, image_processor, transform, seed)
    if not training.eval_steps:
        return dataset, None
    hint = "--validation_split names another, --eval_steps 0 trains without evaluation"
    return dataset, build(data, data.load_split(data.validation_split, hint), config, image_processor, seed=seed)
