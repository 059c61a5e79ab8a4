"""Scoring a split: sizes may differ, labels are untouched, and the predictor sees every picture once."""

import numpy as np
import PIL.Image
import pytest
import torch

from ccnet_hf.evaluation import evaluate_dataset


class Pictures:
    """Stands in for a `SegmentationDataset`: each picture's grey value is its label map."""

    num_labels, ignore_index = 3, 255

    def __init__(self):
        generator = np.random.default_rng(0)
        sizes = [(4, 6), (5, 5), (4, 6)]
        self.labels = [generator.choice([0, 1, 2, 255], size=size).astype(np.uint8) for size in sizes]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index):
        label = self.labels[index]
        return PIL.Image.fromarray(label).convert("RGB"), label, f"picture{index}"


class Copier:
    """Stands in for a `Predictor`: reads the class from the picture, with a mistake at the first pixel."""

    def __init__(self):
        self.batches = []

    def label_maps(self, images):
        self.batches.append(len(images))
        maps = [torch.from_numpy(np.array(image)[..., 0].astype(np.int64)) for image in images]
        for label_map in maps:
            label_map[0, 0] = (label_map[0, 0] + 1) % 3
        return maps


@pytest.mark.parametrize("batch_size, batches", [(1, [1, 1, 1]), (2, [2, 1])])
def test_scores_all_pictures_by_one_matrix(batch_size, batches):
    dataset, predictor = Pictures(), Copier()
    result = evaluate_dataset(predictor, dataset, batch_size, progress=False)
    assert predictor.batches == batches
    counted = sum(int((label != 255).sum()) for label in dataset.labels)
    wrong = sum(label[0, 0] != 255 for label in dataset.labels)
    assert result["overall_accuracy"] == pytest.approx(1 - wrong / counted)
