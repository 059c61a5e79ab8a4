"""Model cards of what this project has no weights of: human parsers, video, instances, and modern backbones."""

from string import Template

from huggingface_hub import ModelCardData

from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.recipes import CONVERTED_PARSERS, Recipe


_TEMPLATE = Template("""\
---
$metadata
---

# $name

$network

**This project publishes neither weights nor a score of it.** If weights lie beside this card,
whoever put them here $origin; $licence

## Use

```python
$use
```

On the Hub the same code stands beside the weights: `trust_remote_code=True` needs no package.

## Get it

```bash
$command
```

## Reported

$reported

## Data and licence

Classes and colours are those of $title ($num_labels classes$terms). The code is under Apache-2.0.$weights

## Limits

- It knows these $num_labels classes$limit.
- The numbers of the code are proven on deterministic weights, not on trained ones.
- Nothing here has been examined for uses in which a wrong label harms somebody.

## Citation

```bibtex
@article{huang2020ccnet,
  title   = {{CCNet}: Criss-Cross Attention for Semantic Segmentation},
  author  = {Huang, Zilong and Wang, Xinggang and Wei, Yunchao and Huang, Lichao and Shi, Humphrey and Liu, Wenyu and
             Huang, Thomas S.},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2020}
}$citations
```
""")

_CE2P_CITATION = """
@inproceedings{liu2019devil,
  title     = {Devil in the Details: Towards Accurate Single and Multiple Human Parsing},
  author    = {Liu, Ting and Ruan, Tao and Huang, Zilong and Wei, Yunchao and Wei, Shikui and Zhao, Yao and
               Huang, Thomas},
  booktitle = {AAAI},
  year      = {2019}
}"""
_SCHP_CITATION = """
@article{li2020self,
  title   = {Self-Correction for Human Parsing},
  author  = {Li, Peike and Xu, Yunqiu and Wei, Yunchao and Yang, Yi},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year    = {2020}
}"""

_MASK_R_CNN_CITATION = """
@inproceedings{he2017mask,
  title     = {Mask {R-CNN}},
  author    = {He, Kaiming and Gkioxari, Georgia and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {ICCV},
  year      = {2017}
}"""
# Of a task: what else the paper's network comes from, and has to be cited.
_CITATIONS = {"semantic": "", "parsing": _CE2P_CITATION, "video": "", "instance": _MASK_R_CNN_CITATION}
_BACKBONES = {"convnext": "ConvNeXt-T", "dinov3_vit": "DINOv3's ViT-S/16", "swin": "Swin-T"}
_TAGS = {
    "semantic": "semantic-segmentation",
    "parsing": "human-parsing",
    "video": "video-segmentation",
    "instance": "instance-segmentation",
}

_PIPELINE = """\
import ccnet_hf
from transformers import pipeline

segments = pipeline("image-segmentation", model="{repo_id}")("{picture}.jpg")"""
_VIDEO = """\
import ccnet_hf
from transformers import AutoModelForSemanticSegmentation, AutoVideoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("{repo_id}")
processor = AutoVideoProcessor.from_pretrained("{repo_id}")
outputs = model(**processor("street.mp4", return_tensors="pt"))
maps = processor.post_process_semantic_segmentation(outputs)  # one for each frame"""

# What others report of the network that a recipe is for; nothing of it is measured here.
_REPORTED = {
    "ccnet-r101-lip": "The paper (TPAMI version): 55.47 mIoU on LIP val. Rounds, output stride and learning rate are\n"
    "not known; the recipe's are CCNet's and CE2P's.",
    "ce2p-r101-lip": "CE2P's paper: 53.10 mIoU on LIP val. It is the control: the same network without attention.",
    "ce2p-lip": "CE2P's repository: 53.88 mIoU on LIP val at 384x384, single scale, no flip.",
    "schp-lip": "SCHP's repository: 59.36 mIoU on LIP val.",
    "schp-atr": "SCHP's repository: 82.29 mIoU on ATR test.",
    "schp-pascal": "SCHP's repository: 71.46 mIoU on Pascal-Person-Part val.",
    "ccnet-r50-coco": "The paper (TPAMI version): box AP 39.3 and mask AP 36.1 on COCO val2017.",
    "ccnet-r101-coco": "The paper (TPAMI version): box AP 41.0 and mask AP 37.3 on COCO val2017.",
    "ccnet-r101-camvid-video": "The paper (TPAMI version): 79.1 mIoU on CamVid test with clips of five frames, from\n"
    "Cityscapes weights. The schedule is not known; the recipe's is of others on the same data.",
}


def render_recipe_card(recipe: Recipe, name: str, namespace: str) -> str:
    """Write the model card of a human parser, a video model, a model of instances or one on a modern backbone.

    Args:
        recipe: of it.
        name: name of the repository.
        namespace: where on the Hub it is.

    Returns:
        The text of its README.md, metadata included.
    """
    benchmark, repo_id = get_benchmark(recipe.benchmark), f"{namespace}/{name}"
    is_converted = name in CONVERTED_PARSERS
    train = f"accelerate launch scripts/train.py --variant {name} --dataset_name DATASET --output_dir {name}"
    convert = f"python scripts/convert_checkpoint.py --variant {name} --checkpoint FILE.pth --output {name}"
    use = _VIDEO if recipe.task == "video" else _PIPELINE
    finds_instances = recipe.task == "instance"
    return _TEMPLATE.substitute(
        metadata=_metadata(recipe).to_yaml().strip(),
        name=name,
        network=_network(recipe),
        licence="SCHP's repository is under MIT." if name.startswith("schp") else "ask them for their licence.",
        origin="converted or trained them" if is_converted else "trained them",
        use=use.format(repo_id=repo_id, picture="person" if recipe.task == "parsing" else "street"),
        command="\n".join([convert, train] if is_converted else [train]),
        reported=_REPORTED.get(name, "Nothing."),
        title=benchmark.title,
        num_labels=len(benchmark.categories) if finds_instances else benchmark.num_labels,
        limit="" if finds_instances else " and gives every pixel one of them, also where none fits",
        weights=_weights(recipe),
        terms=f"; {benchmark.license}" if benchmark.license else "",
        citations=_CITATIONS[recipe.task] + (_SCHP_CITATION if name.startswith("schp") else ""),
    )


def _weights(recipe: Recipe) -> str:
    """The sentence on the weights that the backbone starts from, where the recipe says what they are."""
    if recipe.backbone_terms is None:
        return ""
    checkpoint = recipe.backbone_checkpoint
    link = f"[{checkpoint}](https://huggingface.co/{checkpoint})"
    return f"\nThe backbone starts from {link},\n{recipe.backbone_terms}."


def _metadata(recipe: Recipe) -> ModelCardData:
    attention = ["criss-cross-attention"] if recipe.model.get("context_module") != "pyramid" else []
    return ModelCardData(
        library_name="transformers",
        license="mit" if recipe.name.startswith("schp") else "unknown",
        pipeline_tag="image-segmentation",
        tags=["ccnet", _TAGS[recipe.task], *attention],
        metrics=["mean_average_precision" if recipe.task == "instance" else "mean_iou"],
    )


def _network(recipe: Recipe) -> str:
    ccnet = "CCNet ([Criss-Cross Attention for Semantic Segmentation](https://arxiv.org/abs/1811.11721))"
    if recipe.task == "semantic":
        return f"{ccnet}\nwith {_BACKBONES[recipe.model['backbone_config']['model_type']]} as its backbone."
    if recipe.task == "video":
        what = "for clips of video: every pixel gathers context from its row, its column and its place in all frames."
        return f"{ccnet}\n{what}"
    if recipe.task == "instance":
        mask_rcnn = "Mask R-CNN ([He et al.](https://arxiv.org/abs/1703.06870)), a network that finds instances,"
        return f"{mask_rcnn}\nwith the recurrent criss-cross attention of {ccnet}\nin its trunk."
    ce2p = "CE2P ([Devil in the Details](https://arxiv.org/abs/1809.05996)), a network for human parsing,"
    if recipe.model["context_module"] == "rcca":
        return f"{ce2p}\nwith the recurrent criss-cross attention of {ccnet}\nas its context module."
    return f"{ce2p} with its own pyramid pooling."
