"""The table of tasks: every recipe has its row, and every row names what is there."""

from dataclasses import fields

import pytest
from transformers import SegformerConfig

from ccnet_hf import CCNetConfig
from ccnet_hf.errors import InputError
from ccnet_hf.evaluation.evaluator import Evaluator
from ccnet_hf.evaluation.tasks import TASKS, Task, find_task
from ccnet_hf.recipes import RECIPES


def test_every_recipe_has_a_task_whose_models_have_its_configuration():
    for recipe in RECIPES.values():
        assert isinstance(recipe.config(), TASKS[recipe.task].load("model").config_class)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_part_of_a_task_is_there(task):
    assert all(callable(task.load(part.name)) for part in fields(Task))
    evaluator = task.load("evaluator")
    assert issubclass(evaluator, Evaluator) and evaluator.deciding_score.startswith("eval_")


def test_the_configuration_tells_the_task():
    assert find_task(CCNetConfig()) is TASKS["semantic"]
    with pytest.raises(InputError, match="models of type 'segformer' have no training and no evaluation here"):
        find_task(SegformerConfig())
