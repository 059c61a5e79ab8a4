"""Average precision of boxes and masks by COCO's definition, as pycocotools computes it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from ccnet_hf.errors import using
from ccnet_hf.models.annotations_ccnet import mask_of_segmentation


# The twelve numbers in COCO's order: over IoU .50:.95, at .50, at .75, by area; recalls by detections and by area.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")

# What pycocotools calls boxes and masks.
KINDS = {"box": "bbox", "mask": "segm"}


def average_precision(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Score detections on a set of images.

    Args:
        images: `id`, `height` and `width` of every image, with or without objects and detections.
        annotations: the objects as COCO's annotations: `image_id`, `category_id`, `bbox` (left, top, width, height),
            `area`, `iscrowd` and `segmentation`.
        detections: as COCO's results: `image_id`, `category_id`, `score`, `bbox` and `segmentation`, a compressed
            run-length encoding of the image's size.

    Returns:
        COCO's twelve numbers, 0..1, of boxes as `box_ap`, `box_ap50`, ... and of masks as `mask_ap`, ...; -1 where
        there is no object of the kind.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
        InputError: an annotation is malformed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    categories = sorted({entry["category_id"] for entry in (*annotations, *detections)})
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    numbered = [
        {**entry, "id": number, "iscrowd": int(entry.get("iscrowd") or 0)}
        for number, entry in enumerate(annotations, start=1)
    ]
    for entry in numbered:
        entry["segmentation"] = compressed(entry["segmentation"], sizes[entry["image_id"]])
    truth.dataset = {
        "images": list(images),
        "annotations": numbered,
        "categories": [{"id": category, "name": str(category)} for category in categories],
    }
    scores = {}
    with redirect_stdout(io.StringIO()):  # of its tables and times
        truth.createIndex()
        # Its own loader refuses an empty list.
        found = truth.loadRes(list(detections)) if detections else _nothing(truth)
        for name, kind in KINDS.items():
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores |= {f"{name}_{one}": float(value) for one, value in zip(NAMES, evaluation.stats, strict=True)}
    return scores


def _nothing(truth: Any) -> Any:
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    found.createIndex()
    return found


def compressed(segmentation: list | dict[str, Any] | np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation, or a mask (height, width), as COCO's compressed run-length encoding, its counts as text.

    Raises:
        InputError: it is neither.
    """
    from pycocotools import mask as coco_mask

    mask = segmentation
    if not isinstance(segmentation, np.ndarray):
        with using(""):
            mask = mask_of_segmentation(segmentation, size)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(size), "counts": encoded["counts"].decode()}


__all__ = ["KINDS", "NAMES", "average_precision", "compressed"]
