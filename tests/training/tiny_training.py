"""A training small enough for a test: a tiny network on eight coloured images."""

from dataclasses import replace

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny_models import tiny_instance_model

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation, CCNetImageProcessor, CCNetInstanceImageProcessor
from ccnet_hf.data.dataset_arguments import DatasetArguments
from ccnet_hf.data.instances import instance_dataset
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.evaluation.evaluator import SemanticEvaluator
from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.augmentation import training_transforms
from ccnet_hf.training.instances import InstanceObjective, MirrorInstances
from ccnet_hf.training.loop import TrainingLoop
from ccnet_hf.training.objective import SemanticObjective
from ccnet_hf.training.settings import TrainingSettings


RECIPE = TrainingRecipe(
    crop_size=(32, 32),
    scale=(48, 36),
    ratio_range=(1.0, 1.3),
    photometric_distortion=False,  # classes are colours
    batch_size=2,
    max_train_steps=4,
    eval_steps=0,
    optimizer="adamw",
    learning_rate=5e-3,
    min_learning_rate=0.0,
    warmup_steps=1,
    max_grad_norm=5.0,
)


def tiny_model(**changes) -> CCNetForSemanticSegmentation:
    torch.manual_seed(0)
    backbone = {
        "model_type": "ccnet_resnet",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 16, 16],
        "stem_size": 8,
        "out_features": ["stage3", "stage4"],
    }
    config = {"backbone_config": backbone, "hidden_size": 16, "auxiliary_channels": 8, "num_labels": 3}
    return CCNetForSemanticSegmentation(CCNetConfig(**(config | changes)))


def coloured_split(size: int = 8) -> datasets.Dataset:
    """Images of two halves, each in the colour of its class."""
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
    labels = []
    for index in range(size):
        label = np.full((36, 48), index % 3, np.uint8)
        label[:, 10 + 4 * index % 30 :] = (index + 1) % 3
        labels.append(label)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    )
    rows = {
        "image": [colours[label] for label in labels],
        "label": labels,
        "name": [f"image{index}" for index in range(size)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


class ScoredBy(SemanticEvaluator):
    """Scores models by a function."""

    def __init__(self, function):
        self.function = function

    def __call__(self, model) -> dict[str, float]:
        return self.function(model)


def build_trainer(
    output_dir,
    recipe=RECIPE,
    model=None,
    transform=None,
    split=None,
    streaming=False,
    skip_corrupt=False,
    mixed_precision="no",
    evaluate=None,
    make_accelerator=Accelerator,
    ema_decay=None,
    **settings,
) -> TrainingLoop:
    """A `TrainingLoop` in this process; `ema_decay` is the recipe's own, or this one, and further keyword arguments
    are fields of the settings."""
    if ema_decay is not None:
        recipe = replace(recipe, ema_decay=ema_decay)
    split = coloured_split() if split is None else split
    for column in ("image", "label"):
        split = split.cast_column(column, datasets.Image(decode=False))
    if streaming:
        split = split.to_iterable_dataset(num_shards=2)
    chain = training_transforms(recipe, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    dataset = SegmentationDataset(
        split, num_labels=3, transform=transform(chain) if transform else chain, skip_corrupt=skip_corrupt
    )
    model = model or tiny_model()
    return _training_loop(
        output_dir,
        recipe,
        settings,
        model=model,
        processor=CCNetImageProcessor(size={"shortest_edge": 36, "longest_edge": 48}),
        dataset=dataset,
        objective=SemanticObjective(model.config),
        evaluator=None if evaluate is None else ScoredBy(evaluate),
        accelerator=(make_accelerator, mixed_precision),
    )


def build_instance_trainer(
    output_dir, folder, recipe=RECIPE, mixed_precision="no", change_model=None, instance_fields=(), **settings
) -> TrainingLoop:
    """As `build_trainer`, of a tiny Mask R-CNN on the pictures that `write_shapes` wrote into `folder`.

    `change_model` is called with the model; `instance_fields` are further fields of its configuration.
    """
    model = tiny_instance_model(num_labels=4, **dict(instance_fields))
    if change_model is not None:
        change_model(model)
    processor = CCNetInstanceImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    arguments = DatasetArguments(dataset_name=str(folder))
    dataset = instance_dataset(arguments, arguments.load_split("train"), model.config, processor, MirrorInstances())
    return _training_loop(
        output_dir,
        recipe,
        settings,
        model=model,
        processor=processor,
        dataset=dataset,
        objective=InstanceObjective(),
        accelerator=(Accelerator, mixed_precision),
    )


def _training_loop(output_dir, recipe, settings, accelerator, **parts) -> TrainingLoop:
    defaults = {
        "output_dir": output_dir,
        "per_device_train_batch_size": recipe.batch_size,
        "checkpointing_steps": 0,
        "checkpoints_total_limit": 0,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "shuffle_buffer_size": 5,
    }
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    torch.manual_seed(1)  # of dropout, and of the regions that are drawn
    make_accelerator, mixed_precision = accelerator
    return TrainingLoop(
        make_accelerator(cpu=True, mixed_precision=mixed_precision),
        recipe=recipe,
        settings=TrainingSettings(**(defaults | settings)),
        **parts,
    )
