"""The command that scores a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from accelerate import PartialState

from ccnet_hf.command import run_command
from ccnet_hf.data.loading import SegmentationDataset, load_split
from ccnet_hf.evaluation.loop import evaluate_dataset
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.loading import Dtype, load_checkpoint


@dataclass
class EvalArguments:
    model_name_or_path: str = field(metadata={"help": "folder of a CCNet checkpoint, or namespace/name on the Hub"})
    dataset_name: str = field(metadata={"help": "folder (parquet or save_to_disk) or Hub id of the dataset"})
    split: str = field(default="validation", metadata={"help": "split to score on"})
    name_prefix: str = field(default="", metadata={"help": "score only examples whose name starts so"})
    image_column_name: str = field(default="image", metadata={"help": "column of pictures"})
    label_column_name: str = field(default="label", metadata={"help": "column of label maps"})
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={"help": "label 0 is ignored, others move down by one; default: as the checkpoint has it"},
    )
    mode: Literal["whole", "slide"] | None = field(
        default=None, metadata={"help": "whole picture or sliding window; default: what the checkpoint says"}
    )
    crop_size: list[int] | None = field(
        default=None, metadata={"help": "height and width of the window; default: what the checkpoint says"}
    )
    stride: list[int] | None = field(
        default=None, metadata={"help": "vertical and horizontal distance of windows; default: as above"}
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "average over these ratios of the picture as loaded; 1.0 alone: the checkpoint's test size"},
    )
    flip: bool = field(default=False, metadata={"help": "average over the mirrored picture too"})
    batch_size: int = field(default=1, metadata={"help": "pictures in one forward pass, where their sizes are equal"})
    dtype: Dtype = field(default="auto", metadata={"help": "auto: as stored, but float32 on the CPU"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, ...; auto: the fastest there is"})
    output_json: str | None = field(default=None, metadata={"help": "file for the scores"})


def evaluate(arguments: EvalArguments) -> None:
    """Score a CCNet on a split: mIoU and accuracies from one confusion matrix, at every picture's own size."""
    process = PartialState()
    device = str(process.device) if arguments.device == "auto" and process.num_processes > 1 else arguments.device
    model, image_processor = load_checkpoint(arguments.model_name_or_path, arguments.dtype, device)
    predictor = Predictor(
        model,
        image_processor,
        mode=arguments.mode,
        crop_size=arguments.crop_size,
        stride=arguments.stride,
        scales=arguments.scales,
        flip=arguments.flip,
    )
    split = load_split(
        arguments.dataset_name, arguments.split, arguments.image_column_name, arguments.label_column_name
    )
    if arguments.name_prefix:
        if "name" not in split.column_names:
            raise ValueError(f"{arguments.dataset_name} has no column 'name' for --name_prefix")
        chosen = [i for i, name in enumerate(split["name"]) if name.startswith(arguments.name_prefix)]
        split = split.select(chosen)
    if not len(split):
        raise ValueError(f"{arguments.dataset_name} has no such example in split {arguments.split!r}")
    reduce_labels = arguments.do_reduce_labels
    dataset = SegmentationDataset(
        split,
        num_labels=model.config.num_labels,
        ignore_index=model.config.semantic_loss_ignore_index,
        reduce_labels=image_processor.do_reduce_labels if reduce_labels is None else reduce_labels,
    )
    scores = evaluate_dataset(predictor, dataset, arguments.batch_size)
    if process.is_main_process:
        _report(scores, model.config.id2label, len(dataset))
        if arguments.output_json:
            Path(arguments.output_json).write_text(
                json.dumps({"num_examples": len(dataset), **scores}, indent=1) + "\n"
            )


def _report(scores: dict, id2label: dict[int, str], num_examples: int) -> None:
    width = max(map(len, id2label.values()))
    print(f"{'class':{width}}    IoU  accuracy")
    rows = zip(scores["per_category_iou"], scores["per_category_accuracy"], strict=True)
    for index, (iou, accuracy) in enumerate(rows):
        print(f"{id2label[index]:{width}} {100 * iou:6.2f}    {100 * accuracy:6.2f}")
    means = ", ".join(f"{name} {100 * scores[name]:.2f}" for name in ("mean_iou", "mean_accuracy", "overall_accuracy"))
    print(f"{means} ({num_examples} pictures)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(EvalArguments, evaluate, argv, prog="eval.py")
