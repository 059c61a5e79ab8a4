"""A model that is trained on a dataset of one's own calls the classes what the dataset calls them."""

import datasets
import pytest

from ccnet_hf import CCNetConfig
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.training.building import name_classes
from ccnet_hf.training.training_arguments import ModelArguments


def dataset_of(names: list[str] | None) -> SegmentationDataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    if names is not None:
        features["classes"] = datasets.List(datasets.ClassLabel(names=names))
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    return SegmentationDataset(empty, num_labels=2)


@pytest.mark.parametrize(
    ("names", "num_labels", "expected"),
    [
        (["background", "crack"], 2, ["background", "crack"]),
        (["background", "crack"], None, ["LABEL_0", "LABEL_1"]),  # the recipe's own classes
        (["background", "crack", "joint"], 2, ["LABEL_0", "LABEL_1"]),
        (None, 2, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_names_come_from_the_dataset(names, num_labels, expected):
    config = CCNetConfig(num_labels=2)
    name_classes(config, ModelArguments(variant="ccnet-r50-ade20k", num_labels=num_labels), dataset_of(names))
    assert list(config.id2label.values()) == expected
    assert config.label2id == {name: label for label, name in enumerate(expected)}
