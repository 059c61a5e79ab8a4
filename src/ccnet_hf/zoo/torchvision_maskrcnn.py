"""The checkpoints of torchvision's Mask R-CNN, and the way back to them.

The heads are the same modules here and there. The published file of the first version has frozen batch norms, which
count no batches and have an eps of 0, and the names that torchvision gave its layers before 0.13.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from ccnet_hf.data.benchmarks.coco import COCO
from ccnet_hf.errors import InputError, reading, using
from ccnet_hf.files import atomic_file, atomic_folder, check_file, check_new
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.image_processing_ccnet_instance import CCNetInstanceImageProcessor
from ccnet_hf.models.modeling_ccnet_instance import CCNetForInstanceSegmentation
from ccnet_hf.untrusted_checkpoints import read_state_dict
from ccnet_hf.zoo.mmsegmentation import check_keys, check_tensors


VARIANT = "maskrcnn-r50-fpn-coco"
CHECKPOINT_URL = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url

_DEPTHS = {6: [3, 4, 6, 3], 23: [3, 4, 23, 3]}  # by the blocks of the third stage

# Parts of a key, ours and torchvision's, replaced from top to bottom.
_RENAMED_PARTS = (
    ("backbone.stem.convolutions.0.convolution.", "backbone.body.conv1."),
    ("backbone.stem.convolutions.0.normalization.", "backbone.body.bn1."),
    ("backbone.stages.0.blocks.", "backbone.body.layer1."),
    ("backbone.stages.1.blocks.", "backbone.body.layer2."),
    ("backbone.stages.2.blocks.", "backbone.body.layer3."),
    ("backbone.stages.3.blocks.", "backbone.body.layer4."),
    (".conv1.convolution.", ".conv1."),
    (".conv1.normalization.", ".bn1."),
    (".conv2.convolution.", ".conv2."),
    (".conv2.normalization.", ".bn2."),
    (".conv3.convolution.", ".conv3."),
    (".conv3.normalization.", ".bn3."),
    (".shortcut.convolution.", ".downsample.0."),
    (".shortcut.normalization.", ".downsample.1."),
)

# What the names of layers were before torchvision 0.13, as patterns, and what they are.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn1\.(weight|bias)", r"roi_heads.mask_head.0.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn2\.(weight|bias)", r"roi_heads.mask_head.1.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn3\.(weight|bias)", r"roi_heads.mask_head.2.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn4\.(weight|bias)", r"roi_heads.mask_head.3.0.\1"),
)


def torchvision_key(key: str) -> str:
    """Name of a `CCNetForInstanceSegmentation` state-dict entry in torchvision's `MaskRCNN`."""
    if key.startswith("fpn."):
        return f"backbone.{key}"
    for ours, theirs in _RENAMED_PARTS:
        key = key.replace(ours, theirs)
    return key


def convert_maskrcnn(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    num_labels: int | None = None,
    recurrence: int | None = None,
) -> None:
    """Convert a state dict of torchvision's `maskrcnn_resnet50_fpn`, or of its second version, or of the same network
    with ResNet-101, into a folder with model, config and processor.

    Args:
        checkpoint: `.pth` file, a state dict or a dictionary with one as `state_dict` or `model`. If its name ends
            with eight hexadecimal digits they must be the start of its SHA-256.
        output_dir: folder to write. It appears complete or not at all; an existing one that holds files is refused.
        num_labels: number of classes with the background, for a file with other classes than COCO's, which then have
            no names.
        recurrence: rounds of attention that the model gets, 2 if `None`, 0 for none. It starts with gamma 0, so that
            the model computes what torchvision's does until it is trained.

    Raises:
        InputError: a checkpoint that is damaged, foreign, or holds more than data, entries that are missing, left
            over, of the wrong shape or not finite, or an output folder in use.
        OSError: a file that cannot be read or written.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    check_new(output_dir)
    state_dict = {_new_name(name): tensor for name, tensor in read_state_dict(checkpoint).items()}
    with using(""):
        config = CCNetInstanceConfig(**_config_fields(checkpoint, state_dict, num_labels, recurrence))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the attention, which is in no file
        model = CCNetForInstanceSegmentation(config)
    expected = model.state_dict()
    sources = {key: torchvision_key(key) for key in expected if ".attention." not in key}
    shapes = {source: expected[key].shape for key, source in sources.items()}
    check_keys(checkpoint, set(shapes), set(state_dict))
    tensors = check_tensors(checkpoint, state_dict, shapes)
    model = model.to(next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()))
    model.load_state_dict({key: tensors[source] for key, source in sources.items()}, strict=False)
    with atomic_folder(output_dir) as unfinished:
        model.eval().save_pretrained(unfinished)
        CCNetInstanceImageProcessor().save_pretrained(unfinished)


def _new_name(name: str) -> str:
    for old, new in _OLD_NAMES:
        if re.fullmatch(old, name):
            return re.sub(old, new, name)
    return name


def _config_fields(
    checkpoint: Path, state_dict: dict[str, torch.Tensor], num_labels: int | None, recurrence: int | None
) -> dict[str, Any]:
    """What the entries of a checkpoint say of its network."""
    depth = len({name.split(".")[3] for name in state_dict if name.startswith("backbone.body.layer3.")})
    if depth not in _DEPTHS:
        raise InputError(f"{checkpoint} is no Mask R-CNN of torchvision with ResNet-50 or ResNet-101")
    scores = state_dict.get("roi_heads.box_predictor.cls_score.weight")
    found = 0 if scores is None or scores.ndim != 2 else scores.shape[0]
    wanted = COCO.num_labels if num_labels is None else num_labels
    if found != wanted:
        raise InputError(
            f"{checkpoint} has {found} classes where {wanted} were expected, the background among them; to convert it "
            f"with its own classes, pass num_labels={found}"
        )
    counts_batches = "backbone.body.bn1.num_batches_tracked" in state_dict
    backbone_config = {
        "model_type": "ccnet_resnet",
        "depths": _DEPTHS[depth],
        "stem_type": "conv7",
        "output_stride": 32,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "frozen_batch_norm": not counts_batches,
        "batch_norm_eps": 1e-5 if counts_batches else 0.0,
    }
    if recurrence != 0:
        backbone_config |= {
            "attention_stage": "stage3",
            "attention_recurrence": 2 if recurrence is None else recurrence,
        }
    heads = {
        "head_batch_norm": "backbone.fpn.inner_blocks.0.1.weight" in state_dict,
        "rpn_num_convolutions": _count(state_dict, r"rpn\.head\.conv\.\d+\.0\.weight"),
        "box_num_convolutions": _count(state_dict, r"roi_heads\.box_head\.\d+\.0\.weight"),
    }
    names = {}
    if num_labels is None:
        id2label = COCO.id2label
        names = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    return {"backbone_config": backbone_config, "num_labels": found, **heads, **names}


def _count(state_dict: dict[str, torch.Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in state_dict)


def export_maskrcnn(folder: str | os.PathLike, output: str | os.PathLike) -> None:
    """Write the model of a folder as a state dict that torchvision's `MaskRCNN` loads. Every tensor keeps its bytes.

    Args:
        folder: what `convert_maskrcnn` or a training has written.
        output: file to write, atomically.

    Raises:
        InputError: the folder holds no such model, its attention would be lost, or the file exists.
        OSError: the file cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise InputError(f"{output} exists; name a new file")
    check_file(output)
    with reading(folder):
        model = CCNetForInstanceSegmentation.from_pretrained(folder)
    backbone = model.config.backbone_config
    if backbone.model_type != "ccnet_resnet" or backbone.stem_type != "conv7" or backbone.output_stride != 32:
        raise InputError(f"{folder} has another backbone than torchvision's Mask R-CNN")
    tensors = model.state_dict()
    if any(key.endswith(".attention.gamma") and tensor.any() for key, tensor in tensors.items()):
        raise InputError(f"{folder} has attention with a gamma other than 0, which torchvision's Mask R-CNN lacks")
    state_dict = {torchvision_key(key): tensor for key, tensor in tensors.items() if ".attention." not in key}
    with atomic_file(output) as unfinished:
        torch.save(state_dict, unfinished)
