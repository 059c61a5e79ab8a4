"""Fixtures of the tests of training."""

import pytest
from tiny_training import RECIPE, build_trainer, coloured_split, tiny_model

from ccnet_hf.recipes import TrainingRecipe
from ccnet_hf.training.loop import TrainingLoop


@pytest.fixture
def make_trainer(tmp_path):
    """Build a `TrainingLoop` in this process; keyword arguments as for `build_trainer`."""

    def make(**arguments) -> TrainingLoop:
        return build_trainer(**({"output_dir": tmp_path} | arguments))

    return make


@pytest.fixture
def coloured_folder(tmp_path) -> str:
    """A folder of parquet files: coloured images in a train and a validation split."""
    folder = tmp_path / "coloured"
    folder.mkdir()
    coloured_split(4).to_parquet(folder / "train-00000-of-00001.parquet")
    coloured_split(3).to_parquet(folder / "validation-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def recipe() -> TrainingRecipe:
    return RECIPE


@pytest.fixture
def model():
    return tiny_model
