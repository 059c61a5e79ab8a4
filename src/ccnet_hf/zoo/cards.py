"""Model cards of the zoo: one template, filled from the recipes and the benchmarks' records and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from ccnet_hf.command import run_command
from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.files import write_text
from ccnet_hf.recipes import PADDLESEG_VARIANT, RECIPES, SHORT_NAMES, Recipe, zoo_recipes
from ccnet_hf.zoo.card_fields import recipe_fields, reported_metadata
from ccnet_hf.zoo.paddleseg_card import render_paddleseg_card
from ccnet_hf.zoo.recipe_cards import render_recipe_card


NAMESPACE = "<namespace>"  # stands in the cards of the repository; a pushed card has the real one

_MMSEGMENTATION = "https://github.com/open-mmlab/mmsegmentation/blob/v1.2.2/configs/ccnet"

_TEMPLATE = Template("""\
---
$metadata
---

# $name

CCNet ([Criss-Cross Attention for Semantic Segmentation](https://arxiv.org/abs/1811.11721)) with a dilated
ResNet-$depth (output stride 8) for the $num_labels classes of $title: every pixel gathers context from its row and its
column, twice with the same weights, and so from the whole image. mmsegmentation trained the weights; `ccnet_hf`
converted them.
$identity
## Use

With the package `ccnet_hf` installed, importing it registers CCNet with transformers:

```python
import ccnet_hf
from transformers import pipeline

segments = pipeline("image-segmentation", model="$repo_id")("street.jpg")
```

Without it, the same code comes with the checkpoint:

```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="$repo_id", trust_remote_code=True)
segments = segmenter("street.jpg")
```

`AutoImageProcessor`, `AutoModel` and `AutoModelForSemanticSegmentation` load it both ways too. On the Hub the name is
`$repo_id`; a name without a namespace is a local folder.

## Protocol

- Size: test images are resized by the keep-ratio rule to at most $long pixels on the longer and $short on the
  shorter side, bilinear as OpenCV does it. The image processor in this repository does that.
- Inference: $inference. Corners are $corners when logits are resized.
- Multi-scale with flip: ratios $ratios of the image as loaded, each also mirrored;
  softmax scores are averaged.
- Score: one confusion matrix over the $num_validation images of the validation split, 255 ignored$reduce_labels.

`pipeline` is whole-image inference at a single scale: $pipeline_remark.
The command below, of the package's `train` extra, takes the protocol from `config.json`;
`--scales $scales --flip` makes it the second one.

```bash
ccnet-hf eval --model_name_or_path $repo_id --dataset_name DATASET
```

## Scores

As reported by mmsegmentation for [the checkpoint]($checkpoint_url)
this one is converted from ([model zoo]($zoo_url),
[$mmseg_config]($config_url)):

| | $title validation mIoU |
|---|---|
| single scale | $mean_iou |
| multi-scale and flip | $mean_iou_multi_scale_flip |
$costs
Not measured by this project: neither figure, nor the score after conversion. What is proven is the conversion: with
other weights in the same file format, logits, losses and gradients equal mmsegmentation 1.2.2's.

## Data and licence

Trained on $title ($num_train images; [terms]($license_link): $data_license).
mmsegmentation publishes the weights under Apache-2.0, as `ccnet_hf` does its code. This card does not decide whether
the terms of the data extend to weights trained on it: read them before any use beyond research.

## Training

As mmsegmentation's config states it (nothing was trained for this repository): $iterations iterations of SGD with
$batch_size images, momentum $momentum, weight decay $weight_decay, learning rate $learning_rate with polynomial
decay of power $power down to $min_learning_rate. Images resized by a random ratio of $ratio_low to $ratio_high,
crops of $crop (height x width), drawn again up to ten times while one class covers $cat_max_ratio or more of the
labelled pixels, flip, photometric distortion.
Synchronised batch norm, backbone from ImageNet weights. Cross entropy over all pixels, ignored ones in the
denominator, plus 0.4 times that of an auxiliary FCN head.

## Limits

- It knows these $num_labels classes and gives every pixel one of them, also where none fits.
- Trained on $scenes: other scenes, cameras, weather or periods were not tested.
- Thin, small and rare objects are segmented worse than the mean says; scores of single classes are not reported.
- Nothing here has been examined for uses in which a wrong label harms somebody.

## Citation

```bibtex
@article{huang2020ccnet,
  title   = {{CCNet}: Criss-Cross Attention for Semantic Segmentation},
  author  = {Huang, Zilong and Wang, Xinggang and Wei, Yunchao and Huang, Lichao and Shi, Humphrey and Liu, Wenyu and
             Huang, Thomas S.},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2020}
}
@misc{mmseg2020,
  title        = {{MMSegmentation}: {OpenMMLab} Semantic Segmentation Toolbox and Benchmark},
  author       = {{MMSegmentation Contributors}},
  howpublished = {\\url{https://github.com/open-mmlab/mmsegmentation}},
  year         = {2020}
}
```
""")


def repository_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the repositories that hold this variant: its own, and its short one if it has one."""
    return (recipe.name, *(short_name for short_name, name in SHORT_NAMES.items() if name == recipe.name))


def render_card(recipe: Recipe, name: str | None = None, namespace: str = NAMESPACE) -> str:
    """Write the model card of a zoo variant, of a human parser, of a video model or of one on a modern backbone.

    Args:
        recipe: of it.
        name: name of the repository, if it is the short one.
        namespace: where on the Hub it is.

    Returns:
        The text of its README.md, metadata included.
    """
    name = name or recipe.name
    if recipe.checkpoint_file is None:
        return render_recipe_card(recipe, name, namespace)
    if recipe.name == PADDLESEG_VARIANT:
        return render_paddleseg_card(recipe, name, namespace)
    benchmark, training, reported = get_benchmark(recipe.benchmark), recipe.training, recipe.reported
    depth = sum(recipe.model["backbone_config"]["depths"]) * 3 + 2
    inference, pipeline_remark = _inference(recipe)
    return _TEMPLATE.substitute(
        recipe_fields(recipe, name, namespace),
        metadata=reported_metadata(recipe, name, "mmsegmentation model zoo", _config_url(recipe)).to_yaml().strip(),
        depth=depth,
        identity=_identity(recipe, name, namespace),
        inference=inference,
        corners="aligned" if recipe.model["align_corners"] else "not aligned",
        pipeline_remark=pipeline_remark,
        reduce_labels=", label 0 of the source too" if benchmark.reduce_labels else "",
        zoo_url=f"{_MMSEGMENTATION}/README.md",
        mmseg_config=recipe.mmseg_config,
        config_url=_config_url(recipe),
        mean_iou=f"{reported['mean_iou']:.2f}",
        mean_iou_multi_scale_flip=f"{reported['mean_iou_multi_scale_flip']:.2f}",
        costs=_costs(reported),
        cat_max_ratio=f"{training.cat_max_ratio:.0%}",
    )


def _config_url(recipe: Recipe) -> str:
    return f"{_MMSEGMENTATION}/{recipe.mmseg_config}.py"


def _identity(recipe: Recipe, name: str, namespace: str) -> str:
    """The paragraph on the other name of the same checkpoint, if there is one."""
    others = [other for other in repository_names(recipe) if other != name]
    if not others:
        return ""
    return f"\n`{namespace}/{others[0]}` holds the same checkpoint.\n"


def _inference(recipe: Recipe) -> tuple[str, str]:
    """How the scores are computed, and what that means for `pipeline`."""
    inference = recipe.model["inference"]
    if inference["mode"] == "whole":
        return "the whole image at once", "the single-scale protocol, and not the multi-scale one"
    crop, stride = ("x".join(map(str, inference[name])) for name in ("crop_size", "stride"))
    return (
        f"sliding windows of {crop} with stride {stride}, logits averaged where they overlap",
        "it does not reproduce these scores, which come from sliding windows",
    )


def _costs(reported: dict[str, float | None]) -> str:
    memory, speed = reported["training_memory_gb"], reported["frames_per_second_v100"]
    if memory is None or speed is None:
        return ""
    return f"\nReported there as well: {memory} GB of memory per GPU in training, {speed} frames/s on a V100.\n"


@dataclass
class CardsArguments:
    output_dir: str = field(default="model_cards", metadata={"help": "folder for the cards"})


def write_cards(arguments: CardsArguments) -> None:
    """Write the model card of every zoo variant, and of the recipes for other tasks and on modern backbones."""
    folder = Path(arguments.output_dir)
    others = (recipe for recipe in RECIPES.values() if recipe.task != "semantic" or recipe.backbone_terms)
    for recipe in (*zoo_recipes(), *others):
        write_text(folder / f"{recipe.name}.md", render_card(recipe))


def main(argv: Sequence[str] | None = None, prog: str = "python -m ccnet_hf.zoo cards") -> int:
    return run_command(CardsArguments, write_cards, argv, prog)
