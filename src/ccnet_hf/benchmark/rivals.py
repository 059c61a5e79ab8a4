"""What users would pick instead of a CCNet: the same sizes as the published checkpoints, with random weights."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50
from transformers import (
    ConvNextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)


_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def _segformer(num_labels: int) -> nn.Module:
    """As nvidia/segformer-b2-finetuned-cityscapes-1024-1024."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768, num_labels=num_labels
        )
    )


def _upernet(num_labels: int) -> nn.Module:
    """As openmmlab/upernet-convnext-tiny, whose auxiliary head also runs in inference."""
    backbone_config = ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768], out_features=_STAGES)
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone_config, auxiliary_in_channels=384, num_labels=num_labels)
    )


def _mask2former(num_labels: int) -> nn.Module:
    """As facebook/mask2former-swin-tiny-cityscapes-semantic."""
    backbone_config = SwinConfig(
        depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], embed_dim=96, window_size=7, out_features=_STAGES
    )
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone_config, num_labels=num_labels)
    )


def _deeplabv3(num_labels: int) -> nn.Module:
    """As torchvision's, without the auxiliary classifier, which its own weights come with."""
    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_labels, aux_loss=False)


RIVALS: dict[str, Callable[[int], nn.Module]] = {
    "segformer-b2": _segformer,
    "upernet-convnext-tiny": _upernet,
    "mask2former-swin-tiny": _mask2former,
    "deeplabv3-r50": _deeplabv3,
}


def rival_call(name: str, num_labels: int, pixel_values: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    """Build one of `RIVALS`; returns a function that runs it on images (B, 3, H, W) as inference does."""
    torch.manual_seed(0)
    network = RIVALS[name](num_labels).eval().to(pixel_values.device, dtype)
    # Convolutions are faster so, ours as well; what is no convolution does not mind.
    network.to(memory_format=torch.channels_last)
    inputs = pixel_values.to(dtype).contiguous(memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: network(inputs))
