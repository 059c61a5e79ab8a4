"""The card of a model that train.py has trained."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from ccnet_hf.evaluation.report import MEANS
from ccnet_hf.files import write_text
from ccnet_hf.hub import CARD_FILE
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.configuration_ccnet_parsing import CCNetParsingConfig
from ccnet_hf.models.configuration_ccnet_video import CCNetVideoConfig


# What says where a training ran and what became of it, rather than what was trained.
_NOT_SHOWN = (
    *("output_dir", "config", "resume_from_checkpoint", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
)
_CCNET = "CCNet ([Criss-Cross Attention for Semantic Segmentation](https://arxiv.org/abs/1811.11721))"
_CE2P = "CE2P ([Devil in the Details](https://arxiv.org/abs/1809.05996)), a network for human parsing,"
_USE = """\
import ccnet_hf
from transformers import pipeline

segments = pipeline("image-segmentation", model="{repo_id}")("street.jpg")"""
_USE_OF_VIDEO = """\
import ccnet_hf
from transformers import AutoModelForSemanticSegmentation, AutoVideoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("{repo_id}")
processor = AutoVideoProcessor.from_pretrained("{repo_id}")
outputs = model(**processor("street.mp4", return_tensors="pt"))
maps = processor.post_process_semantic_segmentation(outputs)  # one for each frame"""
_AVERAGE_PRECISIONS = {"box_ap": "box AP", "mask_ap": "mask AP"}
_PACKAGES = ("ccnet-hf", "torch", "transformers", "accelerate", "datasets", "timm")

_TEMPLATE = Template("""\
---
$metadata
---

# $name

$network for $num_labels classes,
trained with `ccnet_hf`$recipe.

## Use

With the package `ccnet_hf` installed, importing it registers CCNet with transformers:

```python
$use
```

On the Hub the same code stands beside the weights: `trust_remote_code=True` needs no package.

## Scores

$scores

## Training

`accelerate launch scripts/train.py --config training.yaml --output_dir $name`, on $num_processes with $precision. In
`training.yaml`, where local folders are named without their paths:

```yaml
$arguments
```

Versions: $versions.

## Licence

Not stated here: it depends on the data and on the weights this model started from.
""")


def write_card(
    output_dir: Path,
    repo_id: str,
    config: PreTrainedConfig,
    options: Mapping[str, Any],
    split: str,
    scores: Mapping[str, float],
    num_processes: int,
    mixed_precision: str,
) -> None:
    """Write `README.md` into `output_dir`.

    Args:
        output_dir: of the training.
        repo_id: what the model is called, as `from_pretrained` takes it.
        config: of the model.
        options: of the training, those that are not as they are by default. Folders are named without the path to
            them.
        split: that was scored.
        scores: of the saved model, `eval_mean_iou`, `eval_mask_ap` and so on (0..1); may be empty.
        num_processes: that trained.
        mixed_precision: as Accelerate calls it, `"no"` for none.
    """
    given = {name: value for name, value in options.items() if name not in _NOT_SHOWN}
    on_hub = {name: given.get(name) for name in ("dataset_name", "model_name_or_path")}
    for name in ("dataset_name", "model_name_or_path", "backbone_checkpoint"):
        if name in given and Path(given[name]).exists():
            given[name], on_hub[name] = Path(given[name]).resolve().name, None
    short_names = MEANS | _AVERAGE_PRECISIONS
    # Where nothing could be scored there is NaN, and with average precision -1.
    percent = {name: 100 * scores[f"eval_{name}"] for name in short_names if scores.get(f"eval_{name}", -1) >= 0}
    metric_type, metric_names = _metric(config)
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=given["dataset_name"],
            dataset_name=given["dataset_name"],
            dataset_split=split,
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=round(percent[name], 2),
        )
        for name, metric_name in metric_names.items()
        if name in percent
    ]
    name = repo_id.rpartition("/")[2]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["ccnet", *_tags(config)],
        datasets=on_hub["dataset_name"],
        base_model=on_hub["model_name_or_path"],
        metrics=[metric_type],
        model_name=name if results else None,
        eval_results=results or None,
    )
    shown = ", ".join(f"{short_names[name]} {value:.2f}" for name, value in percent.items())
    card = _TEMPLATE.substitute(
        metadata=metadata.to_yaml().strip(),
        name=name,
        repo_id=repo_id,
        network=_network(config),
        use=(_USE_OF_VIDEO if config.model_type == CCNetVideoConfig.model_type else _USE).format(repo_id=repo_id),
        num_labels=config.num_labels,
        recipe=f" by its recipe `{given['variant']}`" if "variant" in given else "",
        scores=f"In percent, over the split `{split}` of `{given['dataset_name']}`: {shown}."
        if shown
        else "None were measured in the training.",
        num_processes="one process" if num_processes == 1 else f"{num_processes} processes",
        precision="float32" if mixed_precision == "no" else f"{mixed_precision} mixed precision",
        arguments=yaml.safe_dump(given, sort_keys=False, default_flow_style=None).strip(),
        versions=", ".join(_versions()),
    )
    write_text(output_dir / CARD_FILE, card)


def _metric(config: PreTrainedConfig) -> tuple[str, dict[str, str]]:
    """The metric that the Hub knows, and the names of its scores here and in its tables."""
    if config.model_type == CCNetInstanceConfig.model_type:
        return "mean_average_precision", _AVERAGE_PRECISIONS
    return "mean_iou", {"mean_iou": MEANS["mean_iou"]}


def _has_attention(config: PreTrainedConfig) -> bool:
    if config.model_type == CCNetInstanceConfig.model_type:
        return getattr(config.backbone_config, "attention_stage", None) is not None
    return getattr(config, "context_module", "rcca") == "rcca" and config.recurrence > 0


def _network(config: PreTrainedConfig) -> str:
    if config.model_type == CCNetVideoConfig.model_type:
        return f"{_CCNET} with 3-D criss-cross attention over clips of video,"
    if config.model_type == CCNetInstanceConfig.model_type:
        return f"Mask R-CNN with the attention of {_CCNET} in its trunk," if _has_attention(config) else "Mask R-CNN"
    if config.model_type != CCNetParsingConfig.model_type:
        return _CCNET
    return f"{_CE2P} with the recurrent criss-cross attention of {_CCNET}" if _has_attention(config) else _CE2P


def _tags(config: PreTrainedConfig) -> list[str]:
    tasks = {CCNetParsingConfig.model_type: "human-parsing", CCNetVideoConfig.model_type: "video-segmentation"}
    tasks[CCNetInstanceConfig.model_type] = "instance-segmentation"
    task = tasks.get(config.model_type, "semantic-segmentation")
    return [task, "criss-cross-attention"] if _has_attention(config) else [task]


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
