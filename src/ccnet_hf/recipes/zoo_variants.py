"""The variants of mmsegmentation's model zoo, a row each: its `configs/ccnet`, resolved.

What they share is the defaults of the dataclasses and of `CCNetConfig`; what differs by benchmark stands in the
benchmark's record; what differs by variant in its row.
"""

from __future__ import annotations

from ccnet_hf.data.benchmarks import get_benchmark
from ccnet_hf.recipes.recipe import RESNET_DEPTHS, Recipe, TrainingRecipe


_GPUS = 4

# benchmark, depth, crop (h, w), thousands of steps, date and hash of the checkpoint, then as reported: mIoU, mIoU with
# multi-scale and flip, GB of memory in training, frames/s on a V100 (the last two for the shorter schedule only)
_ROWS = (
    ("cityscapes", 50, (512, 1024), 40, "20200616_142517-4123f401", 77.76, 78.87, 6.0, 3.32),
    ("cityscapes", 101, (512, 1024), 40, "20200616_142540-a3b84ba6", 76.35, 78.19, 9.5, 2.31),
    ("cityscapes", 50, (769, 769), 40, "20200616_145125-76d11884", 78.46, 79.93, 6.8, 1.43),
    ("cityscapes", 101, (769, 769), 40, "20200617_101428-4f57c8d0", 76.94, 78.62, 10.7, 1.01),
    ("cityscapes", 50, (512, 1024), 80, "20200617_010421-869a3423", 79.03, 80.16, None, None),
    ("cityscapes", 101, (512, 1024), 80, "20200617_203935-ffae8917", 78.87, 79.90, None, None),
    ("cityscapes", 50, (769, 769), 80, "20200617_010421-73eed8ca", 79.29, 81.08, None, None),
    ("cityscapes", 101, (769, 769), 80, "20200618_011502-ad3cd481", 79.45, 80.66, None, None),
    ("ade20k", 50, (512, 512), 80, "20200615_014848-aa37f61e", 41.78, 42.98, 8.8, 20.89),
    ("ade20k", 101, (512, 512), 80, "20200615_014848-1f4929a3", 43.97, 45.13, 12.2, 14.11),
    ("ade20k", 50, (512, 512), 160, "20200616_084435-7c97193b", 42.08, 43.13, None, None),
    ("ade20k", 101, (512, 512), 160, "20200616_000644-e849e007", 43.71, 45.04, None, None),
    ("voc12aug", 50, (512, 512), 20, "20200617_193212-fad81784", 76.17, 77.51, 6.0, 20.45),
    ("voc12aug", 101, (512, 512), 20, "20200617_193212-0007b61d", 77.27, 79.02, 9.5, 13.64),
    ("voc12aug", 50, (512, 512), 40, "20200613_232127-c2a15f02", 75.96, 77.04, None, None),
    ("voc12aug", 101, (512, 512), 40, "20200613_232127-c30da577", 77.87, 78.90, None, None),
)


def _zoo_recipe(
    benchmark: str,
    depth: int,
    crop_size: tuple[int, int],
    kilosteps: int,
    stamp: str,
    mean_iou: float,
    mean_iou_multi_scale_flip: float,
    training_memory_gb: float | None,
    frames_per_second_v100: float | None,
) -> Recipe:
    protocol = get_benchmark(benchmark).protocol
    long, short = protocol.size
    height, width = crop_size
    crop = f"{height}x{width}"
    # With an odd crop the corners of map and image fall together: odd test size, aligned corners, sliding windows.
    odd = height % 2 == 1
    if odd:
        long, short = long + 1, short + 1
    # mmsegmentation divides the loss by all pixels, ignored ones included.
    model = {
        "backbone_config": {
            "model_type": "ccnet_resnet",
            "depths": RESNET_DEPTHS[depth],
            "out_features": ["stage3", "stage4"],
        },
        "align_corners": odd,
        "loss_reduction": "all",
        "inference": {"mode": "slide", "crop_size": list(crop_size), "stride": [513, 513]}
        if odd
        else {"mode": "whole"},
    }
    published = f"ccnet_r{depth}-d8_{crop}_{kilosteps}k_{benchmark}"
    checkpoint_file = f"{published}_{stamp}.pth"
    return Recipe(
        name=f"ccnet-r{depth}-{benchmark}-{crop}-{kilosteps}k",
        benchmark=benchmark,
        model=model,
        size={"shortest_edge": short, "longest_edge": long},
        training=TrainingRecipe(
            crop_size=crop_size,
            scale=(long, short),
            batch_size=_GPUS * protocol.images_per_gpu,
            max_train_steps=1000 * kilosteps,
            eval_steps=100 * kilosteps,
            pad_before_normalization=protocol.pad_before_normalization,
        ),
        # mmsegmentation's resnet50_v1c and resnet101_v1c are GluonCV's too.
        backbone_checkpoint=f"timm/resnet{depth}c.gluon_in1k",
        reported={
            "mean_iou": mean_iou,
            "mean_iou_multi_scale_flip": mean_iou_multi_scale_flip,
            "training_memory_gb": training_memory_gb,
            "frames_per_second_v100": frames_per_second_v100,
        },
        checkpoint_file=checkpoint_file,
        checkpoint_url=f"https://download.openmmlab.com/mmsegmentation/v0.5/ccnet/{published}/{checkpoint_file}",
        mmseg_config=f"ccnet_r{depth}-d8_{_GPUS}xb{protocol.images_per_gpu}-{kilosteps}k_{benchmark}-{crop}",
    )


ZOO_VARIANTS: tuple[Recipe, ...] = tuple(_zoo_recipe(*row) for row in _ROWS)

# mmsegmentation's best single-scale variant of every backbone and benchmark. PaddleSeg's is better than the one of
# ResNet-101 on Cityscapes and has a name of its own: what a short name loads stays what it was.
SHORT_NAMES: dict[str, str] = {
    "ccnet-r50-cityscapes": "ccnet-r50-cityscapes-769x769-80k",
    "ccnet-r101-cityscapes": "ccnet-r101-cityscapes-769x769-80k",
    "ccnet-r50-ade20k": "ccnet-r50-ade20k-512x512-160k",
    "ccnet-r101-ade20k": "ccnet-r101-ade20k-512x512-80k",
    "ccnet-r50-voc12aug": "ccnet-r50-voc12aug-512x512-20k",
    "ccnet-r101-voc12aug": "ccnet-r101-voc12aug-512x512-40k",
}
