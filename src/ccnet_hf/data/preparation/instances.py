"""COCO's images and annotations as rows of a Hugging Face dataset."""

from __future__ import annotations

from typing import Any

import datasets

from ccnet_hf.errors import InputError, using
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation


def instance_features() -> datasets.Features:
    """Columns of a prepared dataset of instances. `polygons` are outlines x, y, x, y, ... in pixels; an object that
    has none has a compressed run-length encoding of the image's size in `counts`."""
    return datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List(
                {
                    "id": datasets.Value("int64"),
                    "category_id": datasets.Value("int64"),
                    "bbox": datasets.List(datasets.Value("float64")),
                    "area": datasets.Value("float64"),
                    "iscrowd": datasets.Value("bool"),
                    "polygons": datasets.List(datasets.List(datasets.Value("float64"))),
                    "counts": datasets.Value("string"),
                }
            ),
            "image_id": datasets.Value("int64"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "name": datasets.Value("string"),
        }
    )


def object_row(annotation: dict[str, Any], size: tuple[int, int], name: str) -> dict[str, Any]:
    """One of COCO's annotations as a prepared dataset holds it.

    Args:
        annotation: from COCO's file.
        size: (height, width) of its image.
        name: of the image, for messages.

    Raises:
        InputError: it is malformed.
    """
    from pycocotools import mask as coco_mask

    missing = [key for key in ("id", "category_id", "bbox", "segmentation") if key not in annotation]
    if missing:
        raise InputError(f"{name}: an annotation has no {missing[0]}")
    segmentation = annotation["segmentation"]
    with using(f"{name}: annotation {annotation['id']}"):
        mask = mask_of_segmentation(segmentation, size)  # refuses what is none
        row = {
            "id": int(annotation["id"]),
            "category_id": int(annotation["category_id"]),
            "bbox": [float(number) for number in annotation["bbox"]],
            "area": float(annotation.get("area", mask.sum())),
            "iscrowd": bool(annotation.get("iscrowd")),
            "polygons": [],
            "counts": None,
        }
        if len(row["bbox"]) != 4:
            raise ValueError(f"its bbox is {annotation['bbox']}")
    if isinstance(segmentation, list):
        row["polygons"] = [list(map(float, polygon)) for polygon in segmentation]
    else:
        packed = segmentation
        if isinstance(segmentation["counts"], list):
            packed = coco_mask.frPyObjects(segmentation, *size)
        counts = packed["counts"]
        row["counts"] = counts.decode() if isinstance(counts, bytes) else counts
    return row
