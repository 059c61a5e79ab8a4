"""How every published CCNet is built, fed, trained and tested: the one table the rest of the package reads."""

from ccnet_hf.errors import InputError
from ccnet_hf.recipes.further_variants import FURTHER_VARIANTS
from ccnet_hf.recipes.instance_variants import INSTANCE_VARIANTS
from ccnet_hf.recipes.modern_variants import MODERN_VARIANTS
from ccnet_hf.recipes.paddleseg_variants import PADDLESEG_VARIANT, PADDLESEG_VARIANTS
from ccnet_hf.recipes.parsing_variants import CONVERTED_PARSERS, PARSING_VARIANTS
from ccnet_hf.recipes.recipe import Recipe, TrainingRecipe
from ccnet_hf.recipes.zoo_variants import SHORT_NAMES, ZOO_VARIANTS


_VARIANTS = (
    *ZOO_VARIANTS,
    *PADDLESEG_VARIANTS,
    *PARSING_VARIANTS,
    *FURTHER_VARIANTS,
    *MODERN_VARIANTS,
    *INSTANCE_VARIANTS,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _VARIANTS}


def zoo_recipes() -> list[Recipe]:
    """The recipes whose checkpoint mmsegmentation or PaddleSeg publishes."""
    return [recipe for recipe in RECIPES.values() if recipe.checkpoint_file]


def get_recipe(name: str) -> Recipe:
    """Return the recipe with this name or short name; `InputError` with the known names if there is none."""
    full_name = SHORT_NAMES.get(name, name)
    if full_name not in RECIPES:
        raise InputError(f"unknown variant {name!r}; known are {', '.join([*RECIPES, *SHORT_NAMES])}")
    return RECIPES[full_name]


__all__ = [
    "CONVERTED_PARSERS",
    "PADDLESEG_VARIANT",
    "RECIPES",
    "SHORT_NAMES",
    "Recipe",
    "TrainingRecipe",
    "get_recipe",
    "zoo_recipes",
]
