"""The one table of tasks: what a kind of model needs to be trained and scored."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig

from ccnet_hf.errors import InputError


@dataclass(frozen=True)
class Task:
    """A row of the table. Every field is `"module:name"`, imported when it is asked for: training stands above
    evaluation, and both need the extra `train`.

    Attributes:
        model: class of the models; the type of its `config_class` tells the task of a checkpoint.
        dataset: `(arguments, examples, config, image_processor, transform=None, seed=0)` builds what is trained on or
            scored of the rows of a split, as `SegmentationDataset`, with its `collate` and its `note`.
        augmentation: `(recipe, config, image_processor)` builds the transform of what is trained on.
        objective: `(config, dataset, arguments, accelerator, is_resumed)` builds the `Objective` of the loop, of the
            training's `ModelArguments`.
        evaluator: `(config, dataset, image_processor)` builds an `Evaluator`.
        predictions: `(model, image_processor, dataset)` draws some examples beside what the model makes of them.
    """

    model: str
    dataset: str
    augmentation: str
    objective: str
    evaluator: str
    predictions: str

    def load(self, part: str) -> Any:
        """What one of the fields names, e.g. `task.load("objective")`."""
        module, _, name = getattr(self, part).partition(":")
        return getattr(import_module(module), name)


# name in `Recipe.task` -> what it needs
TASKS = {
    "semantic": Task(
        model="ccnet_hf.models.modeling_ccnet:CCNetForSemanticSegmentation",
        dataset="ccnet_hf.data.dataset_arguments:segmentation_dataset",
        augmentation="ccnet_hf.training.augmentation:semantic_augmentation",
        objective="ccnet_hf.training.objective:semantic_objective",
        evaluator="ccnet_hf.evaluation.evaluator:SemanticEvaluator",
        predictions="ccnet_hf.training.report:draw_label_maps",
    ),
    "parsing": Task(
        model="ccnet_hf.models.modeling_ccnet_parsing:CCNetForHumanParsing",
        dataset="ccnet_hf.data.dataset_arguments:segmentation_dataset",
        augmentation="ccnet_hf.training.augmentation:semantic_augmentation",
        objective="ccnet_hf.training.objective:parsing_objective",
        evaluator="ccnet_hf.evaluation.evaluator:SemanticEvaluator",
        predictions="ccnet_hf.training.report:draw_label_maps",
    ),
    "video": Task(
        model="ccnet_hf.models.modeling_ccnet_video:CCNetForVideoSegmentation",
        dataset="ccnet_hf.data.clips:clip_dataset",
        augmentation="ccnet_hf.training.augmentation:semantic_augmentation",
        objective="ccnet_hf.training.objective:video_objective",
        evaluator="ccnet_hf.evaluation.video_evaluator:VideoEvaluator",
        predictions="ccnet_hf.training.report:draw_clips",
    ),
    "instance": Task(
        model="ccnet_hf.models.modeling_ccnet_instance:CCNetForInstanceSegmentation",
        dataset="ccnet_hf.data.instances:instance_dataset",
        augmentation="ccnet_hf.training.instances:instance_augmentation",
        objective="ccnet_hf.training.instances:instance_objective",
        evaluator="ccnet_hf.evaluation.instance_evaluator:InstanceEvaluator",
        predictions="ccnet_hf.training.instances:draw_instance_examples",
    ),
}


def find_task(config: PreTrainedConfig) -> Task:
    """The task of the models that have this configuration.

    Raises:
        InputError: there is none.
    """
    for task in TASKS.values():
        if task.load("model").config_class.model_type == config.model_type:
            return task
    raise InputError(f"models of type {config.model_type!r} have no training and no evaluation here")
