"""The command that trains a recipe."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path

import datasets
import huggingface_hub.utils.logging
import torch
import transformers.utils.logging
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id
from torchvision.transforms import v2

from ccnet_hf.data.benchmarks import flip_label_pairs
from ccnet_hf.data.images import turned_note
from ccnet_hf.data.label_counts import label_counts, sample_label_counts
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError, describe, reading, using
from ccnet_hf.evaluation import evaluate_dataset
from ccnet_hf.evaluation.report import unlabelled_classes
from ccnet_hf.files import DISK_ERRNOS, explained
from ccnet_hf.hub import CARD_FILE, HubRepository, publish, retry
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.loading import (
    check_finite,
    load_checkpoint,
    load_config,
    load_image_processor,
    require_backbone,
    weight_headers,
)
from ccnet_hf.limits import check_range
from ccnet_hf.models.configuration_ccnet import CCNetConfig
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor
from ccnet_hf.models.modeling_ccnet import CCNetForSemanticSegmentation
from ccnet_hf.recipes import Recipe, TrainingRecipe, get_recipe, override_training
from ccnet_hf.remote_code import CONFIG_FILE, PROCESSOR_FILE, published_files
from ccnet_hf.training.augmentation import training_transforms
from ccnet_hf.training.card import write_card
from ccnet_hf.training.checkpoints import sole_training
from ccnet_hf.training.initialization import freeze, load_backbone_checkpoint
from ccnet_hf.training.loop import Trainer, TrainingSettings, check_settings
from ccnet_hf.training.optimization import class_weights_from_counts
from ccnet_hf.training.progress import LOG_FILE
from ccnet_hf.training.report import CURVES_FILE, save_report
from ccnet_hf.training.training_arguments import MODEL_FIELDS, TrainArguments, main
from ccnet_hf.visualization import complete_palette


# What a model may get when it is trained on: attention where it had none, heads of losses it was not trained with.
_ADDED_PARTS = ("model.head.attention.", "auxiliary_head.", "category_projection.")


def train(arguments: TrainArguments) -> None:
    """Train a CCNet by a recipe; start it with `accelerate launch`."""
    datasets.disable_progress_bars()  # one bar is enough
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # what matters of it is in the errors
    recipe = get_recipe(arguments.variant)
    training = override_training(recipe.training, {f.name: getattr(arguments, f.name) for f in fields(TrainingRecipe)})
    check_range("--class_weight_power", arguments.class_weight_power, 0, 10)
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    trackers = _trackers(arguments.report_to)
    try:
        accelerator = Accelerator(log_with=trackers or None, project_dir=arguments.output_dir)
    except (ValueError, ImportError) as error:  # what `accelerate launch` and its configuration ask for
        raise InputError(f"Accelerate: {describe(error)}") from error
    with _ended(accelerator), sole_training(Path(arguments.output_dir), accelerator):
        _train(arguments, recipe, training, accelerator)


@contextmanager
def _ended(accelerator: Accelerator) -> Iterator[None]:
    """End the training for Accelerate and its trackers. What has ended it before is not hidden by what a tracker then
    cannot write any more, and a full disk is reported once."""
    excepthook = threading.excepthook

    def report(thread) -> None:
        # A tracker that writes in a thread of its own raises the same again when it is given the next numbers.
        if not (isinstance(thread.exc_value, OSError) and thread.exc_value.errno in DISK_ERRNOS):
            excepthook(thread)

    threading.excepthook = report
    try:
        try:
            yield
        except BaseException:
            with suppress(Exception):
                accelerator.end_training()
            raise
        with explained(Path(accelerator.project_dir)):
            accelerator.end_training()
    finally:
        threading.excepthook = excepthook


def _train(arguments: TrainArguments, recipe: Recipe, training: TrainingRecipe, accelerator: Accelerator) -> None:
    settings = _settings(arguments, training, accelerator)
    check_settings(accelerator, training, settings, evaluates=True)
    repo_id = settings.output_dir.resolve().name
    if arguments.push_to_hub and accelerator.is_main_process:
        # Now, because a token that may not write should not end a training of days.
        repo_id = _create_repository(arguments.hub_model_id or repo_id, arguments.hub_private_repo)
    set_seed(arguments.seed)
    model = _build_model(arguments, recipe)
    freeze(model, arguments.freeze)  # refuses unknown names now
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze {' '.join(arguments.freeze)} leaves nothing that learns")
    set_seed(arguments.seed, device_specific=True)  # processes start from one model, but drop different channels
    image_processor = _build_image_processor(arguments, recipe, training)
    dataset, validation = _build_datasets(arguments, training, model.config, image_processor)
    class_weights = _count_labels(arguments, accelerator, dataset, model.config)
    unscored: set[str] = set()
    turned: set[str] = set()

    def evaluate(model: CCNetForSemanticSegmentation) -> dict[str, float]:
        scores = evaluate_dataset(Predictor(model, image_processor), validation)
        unscored.update(scores["skipped"])
        turned.update(scores["turned"])
        return {f"eval_{name}": value for name, value in scores.items() if isinstance(value, float)}

    if arguments.report_to is None and not accelerator.log_with and accelerator.is_main_process:
        print("no tracker: TensorBoard is not installed (pip install tensorboard)", file=sys.stderr)
    if accelerator.log_with:
        # Trackers take numbers and text.
        with explained(settings.output_dir):
            accelerator.init_trackers("ccnet", config={name: str(value) for name, value in asdict(arguments).items()})
    scoring = None if validation is None else evaluate
    trainer = Trainer(accelerator, model, image_processor, dataset, training, settings, class_weights, scoring)
    scores = trainer.run()
    corrupt = trainer.all_corrupt()
    if not accelerator.is_main_process:
        return
    for messages, fate in ((corrupt, "replaced in training"), (unscored, "left out of evaluation")):
        if messages:
            print(f"{len(messages)} corrupt examples were {fate}:", *sorted(messages), sep="\n  ")
    if turned:
        print(f"in evaluation, {turned_note(sorted(turned))}")
    # As it was saved: a sharded model does not run on one process alone.
    predictor = Predictor(*load_checkpoint(str(settings.output_dir), "float32", str(accelerator.device)))
    palette = complete_palette(image_processor.palette, model.config.num_labels)
    save_report(settings.output_dir, predictor, dataset if validation is None else validation, palette)
    precision = accelerator.mixed_precision
    write_card(settings.output_dir, repo_id, model.config, arguments, scores, accelerator.num_processes, precision)
    if arguments.push_to_hub:
        _upload(settings.output_dir, repo_id)


def _settings(arguments: TrainArguments, training: TrainingRecipe, accelerator: Accelerator) -> TrainingSettings:
    batch_size = arguments.per_device_train_batch_size
    if batch_size is None:
        batch_size = training.batch_size // accelerator.num_processes
    elif batch_size < 1:
        raise InputError(f"per_device_train_batch_size must be at least 1, got {batch_size}")
    checkpointing_steps = arguments.checkpointing_steps
    if checkpointing_steps is None:
        checkpointing_steps = training.eval_steps or math.ceil(training.max_train_steps / 10)
    own = {
        "output_dir": Path(arguments.output_dir),
        "per_device_batch_size": batch_size,
        "frozen_modules": arguments.freeze,
        "checkpointing_steps": checkpointing_steps or None,
        "checkpoints_total_limit": arguments.checkpoints_total_limit or None,
    }
    same = {f.name: getattr(arguments, f.name) for f in fields(TrainingSettings) if f.name not in own}
    return TrainingSettings(**own | same)


def _create_repository(name: str, private: bool) -> str:
    """Make sure that there is a repository to upload to; returns its whole name."""
    api = HfApi()
    with using("--hub_model_id"):
        validate_repo_id(name)
    repo_id = retry(lambda: api.create_repo(name, private=private or None, exist_ok=True), name).repo_id
    if private and not retry(lambda: api.repo_info(repo_id), repo_id).private:
        raise InputError(f"{repo_id} exists and is public, and --hub_private_repo asks for a private one")
    return repo_id


def _trackers(names: list[str] | None) -> list[str]:
    """The trackers asked for; TensorBoard where nothing is said and it is installed."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    if names is None:
        return ["tensorboard"] if "tensorboard" in installed else []
    if names == ["none"]:
        return []
    known = [str(tracker) for tracker in LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            raise InputError(f"--report_to takes none or some of {', '.join(known)}, got {name!r}")
        if name not in installed:
            raise InputError(f"--report_to {name}: it is not installed")
    return names


def _build_model(arguments: TrainArguments, recipe: Recipe) -> CCNetForSemanticSegmentation:
    """The recipe's model, new or with the given backbone, or the model that is trained on."""
    source, num_labels = arguments.model_name_or_path, arguments.num_labels
    if source and arguments.backbone_checkpoint:
        raise InputError("--model_name_or_path brings its own backbone, --backbone_checkpoint is for a new model")
    changes = {name: getattr(arguments, name) for name in MODEL_FIELDS if getattr(arguments, name) is not None}
    config = (load_config(source) if source else recipe.config()).to_dict()
    if num_labels is not None:
        check_range("--num_labels", num_labels, 2, 255)  # label maps are held in bytes, 255 being no class
        config = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
        config["num_labels"] = num_labels
    if arguments.output_stride is not None:
        if arguments.output_stride not in (8, 16, 32):  # timm takes other numbers for one of these
            raise InputError(f"--output_stride is 8, 16 or 32, got {arguments.output_stride}")
        backbone = config["backbone_config"]
        if "output_stride" not in backbone:
            raise InputError(f"--output_stride: a backbone of type {backbone['model_type']!r} has none to choose")
        changes["backbone_config"] = backbone | {"output_stride": arguments.output_stride}
    with using(source or f"--variant {arguments.variant}"):
        config = CCNetConfig.from_dict(config | changes)  # checks the values
    require_backbone(config)
    if source:
        return _load_model(source, config)
    model = CCNetForSemanticSegmentation(config)
    checkpoint = arguments.backbone_checkpoint or recipe.backbone_checkpoint
    # A checkpoint to resume from brings the backbone.
    if arguments.resume_from_checkpoint:
        return model
    if checkpoint and checkpoint != "none":
        load_backbone_checkpoint(model.model.backbone, checkpoint)
    elif PartialState().is_main_process:
        print("the backbone starts from random weights; --backbone_checkpoint names others", file=sys.stderr)
    return model


def _load_model(source: str, config: CCNetConfig) -> CCNetForSemanticSegmentation:
    """The model in `source`, in training's float32; parts that `config` adds or shapes otherwise start anew."""
    if Path(source).is_dir():
        weight_headers(Path(source))  # names the file that is damaged
    with reading(source):
        model, found = CCNetForSemanticSegmentation.from_pretrained(
            source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
        check_finite(model)
    missing = [key for key in found["missing_keys"] if not key.startswith(_ADDED_PARTS)]
    mismatched = [key for key, *_ in found["mismatched_keys"] if "classifier." not in key]
    if missing or mismatched:
        raise InputError(f"{source} has no fitting {sorted(missing + mismatched)[0]}")
    return model


def _build_image_processor(arguments: TrainArguments, recipe: Recipe, training: TrainingRecipe) -> CCNetImageProcessor:
    """The image processor of the model that is trained on, or the recipe's, for the size that is trained on."""
    if arguments.model_name_or_path:
        source = arguments.model_name_or_path
        image_processor = load_image_processor(source, load_config(source))
    else:
        image_processor = recipe.image_processor()
    image_processor.size = {"shortest_edge": min(training.scale), "longest_edge": max(training.scale)}
    if arguments.num_labels is not None:  # classes of the dataset's own
        image_processor.palette, image_processor.do_reduce_labels = None, False
    if arguments.do_reduce_labels is not None:
        image_processor.do_reduce_labels = arguments.do_reduce_labels
    return image_processor


def _build_datasets(
    arguments: TrainArguments,
    training: TrainingRecipe,
    config: CCNetConfig,
    image_processor: CCNetImageProcessor,
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """What is trained on, augmented, and what is evaluated on, or `None` where nothing is."""
    if not arguments.label_column_name:
        raise InputError("--label_column_name '' leaves nothing to learn from")
    transform = training_transforms(
        training,
        image_processor.image_mean,
        image_processor.image_std,
        config.semantic_loss_ignore_index,
        flip_label_pairs(config.id2label),
    )

    def load(split: str, transform: v2.Transform | None = None, hint: str = "") -> SegmentationDataset:
        examples = arguments.load_split(split, hint)
        return SegmentationDataset(
            examples,
            num_labels=config.num_labels,
            ignore_index=config.semantic_loss_ignore_index,
            reduce_labels=arguments.reduces_labels(examples, image_processor.do_reduce_labels),
            transform=transform,
            seed=arguments.seed,
            skip_corrupt=arguments.skip_corrupt,
            max_image_pixels=arguments.max_image_pixels,
            source=arguments.dataset_name,
        )

    dataset = load(arguments.train_split, transform, "--train_split names another")
    if not training.eval_steps:
        return dataset, None
    hint = "--validation_split names another, --eval_steps 0 trains without evaluation"
    return dataset, load(arguments.validation_split, hint=hint)


def _count_labels(
    arguments: TrainArguments, accelerator: Accelerator, dataset: SegmentationDataset, config: CCNetConfig
) -> torch.Tensor | None:
    """Say which classes have no labelled pixel, as far as is counted; the weights of the classes, if asked for."""
    weights, counted = None, ""
    if arguments.class_weight_power:
        counts = label_counts(dataset, accelerator.process_index, accelerator.num_processes)
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
        weights = class_weights_from_counts(counts[: config.num_labels], arguments.class_weight_power)
    elif accelerator.is_main_process and not arguments.resume_from_checkpoint:
        counts, number = sample_label_counts(dataset)
        counted = f"of {number} label maps"
    else:
        return None
    num_ignored = int(counts[dataset.ignore_index])
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    counts = counts[: config.num_labels].tolist()
    line = unlabelled_classes(counts, num_ignored, dataset.ignore_index, class_names, counted)
    if line is not None and accelerator.is_main_process:
        print(line, file=sys.stderr)
    return weights


def _upload(output_dir: Path, repo_id: str) -> None:
    """Put the model, its code, its card and what its training logged on the Hub."""
    # Not the trackers' files, which name local folders, nor the predictions, which show the dataset's images.
    patterns = (CONFIG_FILE, "model*.safetensors*", PROCESSOR_FILE, CARD_FILE, CURVES_FILE, LOG_FILE)
    files = {path.name: path for pattern in patterns for path in sorted(output_dir.glob(pattern))}
    config, processor = (json.loads(files[name].read_text()) for name in (CONFIG_FILE, PROCESSOR_FILE))
    repository = HubRepository(repo_id, "model", files | published_files(config, processor))
    try:
        publish(HfApi(), repository, private=False, overwrite=True)  # it exists; this leaves it as private as it is
    except OSError as error:
        raise OSError(f"{error}; the same command with --resume_from_checkpoint last goes on here") from error
    print(f"uploaded: https://huggingface.co/{repo_id}")


__all__ = ["main", "train"]
