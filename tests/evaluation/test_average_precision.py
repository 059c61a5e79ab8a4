"""Average precision against numbers that pycocotools gave for real annotations, and at the edges."""

import json

import numpy as np
import pytest

from ccnet_hf.evaluation.average_precision import KINDS, NAMES, average_precision, compressed


pytest.importorskip("pycocotools")

THEIR_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture(scope="module")
def truth(shared_dir):
    return json.loads((shared_dir / "fixtures" / "coco" / "annotations" / "instances_val2017.json").read_text())


def test_the_recorded_case(shared_dir, truth, capsys):
    folder = shared_dir / "reference" / "metric_cases"
    detections = json.loads((folder / "coco_results.json").read_text())
    expected = json.loads((folder / "coco_expected.json").read_text())["pycocotools"]
    found = average_precision(truth["images"], truth["annotations"], detections)
    assert capsys.readouterr().out == ""
    assert len(found) == 24
    for name, kind in KINDS.items():
        for ours, theirs in zip(NAMES, THEIR_NAMES, strict=True):
            assert found[f"{name}_{ours}"] == pytest.approx(expected[kind][theirs], abs=1e-9)


def test_the_truth_scores_one_and_nothing_scores_zero(truth):
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    detections = [
        {
            **{name: entry[name] for name in ("image_id", "category_id", "bbox")},
            "score": 1.0,
            "segmentation": compressed(entry["segmentation"], sizes[entry["image_id"]]),
        }
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    ]
    perfect = average_precision(truth["images"], truth["annotations"], detections)
    assert perfect["box_ap"] == perfect["mask_ap"] == 1.0
    nothing = average_precision(truth["images"], truth["annotations"], [])
    assert nothing["box_ap"] == nothing["mask_ar100"] == 0.0


def test_without_objects_there_is_no_score():
    images = [{"id": 1, "height": 8, "width": 9}]
    detection = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [0, 0, 3, 3]}
    detection["segmentation"] = compressed(np.ones((8, 9), dtype=bool), (8, 9))
    assert average_precision(images, [], [detection])["mask_ap"] == -1
    assert average_precision(images, [], [])["box_ap"] == -1
