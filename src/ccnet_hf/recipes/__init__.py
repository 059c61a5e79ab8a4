"""How every published CCNet is built, fed, trained and tested: the one table the rest of the package reads."""

from ccnet_hf.recipes.recipe import (
    RECIPES,
    SHORT_NAMES,
    Recipe,
    TrainingRecipe,
    get_recipe,
    override_training,
    zoo_recipes,
)


__all__ = [
    "RECIPES",
    "SHORT_NAMES",
    "Recipe",
    "TrainingRecipe",
    "get_recipe",
    "override_training",
    "zoo_recipes",
]
