"""Recipes without published weights: the authors' own training on Cityscapes, LIP, and small networks for CamVid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ccnet_hf.recipes.recipe import RESNET_DEPTHS, Recipe, TrainingRecipe


def _authors_recipe(name: str, **losses: Any) -> Recipe:
    """The authors' network and training on Cityscapes, as in their repository speedinghzl/CCNet; `losses` are added.

    Reported there: 78.40 to 79.74 over three runs, with OHEM 78.67 to 80.00; 80.5 in the paper with the
    category-consistent loss. Their ImageNet weights, the scene parsing group's `resnet101-imagenet.pth`, are not on
    the Hub. GluonCV's network with the same stem stands in for it, and its normalisation for their BGR mean.
    """
    return Recipe(
        name=name,
        benchmark="cityscapes",
        model={
            "backbone_config": {
                "model_type": "ccnet_resnet",
                "depths": RESNET_DEPTHS[101],
                "stem_size": 128,
                "contract_dilation": False,
                "pool_ceil_mode": True,
                "out_features": ["stage3", "stage4"],
            },
            "head_activation": "leaky_relu",
            "auxiliary_channels": 512,
            "align_corners": True,
            "inference": {"mode": "slide", "crop_size": [769, 769], "stride": [513, 513]},
            **losses,
        },
        size={"shortest_edge": 1024, "longest_edge": 2048},
        training=TrainingRecipe(
            crop_size=(769, 769),
            scale=(2048, 1024),
            ratio_range=(0.7, 2.1),
            ratio_step=0.1,
            cat_max_ratio=1.0,
            photometric_distortion=False,
            batch_size=8,
            max_train_steps=60_000,
            eval_steps=6_000,
            min_learning_rate=0.0,
            weight_decay=1e-4,
        ),
        backbone_checkpoint="timm/resnet101s.gluon_in1k",
    )


def _camvid_recipe(name: str, recurrence: int) -> Recipe:
    """The smaller checkpoint in the repository; with `recurrence=0` its control without attention."""
    return Recipe(
        name=name,
        benchmark="camvid",
        model={
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": "mobilenetv2_100",
                "out_indices": [4],
                "output_stride": 16,
            },
            "hidden_size": 128,
            "recurrence": recurrence,
            "use_auxiliary_head": False,
        },
        # Frames are 480x360: enlarged by half, poles, signs and people span more of the output stride.
        size={"shortest_edge": 540, "longest_edge": 720},
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        training=TrainingRecipe(
            crop_size=(320, 416),
            scale=(720, 540),
            ratio_range=(0.5, 1.4),
            batch_size=4,
            max_train_steps=1300,
            eval_steps=1300,
            optimizer="adamw",
            learning_rate=1e-3,
            min_learning_rate=1e-3,  # constant; a second, shorter stage lets it fall to 0 (the checkpoint's card)
            weight_decay=0.01,
            warmup_steps=60,
            max_grad_norm=5.0,
            backbone_learning_rate_factor=0.3,
        ),
    )


def _video_recipe(name: str, image_recipe: Recipe, **changes: Any) -> Recipe:
    """Clips of CamVid's labelled frames, a second apart in training: the network of an image recipe with attention
    along time, three rounds of it. `changes` are of the training."""
    return replace(
        image_recipe,
        name=name,
        task="video",
        benchmark="camvid",
        model={key: value for key, value in image_recipe.model.items() if key not in ("recurrence", "inference")},
        training=replace(image_recipe.training, **changes),
    )


_CAMVID = _camvid_recipe("ccnet-mobilenetv2-camvid", recurrence=2)
_AUTHORS = _authors_recipe("ccnet-r101-cityscapes-authors")

FURTHER_VARIANTS: tuple[Recipe, ...] = (
    _AUTHORS,
    _authors_recipe("ccnet-r101-cityscapes-authors-ohem", ohem_threshold=0.7, ohem_min_kept=100_000),
    _authors_recipe("ccnet-r101-cityscapes-authors-ccl", category_consistent_loss_weight=1.0),
    _CAMVID,
    _camvid_recipe("ccnet-mobilenetv2-camvid-r0", recurrence=0),
    # The first of two stages: the checkpoint's card has the second, at output stride 8 with the Lovász loss.
    replace(
        _CAMVID,
        name="ccnet-efficientnet-camvid",
        model={
            **_CAMVID.model,
            "backbone_config": {**_CAMVID.model["backbone_config"], "backbone": "efficientnet_lite0"},
            "hidden_size": 192,
        },
        size={"shortest_edge": 720, "longest_edge": 960},
        training=replace(
            _CAMVID.training,
            scale=(960, 720),
            ratio_range=(0.4, 1.25),
            crop_size=(384, 480),
            max_train_steps=1000,
            eval_steps=1000,
        ),
    ),
    # For a CPU, from the checkpoint in the repository: --model_name_or_path checkpoints/ccnet-mobilenetv2-camvid.
    _video_recipe(
        "ccnet-mobilenetv2-camvid-video",
        _CAMVID,
        batch_size=2,
        max_train_steps=300,
        eval_steps=300,
        learning_rate=2e-4,
        min_learning_rate=0.0,
    ),
    # The paper's 79.1 at T = 5, from Cityscapes weights at 960x720. What is not in it (schedule, crop, which frames
    # have labels) is TMANet's: its 76.5 is of the same data.
    _video_recipe(
        "ccnet-r101-camvid-video",
        replace(_AUTHORS, size={"shortest_edge": 720, "longest_edge": 960}),
        crop_size=(641, 641),
        scale=(960, 720),
        ratio_range=(0.5, 2.0),
        ratio_step=0.0,
        max_train_steps=80_000,
        eval_steps=8_000,
    ),
)
