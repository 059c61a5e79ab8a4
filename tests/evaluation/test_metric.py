"""The metric against recorded results of its peers and against counting by hand."""

import json
import math

import numpy as np
import pytest
import torch

from ccnet_hf.evaluation import MeanIoU


CASES = ("plain", "ignore", "class_only_predicted", "class_absent_everywhere", "pred_has_255", "different_sizes")
KEYS = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy")


@pytest.mark.parametrize("case", CASES)
def test_equals_the_peers(shared_dir, case):
    folder = shared_dir / "reference" / "metric_cases"
    expected = json.loads((folder / "expected.json").read_text())[case]
    arrays = np.load(folder / "cases.npz")
    metric = MeanIoU(num_labels=expected["num_classes"], ignore_index=expected["ignore_index"])
    pairs = [(arrays[f"{case}/pred{i}"], arrays[f"{case}/gt{i}"]) for i in range(expected["images"])]
    metric.add_batch(predictions=[p for p, _ in pairs], references=[r for _, r in pairs])
    result = metric.compute()
    for key in KEYS:
        wanted = np.array(expected["hf"][key], dtype=float)  # None becomes NaN
        np.testing.assert_allclose(np.array(result[key], dtype=float), wanted, rtol=0, atol=1e-12)
    assert result["mean_iou"] == pytest.approx(expected["mmseg"]["mIoU"], abs=1e-6)


def test_counts_as_sets_of_pixels():
    generator = np.random.default_rng(0)
    truth = generator.choice([0, 1, 2, 3, 255], size=(2, 37, 23)).astype(np.uint8)
    prediction = generator.integers(0, 4, size=(2, 37, 23)).astype(np.uint8)
    metric = MeanIoU(num_labels=4)
    for p, t in zip(prediction, truth, strict=True):
        metric.add(prediction=p, reference=t)
    counted = truth != 255
    for label, iou in enumerate(metric.compute()["per_category_iou"]):
        ours = set(np.flatnonzero((prediction == label) & counted))
        theirs = set(np.flatnonzero((truth == label) & counted))
        assert iou == len(ours & theirs) / len(ours | theirs)


def test_one_matrix_not_a_mean_over_pictures():
    metric = MeanIoU(num_labels=2)
    metric.add_batch(
        predictions=[[[0, 0, 0, 0]], torch.tensor([[1]])], references=[[[0, 0, 0, 1]], torch.tensor([[1]])]
    )
    result = metric.compute()
    assert result["per_category_iou"] == [3 / 4, 1 / 2]
    assert result["overall_accuracy"] == 4 / 5


def test_is_exact_beyond_float32():
    metric = MeanIoU(num_labels=2)
    metric.confusion_matrix += torch.tensor([[2**53 // 4, 0, 0], [0, 2**24, 0]])
    metric.add(prediction=[[1]], reference=[[1]])
    assert int(metric.confusion_matrix[1, 1]) == 2**24 + 1


def test_class_ids_above_15_do_not_overflow():
    truth = np.full((2, 2), 18, dtype=np.uint8)
    metric = MeanIoU(num_labels=19)
    metric.add(prediction=truth, reference=truth)
    assert metric.compute()["mean_iou"] == 1.0


def test_starts_anew_after_compute():
    metric = MeanIoU(num_labels=2)
    metric.add(prediction=[[0]], reference=[[1]])
    assert metric.compute()["mean_iou"] == 0.0
    assert metric.compute(predictions=[[[1]]], references=[[[1]]])["mean_iou"] == 1.0
    with pytest.raises(ValueError, match="no labelled pixel"):
        metric.compute()


def test_absent_classes_are_nan():
    result = MeanIoU(num_labels=3).compute(predictions=[[[0, 0]]], references=[[[0, 255]]])
    assert result["per_category_iou"][0] == 1.0
    assert all(math.isnan(iou) for iou in result["per_category_iou"][1:])


def test_refuses_bad_truth_and_shapes():
    metric = MeanIoU(num_labels=3)
    with pytest.raises(ValueError, match=r"true label id 7 is outside 0\.\.2 and is not 255"):
        metric.add(prediction=[[0]], reference=[[7]])
    with pytest.raises(ValueError, match="differ in shape"):
        metric.add(prediction=[[0, 1]], reference=[[0]])
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        metric.add_batch(predictions=[[[0]]], references=[[[0]], [[0]]])


def test_keeps_no_picture_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric = MeanIoU(num_labels=2, cache_dir=str(tmp_path / "cache"))
    metric.add(prediction=np.zeros((50, 50), dtype=np.uint8), reference=np.zeros((50, 50), dtype=np.uint8))
    assert metric.writer is None
    assert metric.compute()["overall_accuracy"] == 1.0
    assert list(tmp_path.iterdir()) == []
