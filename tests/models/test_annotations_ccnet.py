"""COCO's annotations as tensors, against pycocotools and by hand."""

import json

import numpy as np
import pytest
import torch

from ccnet_hf.models.annotations_ccnet import mask_of_segmentation, objects_of_annotations, run_length_encoding


coco_mask = pytest.importorskip("pycocotools.mask")

SIZE = (20, 30)
SQUARE = [5.0, 4.0, 15.0, 4.0, 15.0, 10.0, 5.0, 10.0]


def annotation(**fields) -> dict:
    return {"category_id": 3, "bbox": [5, 4, 10, 6], "area": 60.0, "iscrowd": 0, "segmentation": [SQUARE], **fields}


def test_a_polygon_and_both_encodings_of_it_are_one_mask():
    mask = mask_of_segmentation([SQUARE], SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[4:10, 5:15] = True
    assert np.array_equal(mask, expected)
    counts = run_length_encoding(torch.from_numpy(mask))
    assert counts["size"] == [20, 30] and sum(counts["counts"]) == 600
    assert np.array_equal(mask_of_segmentation(counts, SIZE), mask)
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(mask_of_segmentation({"size": [20, 30], "counts": packed["counts"].decode()}, SIZE), mask)


@pytest.mark.parametrize("fill", [0, 1])
def test_run_lengths_of_masks_of_all_kinds(fill):
    masks = [
        torch.full((3, 4), fill, dtype=torch.bool),
        torch.rand(7, 5, generator=torch.Generator().manual_seed(fill)) > 0.5,
    ]
    for mask in masks:
        encoding = run_length_encoding(mask)
        packed = coco_mask.frPyObjects(encoding, *encoding["size"])
        assert np.array_equal(coco_mask.decode(packed).astype(bool), mask.numpy())


def test_every_annotation_of_the_fixtures_is_as_pycocotools_has_it(shared_dir):
    content = json.loads((shared_dir / "fixtures" / "coco" / "annotations" / "instances_val2017.json").read_text())
    content_train = json.loads((shared_dir / "fixtures/coco/annotations/instances_train2017.json").read_text())
    seen = {"polygons": 0, "runs": 0}
    for part in (content, content_train):
        sizes = {image["id"]: (image["height"], image["width"]) for image in part["images"]}
        for entry in part["annotations"]:
            size, segmentation = sizes[entry["image_id"]], entry["segmentation"]
            packed = coco_mask.frPyObjects(segmentation, *size)
            if isinstance(packed, list):
                packed = coco_mask.merge(packed)
            assert np.array_equal(mask_of_segmentation(segmentation, size), coco_mask.decode(packed).astype(bool))
            seen["polygons" if isinstance(segmentation, list) else "runs"] += 1
    assert seen["polygons"] > 100 and seen["runs"] == 3


def test_crowds_and_boxes_without_area_are_left_out_of_boxes_and_masks_alike():
    other = [[0.0, 0.0, 3.0, 0.0, 3.0, 3.0, 0.0, 3.0]]
    annotations = [
        annotation(iscrowd=1, segmentation={"size": [20, 30], "counts": [600]}),
        annotation(bbox=[0, 0, 3, 3], area=9.0, segmentation=other, category_id=7),
        annotation(bbox=[5, 5, 0, 4]),
        annotation(bbox=[30, 5, 4, 4]),
        annotation(bbox=[-20, 5, 4, 4]),
        annotation(bbox=[25, 15, 10, 10]),
    ]
    objects = objects_of_annotations(annotations, SIZE, with_masks=True)
    assert objects["class_labels"].tolist() == [7, 3] and objects["area"].tolist() == [9.0, 60.0]
    assert objects["boxes"].tolist() == [[0, 0, 3, 3], [25, 15, 30, 20]]
    assert objects["masks"].shape == (2, 20, 30) and objects["masks"][0].sum() == 9 and objects["masks"][1].sum() == 60


def test_no_object():
    objects = objects_of_annotations([], SIZE, with_masks=True)
    assert objects["boxes"].shape == (0, 4) and objects["masks"].shape == (0, 20, 30)
    assert objects["class_labels"].dtype == torch.int64
    assert "masks" not in objects_of_annotations([], SIZE, with_masks=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"Annotation 0 must have a `bbox` .* got \[1, 2, 3\]"),
        ({"bbox": [1, 2, float("nan"), 3]}, "must have a `bbox`"),
        ({"category_id": "cat"}, "must have a `category_id` that is an integer from 0, got 'cat'"),
        ({"category_id": 2**63}, "must have a `category_id`"),
        ({"area": float("nan")}, "must have an `area` that is a number from 0, or none, got nan"),
        ({"area": "x"}, "must have an `area` .* got 'x'"),
        ({"iscrowd": "x"}, "must have an `iscrowd` of 0 or 1, or none, got 'x'"),
        ({"segmentation": None}, "Annotation 0 has no `segmentation`"),
        ({"segmentation": "x"}, "list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "a polygon must be a list of x, y"),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, r"of size \[30, 20\] in an image of \(20, 30\)"),
        ({"segmentation": {"size": [20, 30], "counts": [3, 4]}}, "that make 600 together"),
        ({"segmentation": {"size": [20, 30], "counts": None}}, "must be numbers or text"),
    ],
)
def test_what_cannot_be_an_annotation_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        objects_of_annotations([annotation(**change)], SIZE, with_masks=True)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [(None, "must be a list, got NoneType"), ([5], "Annotation 0 must be a dictionary, got 5")],
)
def test_what_cannot_be_the_annotations_of_an_image_is_refused(annotations, message):
    with pytest.raises(ValueError, match=message):
        objects_of_annotations(annotations, SIZE, with_masks=True)


def test_a_polygon_far_outside_and_one_of_two_corners():
    far = [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12], [1.0, 2.0, 3.0, 4.0]]
    assert mask_of_segmentation(far, SIZE).all()
    assert not mask_of_segmentation([[1.0, 2.0, 3.0, 4.0]], SIZE).any()
    assert not mask_of_segmentation([], SIZE).any()
