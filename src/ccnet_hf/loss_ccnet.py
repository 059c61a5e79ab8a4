"""The losses CCNet is trained with."""

import torch
from torch import nn


# mmsegmentation adds the machine epsilon of fp32 to the number of pixels it divides by.
_EPSILON = torch.finfo(torch.float32).eps


def semantic_segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    reduction: str = "valid",
    align_corners: bool = False,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy of logits that are first resized bilinearly to the labels.

    Args:
        logits: (B, num_labels, h, w), floating point; computed in fp32, or float64 if they are.
        labels: (B, H, W), int64, in 0..num_labels - 1 or `ignore_index`.
        ignore_index: label of pixels that do not count.
        reduction: `"valid"` divides the sum by the number of labelled pixels, PyTorch's own mean. `"all"` divides by
            the number of all pixels, ignored ones included, as mmsegmentation 1.x does.
        align_corners: of the resize.
        class_weights: (num_labels,) factors of the classes' cross entropy, or `None`. Pixels are counted as without.

    Returns:
        The loss, a scalar; 0 with zero gradients when every pixel is ignored.

    Raises:
        ValueError: labels of another rank or batch size, or an unknown reduction.
    """
    if labels.dim() != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must be (batch, height, width) with the logits' batch size, got labels {tuple(labels.shape)} "
            f"for logits {tuple(logits.shape)}"
        )
    if reduction not in ("valid", "all"):
        raise ValueError(f"reduction must be 'valid' or 'all', got {reduction!r}")
    if logits.dtype != torch.float64:
        logits = logits.float()
    logits = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = nn.functional.cross_entropy(
        logits, labels, weight=class_weights, ignore_index=ignore_index, reduction="sum"
    )
    if reduction == "all":
        return total / (labels.numel() + _EPSILON)
    return total / (labels != ignore_index).sum().clamp(min=1)


__all__ = ["semantic_segmentation_loss"]
