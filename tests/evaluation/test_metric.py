"""The metric against recorded results of its peers and against counting by hand."""

import io
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from turned import encode_turned

from ccnet_hf.data.benchmarks.cityscapes import CITYSCAPES, LABEL_IDS
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation import MeanIoU
from ccnet_hf.evaluation.metric import scores


GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
EXPECTED = json.loads((GOLDENS / "metric_cases.json").read_text())
KEYS = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy")


def scored(metric: MeanIoU, expected: dict) -> None:
    """Compute, and compare with what Hugging Face's `mean_iou` (float64) and mmsegmentation (float32) gave."""
    result = metric.compute()
    for key in KEYS:
        wanted = np.array(expected["hf"][key], dtype=float)  # None becomes NaN
        np.testing.assert_allclose(np.array(result[key], dtype=float), wanted, rtol=0, atol=1e-12)
    for key, theirs in {"mean_iou": "mIoU", "mean_accuracy": "mAcc", "overall_accuracy": "aAcc"}.items():
        assert result[key] == pytest.approx(expected["mmseg"][theirs], abs=1e-6)
    theirs = np.array(expected["mmseg"]["IoU"], dtype=float)
    np.testing.assert_allclose(np.array(result["per_category_iou"], dtype=float), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", EXPECTED)
def test_equals_the_peers_and_counts_exactly(case):
    expected = EXPECTED[case]
    num_labels = expected["num_classes"]
    arrays = np.load(GOLDENS / "metric_cases.npz")
    metric = MeanIoU(num_labels=num_labels, ignore_index=expected["ignore_index"])
    counts = np.zeros((num_labels, num_labels + 1), dtype=np.int64)
    for index in range(expected["images"]):
        prediction, truth = arrays[f"{case}/pred{index}"], arrays[f"{case}/gt{index}"]
        metric.add(prediction=prediction, reference=truth)
        pixels = zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True)
        for (true, predicted), number in Counter(pixels).items():
            if true != expected["ignore_index"]:
                counts[true, min(predicted, num_labels)] += number
    assert metric.confusion_matrix.dtype == torch.int64
    assert metric.confusion_matrix.tolist() == counts.tolist()
    scored(metric, expected)


def cityscapes_pairs(shared_dir):
    """Truth in label ids, and the predictions of the recorded recipe: it, moved by five rows and nine columns."""
    expected = json.loads((shared_dir / "reference" / "metric_cases" / "cityscapes_expected.json").read_text())
    folder = shared_dir / "fixtures" / "cityscapes_labels_only" / "gtFine" / "val" / "frankfurt"
    truths = [np.asarray(Image.open(folder / name)) for name in expected["files"]]
    return expected, [(np.roll(truth, (5, 9), axis=(0, 1)), truth) for truth in truths]


def test_cityscapes_by_training_ids(shared_dir):
    """As cityscapesScripts score label ids: what is not evaluated is ignored in truth, and a miss when predicted."""
    expected, pairs = cityscapes_pairs(shared_dir)
    training_ids = np.full(256, 255)
    training_ids[list(LABEL_IDS)] = range(19)
    metric = MeanIoU(num_labels=19)
    for prediction, truth in pairs:
        metric.add(prediction=training_ids[prediction], reference=training_ids[truth])
    theirs = expected["cityscapesscripts"]
    ious = [theirs["classScores"][name] for name in CITYSCAPES.class_names]
    assert float(np.nanmean(np.array(ious, dtype=float))) == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    ours = scores(metric.confusion_matrix)
    np.testing.assert_allclose(ours["per_category_iou"], np.array(ious, dtype=float), rtol=0, atol=1e-12)
    assert ours["mean_iou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    scored(metric, expected["via_trainIds_255_ignored"])


def test_cityscapes_by_label_ids(shared_dir):
    """All 34 ids as classes, the truth of those that are not evaluated ignored: the same 19 IoU."""
    expected, pairs = cityscapes_pairs(shared_dir)
    metric = MeanIoU(num_labels=34)
    for prediction, truth in pairs:
        metric.add(prediction=prediction, reference=np.where(np.isin(truth, LABEL_IDS), truth, 255))
    ious = np.array(metric.compute()["per_category_iou"])[list(LABEL_IDS)]
    theirs = expected["cityscapesscripts"]
    wanted = np.array([theirs["classScores"][name] for name in CITYSCAPES.class_names], dtype=float)
    np.testing.assert_allclose(ious, wanted, rtol=0, atol=1e-12)
    assert np.nanmean(ious) == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)


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


def test_one_matrix_not_a_mean_over_images():
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


def test_keeps_no_image_and_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric = MeanIoU(num_labels=2, cache_dir=str(tmp_path / "cache"))
    metric.add(prediction=np.zeros((50, 50), dtype=np.uint8), reference=np.zeros((50, 50), dtype=np.uint8))
    assert metric.writer is None
    assert metric.compute()["overall_accuracy"] == 1.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [1.7, 0.999999, float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("side", ["prediction", "reference"])
def test_ids_that_are_no_whole_numbers_are_refused(side, wrong):
    maps = {"prediction": np.zeros((2, 3)), "reference": np.zeros((2, 3))}
    metric = MeanIoU(num_labels=2)
    metric.add(**maps)  # whole floats are ids
    assert metric.confusion_matrix.tolist() == [[6, 0, 0], [0, 0, 0]]
    maps[side][1, 2] = wrong
    with pytest.raises(ValueError, match=rf"{side}: .* whole numbers; got {wrong} at .*\(1, 2\)"):
        metric.add(**maps)
    with pytest.raises(ValueError, match=f"{side}: .* whole numbers"):
        metric.add(**{name: torch.tensor(value) for name, value in maps.items()})


@pytest.mark.parametrize("wrong", [None, [[0, 1], [0]], {"label": 0}, [["road"]]])
def test_label_maps_of_another_kind_are_named(wrong):
    with pytest.raises(ValueError, match="a label map is a tensor, an array or a nested list"):
        MeanIoU(num_labels=2).add(prediction=wrong, reference=[[0, 1]])


def test_a_pil_image_is_upright_by_its_own_exif():
    truth = np.array([[0, 1, 1], [2, 1, 255]], np.uint8)
    metric = MeanIoU(num_labels=3)
    for orientation in (1, 3, 6):
        turned = Image.open(io.BytesIO(encode_turned(truth, orientation)))
        metric.add(prediction=truth, reference=turned)
        metric.add(prediction=turned, reference=truth)
    assert metric.compute()["per_category_iou"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 1}, "`num_labels` must be at least 2, got 1"),
        ({"num_labels": -1}, "`num_labels` must be at least 2, got -1"),
        *(({"num_labels": wrong}, "`num_labels` must be an integer, got") for wrong in ("a", 2.5, None, True)),
        ({"num_labels": 65_536}, "`num_labels` must be at most 16,384, got 65536: .* would take 34 GB of memory"),
        ({"num_labels": 10**9}, "`num_labels` must be at most 16,384, got 1000000000"),
        ({"num_labels": 3, "ignore_index": 1}, "`ignore_index` must be no class, got 1 of 3 classes"),
        ({"num_labels": 3, "ignore_index": "a"}, "`ignore_index` must be an integer, got 'a'"),
    ],
)
def test_classes_that_cannot_be_counted_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        MeanIoU(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"predictions": [[[0]]]}, "references"),
        ({"references": [[[0]]]}, "predictions"),
        ({"predictions": 5, "references": [[[0]]]}, "predictions"),
        ({"predictions": [[[0]]], "references": "a.png"}, "references"),
    ],
)
def test_batches_of_another_kind_are_named(arguments, name):
    metric = MeanIoU(num_labels=2)
    for use in (metric.compute, metric.add_batch):
        with pytest.raises(InputError, match=f"`{name}` must be a list of label maps, one per image, got"):
            use(**arguments)
    with pytest.raises(InputError, match="`predictions` must be a list of label maps"):
        metric.add_batch()


def test_masks_of_0_and_255_are_told(caplog):
    metric = MeanIoU(num_labels=2)
    mask = np.array([[0, 255, 0, 0, 0, 0, 0]])
    for _ in range(2):
        assert metric.compute(predictions=[mask * 0], references=[mask])["mean_iou"] == 1.0
    line = "no pixel is labelled 1; 14.3 % are 255, which is ignored (of masks of 0 and 255, 255 has to become 1)"
    assert [record.getMessage() for record in caplog.records] == [line]
    metric.compute(predictions=[mask * 0], references=[mask * 0])  # nothing ignored: told by the NaN of the class
    metric.compute(predictions=[mask], references=[[[0, 1, 255, 0, 0, 0, 0]]])
    assert len(caplog.records) == 1
