"""The command that trains a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import datasets
import huggingface_hub.utils.logging
import torch
import transformers.utils.logging
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import set_seed
from huggingface_hub import HfApi

from ccnet_hf.command import run_command
from ccnet_hf.configuration_ccnet import CCNetConfig
from ccnet_hf.data import get_benchmark
from ccnet_hf.data.loading import SegmentationDataset, class_frequencies, load_split
from ccnet_hf.evaluation import evaluate_dataset
from ccnet_hf.hub import retry
from ccnet_hf.inference import Predictor
from ccnet_hf.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.recipes import TrainingRecipe, get_recipe, override_training
from ccnet_hf.training.arguments import MODEL_FIELDS, TrainArguments, with_config_file
from ccnet_hf.training.augmentation import training_transforms
from ccnet_hf.training.initialization import load_backbone_checkpoint
from ccnet_hf.training.loop import Trainer, TrainingSettings
from ccnet_hf.training.optimization import class_weights_from_frequencies
from ccnet_hf.training.report import save_report


def train(arguments: TrainArguments) -> None:
    """Train a CCNet by a recipe; start it with `accelerate launch`."""
    datasets.disable_progress_bars()  # one bar is enough
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # what matters of it is in the errors
    recipe = get_recipe(arguments.variant)
    given = {f.name: getattr(arguments, f.name) for f in fields(TrainingRecipe)}
    training = override_training(recipe.training, given)
    output_dir = Path(arguments.output_dir)
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    trackers = _trackers(arguments.report_to)
    accelerator = Accelerator(log_with=trackers or None, project_dir=str(output_dir))
    hub_model_id = None
    if arguments.push_to_hub and accelerator.is_main_process:
        # Now, because a name that is taken or a token that may not write should not end a training of days.
        name = arguments.hub_model_id or output_dir.resolve().name
        private = arguments.hub_private_repo or None
        hub_model_id = retry(lambda: HfApi().create_repo(name, private=private, exist_ok=True), name).repo_id
    set_seed(arguments.seed)
    model = _build_model(arguments)
    set_seed(arguments.seed, device_specific=True)  # processes start from one model, but drop different channels

    image_processor = recipe.image_processor()
    image_processor.size = {"shortest_edge": min(training.scale), "longest_edge": max(training.scale)}
    ignore_index = model.config.semantic_loss_ignore_index
    benchmark = get_benchmark(recipe.benchmark)
    reduce_labels = benchmark.reduce_labels if arguments.do_reduce_labels is None else arguments.do_reduce_labels

    def load(split: str, transform=None) -> SegmentationDataset:
        columns = (arguments.image_column_name, arguments.label_column_name)
        return SegmentationDataset(
            load_split(arguments.dataset_name, split, *columns, streaming=arguments.streaming),
            num_labels=model.config.num_labels,
            ignore_index=ignore_index,
            reduce_labels=reduce_labels,
            transform=transform,
            seed=arguments.seed,
            skip_corrupt=arguments.skip_corrupt,
        )

    transform = training_transforms(
        training, image_processor.image_mean, image_processor.image_std, ignore_index, benchmark.flip_label_pairs
    )
    dataset = load(arguments.train_split, transform)
    class_weights = None
    if arguments.class_weight_power:
        class_weights = class_weights_from_frequencies(class_frequencies(dataset), arguments.class_weight_power)
    validation = load(arguments.validation_split) if training.eval_steps else None

    unscored: set[str] = set()

    def evaluate(model: CCNetForSemanticSegmentation) -> dict[str, float]:
        scores = evaluate_dataset(Predictor(model, image_processor), validation)
        unscored.update(scores.get("skipped", ()))
        return {f"eval_{name}": value for name, value in scores.items() if isinstance(value, float)}

    if trackers:
        # Trackers take numbers and text.
        accelerator.init_trackers("ccnet", config={name: str(value) for name, value in asdict(arguments).items()})
    settings = TrainingSettings(
        output_dir=output_dir,
        per_device_batch_size=arguments.per_device_train_batch_size
        or training.batch_size // accelerator.num_processes,
        seed=arguments.seed,
        ema_decay=arguments.ema_decay,
        frozen_modules=arguments.freeze,
        checkpointing_steps=arguments.checkpointing_steps,
        checkpoints_total_limit=arguments.checkpoints_total_limit,
        resume_from_checkpoint=arguments.resume_from_checkpoint,
        load_best_model_at_end=arguments.load_best_model_at_end,
        logging_steps=arguments.logging_steps,
        compile=arguments.compile,
        shuffle_buffer_size=arguments.shuffle_buffer_size,
        dataloader_num_workers=arguments.dataloader_num_workers,
    )
    scoring = None if validation is None else evaluate
    trainer = Trainer(accelerator, model, image_processor, dataset, training, settings, class_weights, scoring)
    try:
        trainer.run()
        corrupt = trainer.all_corrupt()
        if accelerator.is_main_process:
            for messages, fate in ((corrupt, "replaced in training"), (unscored, "left out of evaluation")):
                if messages:
                    print(f"{len(messages)} corrupt examples were {fate}:", *sorted(messages), sep="\n  ")
            predictor = Predictor(trainer.trained_model.eval(), image_processor)
            save_report(output_dir, predictor, dataset if validation is None else validation, benchmark.palette)
            if hub_model_id:
                _upload(output_dir, hub_model_id)
    finally:
        accelerator.end_training()


def _trackers(names: list[str] | None) -> list[str]:
    """The trackers asked for; TensorBoard where nothing is said and it is installed."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    if names is None:
        if "tensorboard" in installed:
            return ["tensorboard"]
        print("no tracker: TensorBoard is not installed (pip install tensorboard)", file=sys.stderr)
        return []
    if names == ["none"]:
        return []
    known = [str(tracker) for tracker in LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            raise ValueError(f"--report_to takes none or some of {', '.join(known)}, got {name!r}")
        if name not in installed:
            raise ValueError(f"--report_to {name}: it is not installed")
    return names


def _build_model(arguments: TrainArguments) -> CCNetForSemanticSegmentation:
    """The recipe's model, new or with the given backbone, or the model that is trained on."""
    if arguments.model_name_or_path and arguments.backbone_checkpoint:
        raise ValueError("--model_name_or_path brings its own backbone, --backbone_checkpoint is for a new model")
    recipe = get_recipe(arguments.variant)
    if arguments.model_name_or_path:
        config = CCNetConfig.from_pretrained(arguments.model_name_or_path)
    else:
        config = recipe.config()
    changes = {name: getattr(arguments, name) for name in MODEL_FIELDS if getattr(arguments, name) is not None}
    config = CCNetConfig.from_dict(config.to_dict() | changes)  # checks the values
    if arguments.output_stride:
        config.backbone_config.output_stride = arguments.output_stride
    if arguments.model_name_or_path:
        return CCNetForSemanticSegmentation.from_pretrained(
            arguments.model_name_or_path, config=config, dtype=torch.float32
        )
    model = CCNetForSemanticSegmentation(config)
    checkpoint = arguments.backbone_checkpoint or recipe.backbone_checkpoint
    # A checkpoint to resume from brings the backbone.
    if checkpoint and checkpoint != "none" and not arguments.resume_from_checkpoint:
        load_backbone_checkpoint(model.model.backbone, checkpoint)
    return model


def _upload(output_dir: Path, hub_model_id: str) -> None:
    """Put what stands in `output_dir` on the Hub, without the checkpoints."""
    commit = retry(
        lambda: HfApi().upload_folder(
            repo_id=hub_model_id,
            folder_path=output_dir,
            ignore_patterns=["checkpoint-*", "checkpoint-*/**", ".*"],
            commit_message="Trained with ccnet_hf",
        ),
        hub_model_id,
    )
    print(f"uploaded: {commit.commit_url}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    try:
        argv = with_config_file(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run_command(TrainArguments, train, argv, prog="train.py")
