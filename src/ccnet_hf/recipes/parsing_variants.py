"""Human parsing: the paper's network on LIP, its control, and the published parsers that can be converted."""

from __future__ import annotations

from typing import Any

from ccnet_hf.recipes.recipe import RESNET_DEPTHS, Recipe, TrainingRecipe


def _parsing_recipe(
    name: str, benchmark: str = "lip", side: int = 473, training: dict[str, Any] | None = None, **fields: Any
) -> Recipe:
    """A human parser, trained as CE2P is (Liu et al., AAAI 2019): 150 epochs of LIP, on images warped to a square.

    Args:
        name: of the recipe.
        benchmark: whose classes it knows.
        side: of the square, in pixels.
        training: what differs in the training.
        **fields: `model` holds what differs from CE2P's network, the others are of the recipe.
    """
    model = {
        "backbone_config": {
            "model_type": "ccnet_resnet",
            "depths": RESNET_DEPTHS[101],
            "stem_size": 128,
            "output_stride": 16,
            "contract_dilation": False,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "context_module": "pyramid",
        "align_corners": True,
    }
    schedule = {"batch_size": 40, "max_train_steps": 114_000, "eval_steps": 11_400, "learning_rate": 7e-3}
    return Recipe(
        name=name,
        task="parsing",
        benchmark=benchmark,
        model=model | fields.pop("model", {}),
        size={"height": side, "width": side},
        training=TrainingRecipe(
            crop_size=(side, side),
            scale=(side, side),
            ratio_range=(0.75, 1.25),
            cat_max_ratio=1.0,
            letterbox=True,
            photometric_distortion=False,
            min_learning_rate=0.0,
            **schedule | (training or {}),
        ),
        # The scene parsing group's ImageNet weights are not on the Hub; GluonCV's have the same stem.
        backbone_checkpoint="timm/resnet101s.gluon_in1k",
        **fields,
    )


# The paper's 55.47 on LIP is CE2P with RCCA as its context module and the category-consistent loss. Rounds, output
# stride and learning rate of it are not known: they are CCNet's and CE2P's.
_TRAINED = (
    _parsing_recipe("ccnet-r101-lip", model={"context_module": "rcca", "category_consistent_loss_weight": 1.0}),
    _parsing_recipe("ce2p-r101-lip"),
)

# Published human parsers that can be converted. SCHP trains with the Lovasz-softmax loss beside cross entropy; what
# else it adds, cycles of self-correction, is not part of these recipes, which train on from its weights as CE2P does.
_SCHP = {"lovasz_loss_weight": 1.0}
_PUBLISHED = (
    _parsing_recipe("schp-lip", model=_SCHP),
    _parsing_recipe("schp-atr", benchmark="atr", side=512, model=_SCHP),
    _parsing_recipe("schp-pascal", benchmark="pascal-person-part", side=512, model=_SCHP),
    # As its authors released it: smaller images, another schedule, and ImageNet's constants for red, green and blue
    # used for blue, green and red.
    _parsing_recipe(
        "ce2p-lip",
        side=384,
        training={"batch_size": 96, "max_train_steps": 47_600, "eval_steps": 4_760, "learning_rate": 1e-3},
        image_mean=(0.406, 0.456, 0.485),
        image_std=(0.225, 0.224, 0.229),
    ),
)

PARSING_VARIANTS = (*_TRAINED, *_PUBLISHED)

# Those whose files can be converted: the published ones, and the paper's network in SCHP's names.
CONVERTED_PARSERS = (*(recipe.name for recipe in _PUBLISHED), "ccnet-r101-lip")
