"""Recipes of instance segmentation: the paper's Mask R-CNN on COCO, which nobody has published weights of."""

from __future__ import annotations

from ccnet_hf.models.image_processing_ccnet_instance import CCNetInstanceImageProcessor
from ccnet_hf.recipes.recipe import RESNET_DEPTHS, Recipe, TrainingRecipe


class InstanceRecipe(Recipe):
    """As [`Recipe`], of a `CCNetForInstanceSegmentation`."""

    def image_processor(self) -> CCNetInstanceImageProcessor:
        """Build the image processor."""
        return CCNetInstanceImageProcessor(
            size=dict(self.size), image_mean=list(self.image_mean), image_std=list(self.image_std)
        )


def _coco_recipe(depth: int) -> InstanceRecipe:
    """Mask R-CNN with attention before the last block of the third stage, by maskrcnn-benchmark's 1x schedule. The
    control is the same with `--attention_stage none`.

    The paper reports 39.3 box AP and 36.1 mask AP with ResNet-50, 41.0 and 37.3 with ResNet-101.
    """
    return InstanceRecipe(
        name=f"ccnet-r{depth}-coco",
        benchmark="coco",
        task="instance",
        model={
            "backbone_config": {
                "model_type": "ccnet_resnet",
                "depths": RESNET_DEPTHS[depth],
                "stem_type": "conv7",
                "output_stride": 32,
                "frozen_batch_norm": True,
                "attention_stage": "stage3",
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            }
        },
        size={"shortest_edge": 800, "longest_edge": 1333},
        training=TrainingRecipe(
            crop_size=(800, 1333),  # nothing is cropped
            scale=(1333, 800),
            ratio_range=(1.0, 1.0),
            photometric_distortion=False,
            batch_size=16,
            max_train_steps=90_000,
            eval_steps=10_000,
            learning_rate=0.02,
            weight_decay=1e-4,
            warmup_steps=500,
            warmup_start=1 / 3,
            decay_steps=(60_000, 80_000),
            frozen_modules=("backbone.stem", "backbone.stages.0"),
            group_by_shape=True,
        ),
        backbone_checkpoint=f"timm/resnet{depth}.tv_in1k",
    )


INSTANCE_VARIANTS: tuple[InstanceRecipe, ...] = (_coco_recipe(50), _coco_recipe(101))
