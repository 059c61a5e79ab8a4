"""The command that trains a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import datasets
import torch
import transformers.utils.logging
from accelerate import Accelerator
from accelerate.utils import set_seed

from ccnet_hf.command import run_command
from ccnet_hf.configuration_ccnet import CCNetConfig
from ccnet_hf.data import get_benchmark
from ccnet_hf.data.loading import SegmentationDataset, class_frequencies, load_split
from ccnet_hf.data.transforms import training_transforms
from ccnet_hf.evaluation import evaluate_dataset
from ccnet_hf.inference import Predictor
from ccnet_hf.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.recipes import TrainingRecipe, get_recipe
from ccnet_hf.training.initialization import load_backbone_checkpoint
from ccnet_hf.training.loop import Trainer, TrainingSettings
from ccnet_hf.training.optimization import class_weights_from_frequencies


@dataclass
class TrainArguments:
    """Fields named as in `TrainingRecipe` override the recipe."""

    variant: str = field(metadata={"help": "recipe, e.g. ccnet-r101-cityscapes-769x769-80k"})
    dataset_name: str = field(metadata={"help": "folder (parquet or save_to_disk) or Hub id of the dataset"})
    output_dir: str = field(metadata={"help": "folder for the model and its checkpoints"})
    train_split: str = field(default="train", metadata={"help": "split to train on, or several: train+validation"})
    validation_split: str = field(default="validation", metadata={"help": "split to evaluate on"})
    image_column_name: str = field(default="image", metadata={"help": "column of pictures"})
    label_column_name: str = field(default="label", metadata={"help": "column of label maps"})
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={"help": "label 0 is ignored, others move down by one; default: as the benchmark has it"},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "start from this model"})
    backbone_checkpoint: str | None = field(
        default=None, metadata={"help": "start a new model's backbone from this safetensors file"}
    )
    output_stride: int | None = field(default=None, metadata={"help": "of the backbone; default: the recipe's"})
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "modules that do not learn, e.g. model.backbone.stem"}
    )
    class_weight_power: float = field(
        default=0.0, metadata={"help": "classes weigh frequency ** -power in the loss; 0: all alike"}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "evaluate and save a moving average of the weights with this decay; 0: none"}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "pictures in one pass, the rest by accumulation; default: all of a step"}
    )
    checkpointing_steps: int | None = field(default=None, metadata={"help": "steps between two checkpoints"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "checkpoint folder, or 'last' for the newest in output_dir"}
    )
    report_to: str | None = field(default=None, metadata={"help": "tracker, e.g. tensorboard"})
    dataloader_num_workers: int = field(default=4, metadata={"help": "processes that prepare batches"})
    seed: int = field(default=0, metadata={"help": "of every random draw"})

    batch_size: int | None = field(default=None, metadata={"help": "pictures per step over all processes"})
    max_train_steps: int | None = field(default=None, metadata={"help": "length of schedule and training"})
    eval_steps: int | None = field(default=None, metadata={"help": "steps between two evaluations; 0: none"})
    crop_size: list[int] | None = field(default=None, metadata={"help": "height and width of the crop"})
    scale: list[int] | None = field(default=None, metadata={"help": "long and short edge of the resize"})
    ratio_range: list[float] | None = field(default=None, metadata={"help": "range of the resize's random ratio"})
    cat_max_ratio: float | None = field(default=None, metadata={"help": "largest share of one class in a crop"})
    optimizer: str | None = field(default=None, metadata={"help": "sgd or adamw"})
    learning_rate: float | None = field(default=None, metadata={"help": "first learning rate"})
    min_learning_rate: float | None = field(default=None, metadata={"help": "floor of the learning rate"})
    backbone_learning_rate_factor: float | None = field(
        default=None, metadata={"help": "the backbone learns at learning_rate times this"}
    )
    weight_decay: float | None = field(default=None, metadata={"help": "weight decay"})
    warmup_steps: int | None = field(default=None, metadata={"help": "steps of linear warm-up"})
    max_grad_norm: float | None = field(default=None, metadata={"help": "gradients are clipped to this norm"})


def train(arguments: TrainArguments) -> None:
    """Train a CCNet by a recipe; start it with `accelerate launch`."""
    datasets.disable_progress_bars()  # one bar is enough
    transformers.utils.logging.disable_progress_bar()
    recipe = get_recipe(arguments.variant)
    training = _override(recipe.training, arguments)
    output_dir = Path(arguments.output_dir)
    accelerator = Accelerator(log_with=arguments.report_to, project_dir=str(output_dir))
    set_seed(arguments.seed)
    model = _build_model(arguments)
    set_seed(arguments.seed, device_specific=True)  # processes start from one model, but drop different channels

    image_processor = recipe.image_processor()
    image_processor.size = {"shortest_edge": min(training.scale), "longest_edge": max(training.scale)}
    ignore_index = model.config.semantic_loss_ignore_index
    benchmark = get_benchmark(recipe.benchmark)
    reduce_labels = benchmark.reduce_labels if arguments.do_reduce_labels is None else arguments.do_reduce_labels

    def load(split: str, transform=None) -> SegmentationDataset:
        return SegmentationDataset(
            load_split(arguments.dataset_name, split, arguments.image_column_name, arguments.label_column_name),
            num_labels=model.config.num_labels,
            ignore_index=ignore_index,
            reduce_labels=reduce_labels,
            transform=transform,
            seed=arguments.seed,
        )

    transform = training_transforms(training, image_processor.image_mean, image_processor.image_std, ignore_index)
    dataset = load(arguments.train_split, transform)
    class_weights = None
    if arguments.class_weight_power:
        class_weights = class_weights_from_frequencies(class_frequencies(dataset), arguments.class_weight_power)
    evaluate = None
    if training.eval_steps:
        validation = load(arguments.validation_split)

        def evaluate(model: CCNetForSemanticSegmentation) -> dict[str, float]:
            scores = evaluate_dataset(Predictor(model, image_processor), validation)
            return {f"eval_{name}": value for name, value in scores.items() if isinstance(value, float)}

    if arguments.report_to:
        accelerator.init_trackers("ccnet")
    settings = TrainingSettings(
        output_dir=output_dir,
        per_device_batch_size=arguments.per_device_train_batch_size
        or training.batch_size // accelerator.num_processes,
        seed=arguments.seed,
        ema_decay=arguments.ema_decay,
        frozen_modules=arguments.freeze,
        checkpointing_steps=arguments.checkpointing_steps,
        resume_from_checkpoint=arguments.resume_from_checkpoint,
        dataloader_num_workers=arguments.dataloader_num_workers,
    )
    trainer = Trainer(accelerator, model, image_processor, dataset, training, settings, class_weights, evaluate)
    try:
        trainer.run()
    finally:
        accelerator.end_training()


def _override(recipe: TrainingRecipe, arguments: TrainArguments) -> TrainingRecipe:
    """The recipe with the values given on the command line."""
    given = {f.name: getattr(arguments, f.name, None) for f in fields(TrainingRecipe)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name in ("crop_size", "scale", "ratio_range"):
        if given[name] is not None and len(given[name]) != 2:
            raise ValueError(f"--{name} takes two values, got {len(given[name])}")
    if given["learning_rate"] is not None and given["learning_rate"] <= 0:
        raise ValueError(f"--learning_rate must be positive, got {given['learning_rate']}")
    if given["optimizer"] not in (None, "sgd", "adamw"):
        raise ValueError(f"--optimizer is sgd or adamw, got {given['optimizer']!r}")
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def _build_model(arguments: TrainArguments) -> CCNetForSemanticSegmentation:
    """The recipe's model, new or with the given backbone, or the model that is trained on."""
    if arguments.model_name_or_path and arguments.backbone_checkpoint:
        raise ValueError("--model_name_or_path brings its own backbone, --backbone_checkpoint is for a new model")
    if arguments.model_name_or_path:
        config = CCNetConfig.from_pretrained(arguments.model_name_or_path)
    else:
        config = get_recipe(arguments.variant).config()
    if arguments.output_stride:
        config.backbone_config.output_stride = arguments.output_stride
    if arguments.model_name_or_path:
        return CCNetForSemanticSegmentation.from_pretrained(
            arguments.model_name_or_path, config=config, dtype=torch.float32
        )
    model = CCNetForSemanticSegmentation(config)
    if arguments.backbone_checkpoint:
        load_backbone_checkpoint(model.model.backbone, arguments.backbone_checkpoint)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(TrainArguments, train, argv, prog="train.py")
