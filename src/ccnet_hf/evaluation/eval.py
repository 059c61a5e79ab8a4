"""The command that scores a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ccnet_hf.data.benchmarks.cityscapes import CITYSCAPES
from ccnet_hf.errors import InputError, reading
from ccnet_hf.evaluation.cityscapes_server import save_label_ids
from ccnet_hf.evaluation.eval_arguments import EvalArguments, main
from ccnet_hf.evaluation.evaluator import Evaluator
from ccnet_hf.evaluation.report import to_json
from ccnet_hf.evaluation.tasks import find_task
from ccnet_hf.files import check_file, check_writable, remove_leftovers, write_text
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.video import CCNetVideoSession
from ccnet_hf.limits import check_range


_MAX_BATCH_SIZE = 1024  # images, which are all held decoded


def evaluate(arguments: EvalArguments) -> dict[str, Any]:
    """Score a CCNet on a split: mIoU and accuracies from one confusion matrix, at every image's own size.

    Returns:
        What `evaluate_dataset` returns, in every process.

    Raises:
        InputError: a checkpoint, dataset or option that cannot be used.
        OSError: a file that cannot be written.
    """
    transformers.utils.logging.disable_progress_bar()
    check_range("--batch_size", arguments.batch_size, 1, _MAX_BATCH_SIZE)
    if not arguments.label_column_name and arguments.export_dir is None:
        raise InputError("without a column of label maps there is nothing to score; --export_dir exports predictions")
    # Left alone, processes without a GPU would not know of each other.
    on_cpu = (
        arguments.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    )
    process = PartialState(cpu=on_cpu)
    try:
        return _evaluate(arguments, process)
    finally:
        # Threads of a group left open may reach for Python while the interpreter shuts down, which aborts the process.
        process.destroy_process_group()


def _evaluate(arguments: EvalArguments, process: PartialState) -> dict[str, Any]:
    if arguments.device == "auto" and process.num_processes > 1:
        arguments = replace(arguments, device=str(process.device))
    for file in (arguments.output_json, arguments.output_markdown):
        if file is not None:
            check_file(file)  # before the work, not after it
    predictor = arguments.load_predictor()
    config = predictor.config
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    export = None
    if arguments.export_dir is not None:
        if tuple(class_names) != CITYSCAPES.class_names:
            raise InputError(f"--export_dir is for models with the {CITYSCAPES.num_labels} classes of Cityscapes")
        export = partial(save_label_ids, folder=Path(arguments.export_dir))
        check_writable(arguments.export_dir)
        if process.is_main_process:
            remove_leftovers(Path(arguments.export_dir))
        process.wait_for_everyone()

    examples = _examples(arguments)
    task = find_task(config)
    dataset = task.load("dataset")(arguments, examples, config, predictor.image_processor)
    evaluator = task.load("evaluator")(config, dataset, predictor.image_processor)
    result = evaluator.score(predictor, arguments.batch_size, export)
    if process.is_main_process:
        _report(arguments, predictor, class_names, evaluator, result)
    return result


def _examples(arguments: EvalArguments) -> datasets.Dataset | datasets.IterableDataset:
    split = arguments.load_split(arguments.split, "--split names another")
    prefix = arguments.name_prefix
    if not prefix:
        return split
    if "name" not in split.column_names:
        raise InputError(f"{arguments.dataset_name} has no column 'name' for --name_prefix")
    if arguments.streaming:
        return split.filter(lambda name: name.startswith(prefix), input_columns="name")
    with reading(arguments.dataset_name):
        names = split["name"][:]
    return split.select([index for index, name in enumerate(names) if name.startswith(prefix)])


def _report(
    arguments: EvalArguments,
    predictor: Predictor | CCNetVideoSession,
    class_names: Sequence[str],
    evaluator: Evaluator,
    result: dict[str, Any],
) -> None:
    counted = f"{result['num_examples']} images of {arguments.dataset_name}, {arguments.split}"
    if arguments.export_dir is not None:
        print(f"label ids of {counted} in {arguments.export_dir}")
    lines = evaluator.report(result, counted)
    print(*lines, sep="\n")

    how = {"dtype": str(predictor.model.dtype).removeprefix("torch."), "runtime": arguments.runtime}
    if isinstance(predictor, CCNetVideoSession):
        how = {"num_frames": predictor.num_frames} | how
    elif isinstance(predictor, Predictor):
        how = _views(predictor) | how
    about = {"model": arguments.model_name_or_path, "dataset": arguments.dataset_name, "split": arguments.split, **how}
    if arguments.output_json is not None:
        write_text(arguments.output_json, to_json({**about, "class_names": class_names, **result}))
    if arguments.output_markdown is not None:
        protocol = ", ".join(f"{name} {value}" for name, value in how.items() if value is not None)
        heading = [
            f"# {arguments.model_name_or_path} on {arguments.dataset_name}, {arguments.split}",
            "",
            protocol,
            "",
        ]
        write_text(arguments.output_markdown, "\n".join([*heading, *lines]) + "\n")


def _views(predictor: Predictor) -> dict[str, Any]:
    """How a predictor sees an image, by name."""
    return {
        "mode": "whole" if predictor.crop_size is None else "slide",
        "crop_size": predictor.crop_size,
        "stride": predictor.stride,
        "scales": list(predictor.scales),
        "flip": predictor.flip,
        "average": predictor.average if predictor.is_augmented else None,
    }


__all__ = ["EvalArguments", "evaluate", "main"]
