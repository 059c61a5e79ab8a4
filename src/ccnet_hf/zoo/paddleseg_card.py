"""The model card of PaddleSeg's CCNet, filled from its recipe and the benchmark's record."""

from string import Template

from ccnet_hf.recipes import Recipe
from ccnet_hf.zoo.card_fields import recipe_fields, reported_metadata


_README = "https://github.com/PaddlePaddle/PaddleSeg/blob/d7975e7c/configs/ccnet/README.md"

_TEMPLATE = Template("""\
---
$metadata
---

# $name

CCNet ([Criss-Cross Attention for Semantic Segmentation](https://arxiv.org/abs/1811.11721)) with a dilated
ResNet-101 (V1d, output stride 8) for the $num_labels classes of $title, as PaddleSeg trains it: every pixel gathers
context from its row and its column, twice with the same weights, and so from the whole image. Of all published
checkpoints of CCNet it has the best reported single-scale score on $title.

**The published file has not been converted by this project**, which could not download it. The conversion is proven
on files that Paddle itself wrote in the same format, and on the whole network with other weights. If weights lie
beside this card, whoever put them here has converted PaddleSeg's.

## Get it

```bash
ccnet-hf convert_checkpoint --variant $variant --output $variant
```

downloads [the checkpoint]($checkpoint_url) and converts it; a file that is there already is
named with `--checkpoint model.pdparams`. PaddleSeg publishes no hash of it. It is a pickle, which is read without
running code from it: anything in it but arrays of numbers is refused.

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

On the Hub the name is `$repo_id`; a name without a namespace is a local folder.

## Protocol

- Size: test images are resized by the keep-ratio rule to at most $long pixels on the longer and $short on the
  shorter side, and padded to $pad_height x $pad_width (height x width) at the right and below with the mean colour.
  Images that are higher than wide become higher than that: `ccnet-hf` sees them without padding, the image processor
  refuses them unless it is called with `do_pad=False`.
- Input: red, green and blue in 0..1, mean and standard deviation 0.5.
- Inference: the whole image at once. Corners are not aligned when logits are resized.
- Multi-scale with flip: the padded network input resized by each ratio, each also mirrored; the logits are averaged,
  without a softmax. `config.json` says so (`"average": "logits"`), `--average probabilities` is mmsegmentation's way.
  PaddleSeg does not state the ratios of its figure; $ratios are those of the example in its documentation.
- Score: one confusion matrix over the $num_validation images of the validation split, 255 ignored. PaddleSeg counts
  a class that neither labels nor predictions have as 1, `ccnet_hf` leaves it out; on this split there is none.

`pipeline` is the single-scale protocol. The command below, of the package's `train` extra, takes it from
`config.json`; `--flip` makes it the second row of the table, `--scales $scales --flip` a third one.

```bash
ccnet-hf eval --model_name_or_path $repo_id --dataset_name DATASET
```

## Scores

As [PaddleSeg]($readme) reports them:

| | $title validation mIoU |
|---|---|
| single scale | $mean_iou |
| flip | $mean_iou_flip |
| multi-scale and flip | $mean_iou_multi_scale_flip |

Not measured by this project: neither figure, nor the score after conversion. What is proven is the conversion: with
other weights in the same file format, logits, losses and gradients equal those of PaddleSeg at d7975e7c.
The flip figure is older than PaddleSeg's averaging of logits: it stems from averaged probabilities.

## Data and licence

Trained on $title ($num_train images; [terms]($license_link): $data_license).
PaddleSeg is under Apache-2.0, as is the code of `ccnet_hf`; its licence does not speak of the weights. This card does
not decide whether the terms of the data extend to weights trained on it: read them before any use beyond research.

## Training

As PaddleSeg's configuration states it (nothing was trained for this repository): $iterations iterations of SGD with
$batch_size images, momentum $momentum, weight decay $weight_decay, learning rate $learning_rate with polynomial
decay of power $power down to $min_learning_rate. Images resized by a random ratio of $ratio_low to $ratio_high in
steps of $ratio_step, crops of $crop (height x width), flip, distortion of brightness, contrast, saturation and hue.
Synchronised batch norm, backbone from distilled ImageNet weights. Cross entropy of the hard pixels (OHEM at full
resolution: those whose class has a probability strictly below $ohem_threshold, or below that of the
$ohem_min_kept-th hardest pixel), plus 0.4 times that of all labelled pixels of an auxiliary FCN head.

`ccnet-hf train --variant $variant` trains by this recipe but for three things: the distortion is mmsegmentation's,
dropout is of whole channels, and the backbone starts from GluonCV's ImageNet weights of the same network.

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
@misc{liu2021paddleseg,
  title         = {{PaddleSeg}: A High-Efficient Development Toolkit for Image Segmentation},
  author        = {Liu, Yi and Chu, Lutao and Chen, Guowei and Wu, Zewu and Chen, Zeyu and Lai, Baohua and
                   Hao, Yuying},
  year          = {2021},
  eprint        = {2101.06175},
  archivePrefix = {arXiv}
}
```
""")


def render_paddleseg_card(recipe: Recipe, name: str, namespace: str) -> str:
    """Write the model card of PaddleSeg's CCNet.

    Args:
        recipe: of it.
        name: name of the repository.
        namespace: where on the Hub it is.

    Returns:
        The text of its README.md, metadata included.
    """
    reported = recipe.reported
    return _TEMPLATE.substitute(
        recipe_fields(recipe, name, namespace),
        metadata=reported_metadata(recipe, name, "PaddleSeg", _README).to_yaml().strip(),
        variant=recipe.name,
        pad_height=recipe.pad_size["height"],
        pad_width=recipe.pad_size["width"],
        readme=_README,
        **{score: f"{reported[score]:.2f}" for score in ("mean_iou", "mean_iou_flip", "mean_iou_multi_scale_flip")},
        ratio_step=recipe.training.ratio_step,
        ohem_threshold=recipe.model["ohem_threshold"],
        ohem_min_kept=f"{recipe.model['ohem_min_kept']:,}",
    )
