"""Scoring a split: sizes may differ, labels are untouched, and the predictor sees every image once."""

import datasets
import numpy as np
import pytest
import torch

from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.evaluation import evaluate_dataset


def make_dataset(streamed: bool = False, broken: bool = False, **options) -> SegmentationDataset:
    """Three images whose grey value is their label map, the last of them unreadable if `broken`."""
    generator = np.random.default_rng(0)
    labels = [generator.choice([0, 1, 2, 255], size=size).astype(np.uint8) for size in [(4, 6), (5, 5), (4, 6)]]
    rows = {"image": [np.dstack([label] * 3) for label in labels], "label": labels, "name": list("abc")}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "name": datasets.Value("string")}
    )
    split = datasets.Dataset.from_dict(rows, features=features)
    for column in ("image", "label"):
        split = split.cast_column(column, datasets.Image(decode=False))
    if broken:
        images = [*split["image"][:2], {"bytes": b"no image", "path": None}]
        split = split.remove_columns("image").add_column("image", images)
    if streamed:
        split = split.to_iterable_dataset()
    return SegmentationDataset(split, num_labels=3, **options)


class Copier:
    """Stands in for a `Predictor`: reads the class from the image, with a mistake at the first pixel."""

    def __init__(self):
        self.batches = []

    def label_maps(self, images):
        self.batches.append(len(images))
        maps = [torch.from_numpy(np.array(image)[..., 0].astype(np.int64)) for image in images]
        for label_map in maps:
            label_map[0, 0] = (label_map[0, 0] + 1) % 3
        return maps


@pytest.mark.parametrize("streamed", [False, True], ids=["mapped", "streamed"])
@pytest.mark.parametrize("batch_size, batches", [(1, [1, 1, 1]), (2, [2, 1])])
def test_scores_all_images_by_one_matrix(batch_size, batches, streamed):
    dataset, predictor = make_dataset(streamed), Copier()
    result = evaluate_dataset(predictor, dataset, batch_size, progress=False)
    assert predictor.batches == batches
    labels = [make_dataset().read(index)[1] for index in range(3)]
    matrix = np.zeros((3, 4), dtype=np.int64)
    for label in labels:
        for place, truth in np.ndenumerate(label):
            if truth != 255:
                matrix[truth, (truth + 1) % 3 if place == (0, 0) else truth] += 1
    assert result["confusion_matrix"] == matrix.tolist()
    assert result["overall_accuracy"] == matrix.trace() / matrix.sum()
    assert (result["num_examples"], result["skipped"]) == (3, [])
    assert result["num_ignored_pixels"] == sum((label == 255).sum() for label in labels) > 0


def test_corrupt_examples_are_skipped_and_named_or_stop_it():
    with pytest.raises(ValueError, match="c: cannot be read"):
        evaluate_dataset(Copier(), make_dataset(broken=True), progress=False)
    result = evaluate_dataset(Copier(), make_dataset(broken=True, skip_corrupt=True), progress=False)
    assert result["num_examples"] == 2
    assert len(result["skipped"]) == 1 and result["skipped"][0].startswith("c: cannot be read")


def test_exports_every_label_map():
    exported = {}
    result = evaluate_dataset(Copier(), make_dataset(), 2, progress=False, export=exported.__setitem__)
    assert list(exported) == ["a", "b", "c"]
    assert [tuple(label_map.shape) for label_map in exported.values()] == [(4, 6), (5, 5), (4, 6)]
    assert "mean_iou" in result


def test_without_labels_there_is_an_export_but_no_score():
    dataset = make_dataset()
    dataset.dataset = dataset.dataset.remove_columns("label")
    with pytest.raises(ValueError, match="no labelled pixel"):
        evaluate_dataset(Copier(), dataset, progress=False)
    exported = {}
    result = evaluate_dataset(Copier(), dataset, progress=False, export=exported.__setitem__)
    assert result == {"num_examples": 3, "num_ignored_pixels": 73, "skipped": [], "turned": []}
    assert len(exported) == 3
