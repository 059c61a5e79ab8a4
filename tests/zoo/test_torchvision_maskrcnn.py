"""torchvision's Mask R-CNN converted: the same objects in the same pictures, with and without attention."""

import json
import re

import pytest
import torch
from lively_maskrcnn import lively_maskrcnn
from PIL import Image
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms.functional import to_tensor

from ccnet_hf import CCNetForInstanceSegmentation, CCNetInstanceImageProcessor
from ccnet_hf.errors import InputError
from ccnet_hf.zoo.convert import main
from ccnet_hf.zoo.torchvision_maskrcnn import convert_maskrcnn, export_maskrcnn


# Smaller than the published 800 and 1333, and with fewer proposals and classes, so that a test takes seconds.
SIZE = {"shortest_edge": 192, "longest_edge": 320}
PROPOSALS = {"rpn_post_nms_top_n_test": 150}
LIMITS = {"num_classes": 7, "min_size": SIZE["shortest_edge"], "max_size": SIZE["longest_edge"], **PROPOSALS}

OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}."),
)


@pytest.fixture(scope="module")
def pictures(shared_dir):
    names = ("000000471345", "000000516168", "000000444010")
    return [Image.open(shared_dir / "fixtures" / "coco" / "val2017" / f"{name}.jpg").convert("RGB") for name in names]


def old_name(name: str) -> str:
    for pattern, old in OLD_NAMES:
        name = re.sub(pattern, old, name)
    return name


def converted(model, folder, **kwargs):
    """What the folder made of a torchvision model loads as."""
    file = folder / "maskrcnn.pth"
    torch.save(model.state_dict(), file)
    convert_maskrcnn(file, folder / "converted", **kwargs)
    loaded = CCNetForInstanceSegmentation.from_pretrained(folder / "converted", **PROPOSALS).eval()
    return loaded, CCNetInstanceImageProcessor.from_pretrained(folder / "converted", size=SIZE)


def assert_same_detections(found: dict, expected: dict, score: float, box: float) -> None:
    """Every detection has its counterpart, but for those at the end, which another's score may have driven out."""
    last = expected["scores"].min() + 2 * score
    clear = expected["scores"] > last
    assert clear.sum() > 30 and expected["labels"].unique().numel() > 3
    for index in clear.nonzero()[:, 0].tolist():
        near = (found["labels"] == expected["labels"][index]) & (
            (found["boxes"] - expected["boxes"][index]).abs().amax(dim=1) <= box
        )
        near &= (found["scores"] - expected["scores"][index]).abs() <= score
        assert near.any(), index
        if "masks" in expected:
            mask = expected["masks"][index]
            overlaps = [
                (mask & other).sum() / (mask | other).sum() if (mask | other).any() else torch.tensor(1.0)
                for other in found["masks"][near]
            ]
            assert max(overlaps) > 0.995, index


def detections_of(model, processor, picture) -> dict:
    inputs = processor(picture, return_tensors="pt")
    size = [(picture.height, picture.width)]
    with torch.inference_mode():
        outputs = model(**inputs)
    detections = processor.post_process_object_detection(outputs, 0.0, size)[0]
    masks = processor.post_process_instance_segmentation(outputs, 0.0, 0.5, 0.5, size, return_binary_maps=True)[0]
    assert [info["score"] for info in masks["segments_info"]] == detections["scores"].tolist()
    return detections | {"masks": masks["segmentation"]}


@pytest.mark.parametrize(
    ("version", "recurrence", "number"),
    [
        ("v1", 0, 1),
        pytest.param("frozen", 2, 3, marks=pytest.mark.nightly),
        pytest.param("v2", 0, 1, marks=pytest.mark.nightly),
    ],
)
def test_a_converted_model_sees_what_torchvision_sees(tmp_path, pictures, version, recurrence, number):
    theirs = lively_maskrcnn(version=version, **LIMITS)
    ours, processor = converted(theirs, tmp_path, num_labels=7, recurrence=recurrence)
    backbone = ours.config.backbone_config
    assert backbone.attention_stage == ("stage3" if recurrence else None)
    assert (backbone.frozen_batch_norm, backbone.batch_norm_eps) == (
        (True, 0.0) if version == "frozen" else (False, 1e-5)
    )
    for picture in pictures[:number]:
        with torch.inference_mode():
            expected = theirs([to_tensor(picture)])[0]
        expected["masks"] = expected["masks"][:, 0] > 0.5
        assert_same_detections(detections_of(ours, processor, picture), expected, score=1e-3, box=0.1)

    inputs = processor(pictures[0], return_tensors="pt")
    size = tuple(int(side) for side in inputs["pixel_mask"][0].nonzero().amax(dim=0) + 1)
    with torch.inference_mode():
        features = theirs.backbone(inputs["pixel_values"])
        proposals, _ = theirs.rpn(ImageList(inputs["pixel_values"], [size]), features)
        expected = theirs.roi_heads(features, proposals, [size])[0][0]
        found = ours(**inputs)
    found = processor.post_process_object_detection(found, 0.0, [size])[0]
    del expected["masks"]
    assert_same_detections(found, expected, score=1e-5, box=0.01)


def test_old_names_and_the_way_back(tmp_path):
    theirs = lively_maskrcnn(version="frozen")
    state_dict = theirs.state_dict()
    file = tmp_path / "old.pth"
    torch.save({old_name(name): tensor for name, tensor in state_dict.items()}, file)
    assert "rpn.head.conv.weight" in torch.load(file)
    convert_maskrcnn(file, tmp_path / "converted", recurrence=1)
    export_maskrcnn(tmp_path / "converted", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth")
    assert again.keys() == state_dict.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state_dict.items())
    lively_maskrcnn(seed=1, version="frozen").load_state_dict(again)
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["id2label"]["1"] == "person" and config["id2label"]["90"] == "toothbrush"
    assert config["id2label"]["0"] == config["id2label"]["12"] == "N/A" and len(config["id2label"]) == 91
    assert config["backbone_config"]["attention_recurrence"] == 1


def test_attention_that_is_trained_is_not_lost_on_the_way_back(tmp_path):
    ours, _ = converted(lively_maskrcnn(num_classes=7), tmp_path, num_labels=7)
    with torch.no_grad():
        ours.backbone.stages[2].attention.gamma.fill_(0.1)
    ours.save_pretrained(tmp_path / "trained")
    with pytest.raises(InputError, match="attention with a gamma other than 0"):
        export_maskrcnn(tmp_path / "trained", tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()


def test_a_state_dict_that_does_not_fit_is_refused(tmp_path):
    state_dict = lively_maskrcnn(num_classes=7).state_dict()
    file = tmp_path / "other.pth"
    torch.save(state_dict, file)
    with pytest.raises(InputError, match=r"has 7 classes where 91 were expected.*pass num_labels=7"):
        convert_maskrcnn(file, tmp_path / "converted")
    convert_maskrcnn(file, tmp_path / "own", num_labels=7)
    assert CCNetForInstanceSegmentation.from_pretrained(tmp_path / "own").config.num_labels == 7
    del state_dict["rpn.head.cls_logits.weight"]
    torch.save(state_dict, file)
    with pytest.raises(InputError, match=r"missing: rpn\.head\.cls_logits\.weight"):
        convert_maskrcnn(file, tmp_path / "converted", num_labels=7)
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match="no Mask R-CNN of torchvision"):
        convert_maskrcnn(file, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_the_command(tmp_path, capsys):
    file = tmp_path / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    file.parent.mkdir()
    file.write_bytes(b"damaged")
    arguments = ["--variant", "maskrcnn-r50-fpn-coco", "--output", str(tmp_path / "converted")]
    # The published file is looked for under its name, and is not what its name says.
    assert main([*arguments, "--checkpoints", str(file.parent)]) == 1
    assert "bf2d0c1e" in capsys.readouterr().err and not (tmp_path / "converted").exists()
    torch.save(lively_maskrcnn(version="frozen").state_dict(), tmp_path / "own.pth")
    assert main([*arguments, "--checkpoint", str(tmp_path / "own.pth"), "--recurrence", "0"]) == 0
    assert CCNetForInstanceSegmentation.from_pretrained(tmp_path / "converted").config.num_labels == 91
