"""What the cards of all published checkpoints say of their recipe, their data and their reported scores."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.recipes import Recipe


REPORTED_SPLIT = "validation"


def recipe_fields(recipe: Recipe, name: str, namespace: str) -> dict[str, object]:
    """Fields of a card's template that follow from the recipe of a checkpoint and from the record of its benchmark.

    Args:
        recipe: of it.
        name: name of the repository.
        namespace: where on the Hub it is.
    """
    benchmark, training = get_benchmark(recipe.benchmark), recipe.training
    ratios = [f"{ratio:g}" for ratio in recipe.tta_ratios]
    return {
        "name": name,
        "repo_id": f"{namespace}/{name}",
        "num_labels": benchmark.num_labels,
        "title": benchmark.title,
        "long": recipe.size["longest_edge"],
        "short": recipe.size["shortest_edge"],
        "ratios": ", ".join(ratios),
        "scales": " ".join(ratios),
        "num_validation": f"{benchmark.num_examples[REPORTED_SPLIT]:,}",
        "checkpoint_url": recipe.checkpoint_url,
        "num_train": f"{benchmark.num_examples['train']:,}",
        "license_link": benchmark.license_link,
        "data_license": benchmark.license,
        "iterations": f"{training.max_train_steps:,}",
        "batch_size": training.batch_size,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "learning_rate": training.learning_rate,
        "power": training.power,
        "min_learning_rate": training.min_learning_rate,
        "ratio_low": training.ratio_range[0],
        "ratio_high": training.ratio_range[1],
        "crop": "x".join(map(str, training.crop_size)),
        "scenes": benchmark.scenes,
    }


def reported_metadata(recipe: Recipe, name: str, source_name: str, source_url: str) -> ModelCardData:
    """The metadata of a card, with the single-scale and multi-scale scores that `source_name` reports."""
    benchmark = get_benchmark(recipe.benchmark)
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=benchmark.hub_dataset_id,
            dataset_name=benchmark.title,
            dataset_split=REPORTED_SPLIT,
            metric_type="mean_iou",
            metric_name=metric_name,
            metric_value=recipe.reported[score],
            source_name=source_name,
            source_url=source_url,
        )
        for score, metric_name in (
            ("mean_iou", "mIoU, single scale"),
            ("mean_iou_multi_scale_flip", "mIoU, multi-scale and flip"),
        )
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="other",
        license_name=benchmark.license_name,
        license_link=benchmark.license_link,
        tags=["ccnet", "semantic-segmentation", "criss-cross-attention"],
        datasets=[benchmark.hub_dataset_id],
        metrics=["mean_iou"],
        model_name=name,
        eval_results=results,
    )
