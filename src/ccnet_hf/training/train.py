"""The command that trains a recipe."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils.logging
import torch
import transformers.utils.logging
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import set_seed

from ccnet_hf.errors import InputError, describe
from ccnet_hf.files import DISK_ERRNOS, explained
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.recipes import TrainingRecipe, get_recipe
from ccnet_hf.training.building import build_datasets, build_image_processor, build_model, choose_task, name_classes
from ccnet_hf.training.card import write_card
from ccnet_hf.training.checkpoints import sole_training
from ccnet_hf.training.checks import check_settings
from ccnet_hf.training.distributed import precision_hint
from ccnet_hf.training.initialization import freeze
from ccnet_hf.training.loop import TrainingLoop
from ccnet_hf.training.publishing import create_repository, upload
from ccnet_hf.training.report import save_report
from ccnet_hf.training.settings import TrainingSettings
from ccnet_hf.training.training_arguments import (
    ModelArguments,
    PublishingArguments,
    TrainingDataArguments,
    given_options,
    main,
)


def train(
    model: ModelArguments,
    data: TrainingDataArguments,
    training: TrainingRecipe,
    settings: TrainingSettings,
    publishing: PublishingArguments,
) -> None:
    """Train a CCNet by a recipe; start it with `accelerate launch`."""
    datasets.disable_progress_bars()  # one bar is enough
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # what matters of it is in the errors
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    trackers = _trackers(publishing.report_to)
    try:
        accelerator = Accelerator(log_with=trackers or None, project_dir=settings.output_dir)
    except (ValueError, ImportError) as error:  # what `accelerate launch` and its configuration ask for
        raise InputError(f"Accelerate: {describe(error)}") from error
    with _ended(accelerator), sole_training(settings.output_dir, accelerator):
        _train(model, data, training, settings, publishing, accelerator)


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


def _train(
    arguments: ModelArguments,
    data: TrainingDataArguments,
    training: TrainingRecipe,
    settings: TrainingSettings,
    publishing: PublishingArguments,
    accelerator: Accelerator,
) -> None:
    check_settings(accelerator, training, settings, evaluates=True)
    repo_id = settings.output_dir.resolve().name
    if publishing.push_to_hub and accelerator.is_main_process:
        # Now, because a token that may not write should not end a training of days.
        repo_id = create_repository(publishing.hub_model_id or repo_id, publishing.hub_private_repo)
    recipe = get_recipe(arguments.variant) if arguments.variant else None
    task = choose_task(arguments, recipe)
    is_resumed = settings.resume_from_checkpoint is not None
    set_seed(settings.seed)
    model = build_model(arguments, recipe, task, is_resumed)
    freeze(model, [*training.frozen_modules, *settings.freeze])  # refuses unknown names now
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze {' '.join(settings.freeze)} leaves nothing that learns")
    set_seed(settings.seed, device_specific=True)  # processes start from one model, but drop different channels
    config = model.config
    image_processor = build_image_processor(arguments, data, recipe, training)
    dataset, validation = build_datasets(data, training, settings.seed, task, config, image_processor)
    name_classes(config, dataset)
    objective = task.load("objective")(config, dataset, arguments, accelerator, is_resumed)
    evaluator = None if validation is None else task.load("evaluator")(config, validation, image_processor)

    parts = (arguments, data, training, settings, publishing)
    if accelerator.is_main_process and (hint := precision_hint(accelerator)):
        print(hint, file=sys.stderr)
    _start_trackers(accelerator, settings.output_dir, parts)
    loop = TrainingLoop(accelerator, model, image_processor, dataset, objective, training, settings, evaluator)
    scores = loop.run()
    corrupt = loop.state.all_corrupt()
    if not accelerator.is_main_process:
        return
    if corrupt:
        print(f"{len(corrupt)} corrupt examples were replaced in training:", *corrupt, sep="\n  ")
    if evaluator is not None:
        for line in evaluator.remarks():
            print(line)
    # As it was saved: a sharded model does not run on one process alone.
    trained, image_processor = load_checkpoint(str(settings.output_dir), "float32", str(accelerator.device))
    shown = dataset if validation is None else validation
    save_report(settings.output_dir, partial(task.load("predictions"), trained, image_processor, shown))
    num_processes, precision = accelerator.num_processes, accelerator.mixed_precision
    options, split = given_options(parts, recipe), data.validation_split
    write_card(settings.output_dir, repo_id, config, options, split, scores, num_processes, precision)
    which = "best" if settings.load_best_model_at_end and loop.state.best_score is not None else "last"
    print(f"{settings.output_dir} holds the {which} model, its card, curves and predictions")
    if publishing.push_to_hub:
        upload(settings.output_dir, repo_id)


def _start_trackers(accelerator: Accelerator, output_dir: Path, parts: tuple[Any, ...]) -> None:
    """Tell the trackers how the training runs."""
    options = {name: value for part in parts for name, value in vars(part).items()}
    if accelerator.log_with:
        # They take numbers and text.
        with explained(output_dir):
            accelerator.init_trackers("ccnet", config={name: str(value) for name, value in options.items()})
    elif options["report_to"] is None and accelerator.is_main_process:
        print("no tracker: TensorBoard is not installed (pip install tensorboard)", file=sys.stderr)


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


__all__ = ["main", "train"]
