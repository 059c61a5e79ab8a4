"""PaddleSeg's CCNet on Cityscapes, whose checkpoint is published: its network, its training and its test."""

from __future__ import annotations

from ccnet_hf.recipes.recipe import RESNET_DEPTHS, Recipe, TrainingRecipe


PADDLESEG_VARIANT = "ccnet-r101-cityscapes-paddleseg"

_PUBLISHED = "ccnet_resnet101_os8_cityscapes_769x769_60k"

# Of `configs/ccnet/ccnet_resnet101_os8_cityscapes_769x769_60k.yml` at d7975e7c, resolved. The training differs from
# it in three points: photometric distortion is mmsegmentation's (brightness by addition, contrast and saturation by
# factors of 0.5 to 1.5 instead of 0.6 to 1.4), dropout is of whole channels, and the backbone starts from GluonCV's
# ImageNet weights of the same ResNet-V1d, as PaddleSeg's distilled ones are not on the Hub.
#
# The reported mIoU counts a class that neither labels nor predictions have as 1; ours leaves it out. On Cityscapes'
# validation split, which has all 19 classes, the two are one. The scales of the multi-scale figure are not stated:
# those here are of the example in PaddleSeg's documentation.
_RECIPE = Recipe(
    name=PADDLESEG_VARIANT,
    benchmark="cityscapes",
    model={
        "backbone_config": {
            "model_type": "ccnet_resnet",
            "depths": RESNET_DEPTHS[101],
            "contract_dilation": False,
            "pooled_shortcut": True,
            "out_features": ["stage3", "stage4"],
        },
        "attention_activation": "leaky_relu",
        "auxiliary_channels": 512,
        "ohem_threshold": 0.7,
        "ohem_min_kept": 10_000,
        "ohem_rule": "paddleseg",
        "align_corners": False,
        "inference": {"mode": "whole", "average": "logits"},
    },
    size={"shortest_edge": 1024, "longest_edge": 2048},
    pad_size={"height": 1025, "width": 2049},
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    training=TrainingRecipe(
        crop_size=(769, 769),
        scale=(2048, 1024),
        ratio_step=0.25,
        cat_max_ratio=1.0,
        batch_size=8,
        max_train_steps=60_000,
        eval_steps=6_000,
        weight_decay=4e-5,
    ),
    backbone_checkpoint="timm/resnet101d.gluon_in1k",
    tta_ratios=(0.75, 1.0, 1.25),
    reported={
        "mean_iou": 80.95,
        "mean_iou_flip": 81.23,
        "mean_iou_multi_scale_flip": 81.53,
        "training_memory_gb": None,
        "frames_per_second_v100": None,
    },
    checkpoint_file=f"{_PUBLISHED}/model.pdparams",
    checkpoint_url=f"https://bj.bcebos.com/paddleseg/dygraph/cityscapes/{_PUBLISHED}/model.pdparams",
)

PADDLESEG_VARIANTS: tuple[Recipe, ...] = (_RECIPE,)
