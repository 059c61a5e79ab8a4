"""A model that is trained on a dataset of one's own calls the classes what the dataset calls them."""

import datasets
import pytest

from ccnet_hf import CCNetConfig
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.errors import InputError
from ccnet_hf.training.building import name_classes


def dataset_of(names: list[str] | None) -> SegmentationDataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    if names is not None:
        features["classes"] = datasets.List(datasets.ClassLabel(names=names))
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return SegmentationDataset(empty, num_labels=2)


@pytest.mark.parametrize(
    ("names", "expected"), [(["background", "crack"], ["background", "crack"]), (None, ["LABEL_0", "LABEL_1"])]
)
def test_names_come_from_the_dataset(names, expected):
    config = CCNetConfig(num_labels=2)
    name_classes(config, dataset_of(names))
    assert list(config.id2label.values()) == expected
    assert config.label2id == {name: label for label, name in enumerate(expected)}


@pytest.mark.parametrize("names", [["sky", "road", "other"], ["sky", "road", "car", "tree", "other"]])
def test_another_number_of_classes_is_refused(names):
    with pytest.raises(InputError, match=rf"names {len(names)} classes \(sky, road, .*give --num_labels {len(names)}"):
        name_classes(CCNetConfig(num_labels=4), dataset_of(names))
