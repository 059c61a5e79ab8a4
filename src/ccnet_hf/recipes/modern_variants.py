"""Recipes of CCNet's head on modern backbones, transformers' own: ConvNeXt, DINOv3's ViT and Swin.

Each trains as mmsegmentation trains its backbone under UperNet: AdamW, a linear warm-up of 1,500 steps, then a linear
fall to 0 over 160,000 steps of 16 images. Nobody has published weights of these networks, and nothing is measured.
"""

from __future__ import annotations

from typing import Any

from ccnet_hf.recipes.recipe import Recipe, TrainingRecipe


def _modern_recipe(
    name: str,
    benchmark: str,
    backbone_config: dict[str, Any],
    inference: dict[str, Any],
    scale: tuple[int, int],
    crop_size: tuple[int, int],
    batch_size: int,
    backbone: dict[str, str],
    **training: Any,
) -> Recipe:
    """A recipe with what the three share; `backbone` names the weights it starts from, `training` is its own."""
    return Recipe(
        name=name,
        benchmark=benchmark,
        model={"backbone_config": backbone_config, "inference": inference},
        size={"shortest_edge": min(scale), "longest_edge": max(scale)},
        training=TrainingRecipe(
            crop_size=crop_size,
            scale=scale,
            batch_size=batch_size,
            max_train_steps=160_000,
            eval_steps=16_000,
            optimizer="adamw",
            min_learning_rate=0.0,
            power=1.0,
            warmup_steps=1500,
            decay_norms_and_biases=False,
            # Not of UperNet's recipes: the average is ConvNeXt's on ImageNet, the clipping Swin's.
            ema_decay=0.9999,
            max_grad_norm=5.0,
            **training,
        ),
        **backbone,
    )


# Windows have the size of the crops, of which every stride is a divisor.
_WINDOWS = {"mode": "slide", "crop_size": [512, 512], "stride": [341, 341]}
_ADE20K = {
    "benchmark": "ade20k",
    "inference": _WINDOWS,
    "scale": (2048, 512),
    "crop_size": (512, 512),
    "batch_size": 16,
}

# Attention sees the last stage, at stride 32: transformers' network has no dilation to make it finer. A stage learns
# at 0.9 times the rate of the next one, and the last at 0.9 ** 3, for mmsegmentation counts two layers more than there
# are. The convolution that halves the map learns with its stage here, and with the stem there.
_CONVNEXT = _modern_recipe(
    "ccnet-convnext-tiny-ade20k",
    backbone_config={
        "model_type": "convnext",
        "hidden_sizes": [96, 192, 384, 768],
        "depths": [3, 3, 9, 3],
        "drop_path_rate": 0.4,
        "out_features": ["stage3", "stage4"],
    },
    backbone={
        "backbone_checkpoint": "facebook/convnext-tiny-224",
        "backbone_terms": "trained on ImageNet-1k, under Apache-2.0",
    },
    learning_rate=1e-4,
    weight_decay=0.05,
    layer_decay=0.9,
    backbone_learning_rate_factor=0.9**2,
    **_ADE20K,
)

# A ViT has one stride, 16, and so no pyramid: the head takes the tokens of the last block's patches, normalised, as
# its feature map, without class and register tokens, and the auxiliary head those of the eighth of the twelve. Rates
# fall from block to block as mmsegmentation lets them for MAE's ViT, which is trained without labels, too.
_DINOV3 = _modern_recipe(
    "ccnet-dinov3-vits-ade20k",
    backbone_config={
        "model_type": "dinov3_vit",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_register_tokens": 4,
        "drop_path_rate": 0.1,
        "out_features": ["stage8", "stage12"],
    },
    backbone={
        "backbone_checkpoint": "facebook/dinov3-vits16-pretrain-lvd1689m",
        "backbone_terms": "trained without labels on LVD-1689M, Meta's images from the web, under the DINOv3 License; "
        "the repository is open to those who accept it",
    },
    learning_rate=1e-4,
    weight_decay=0.05,
    layer_decay=0.65,
    **_ADE20K,
)

# Half as many images as for ADE20K, of twice the size. All of the network learns at one rate.
_SWIN = _modern_recipe(
    "ccnet-swin-tiny-cityscapes",
    benchmark="cityscapes",
    backbone_config={
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "drop_path_rate": 0.3,
        "out_features": ["stage3", "stage4"],
    },
    inference={"mode": "whole"},
    scale=(2048, 1024),
    crop_size=(512, 1024),
    batch_size=8,
    backbone={
        "backbone_checkpoint": "microsoft/swin-tiny-patch4-window7-224",
        "backbone_terms": "trained on ImageNet-1k, under Apache-2.0",
    },
    learning_rate=6e-5,
    weight_decay=0.01,
)

MODERN_VARIANTS: tuple[Recipe, ...] = (_CONVNEXT, _DINOV3, _SWIN)
