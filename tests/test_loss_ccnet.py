"""Cross entropy in both reductions against the formula."""

import pytest
import torch

from ccnet_hf.loss_ccnet import semantic_segmentation_loss


def brute_force(logits, labels, reduction):
    """Sum of -log softmax at the label over labelled pixels, divided by the pixels the reduction counts."""
    total, valid = 0.0, 0
    for scores, label in zip(logits.movedim(1, -1).reshape(-1, logits.shape[1]), labels.flatten(), strict=True):
        if label != 255:
            total += float(scores.exp().sum().log() - scores[label])
            valid += 1
    return total / (valid if reduction == "valid" else labels.numel() + torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_equals_the_formula(reduction):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 5, 7))
    labels[0, :3] = 255
    loss = semantic_segmentation_loss(logits, labels, reduction=reduction)
    assert loss.item() == pytest.approx(brute_force(logits, labels, reduction), rel=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizes_logits_to_labels(align_corners):
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (1, 13, 17))
    resized = torch.nn.functional.interpolate(logits, (13, 17), mode="bilinear", align_corners=align_corners)
    loss = semantic_segmentation_loss(logits, labels, align_corners=align_corners)
    assert loss.item() == pytest.approx(brute_force(resized, labels, "valid"), rel=1e-12)


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_all_pixels_ignored_gives_zero_with_zero_gradients(reduction):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = semantic_segmentation_loss(logits, torch.full((1, 8, 8), 255), reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    logits = (1000 * torch.randn(1, 3, 4, 4)).to(dtype)
    labels = torch.randint(0, 3, (1, 8, 8))
    loss = semantic_segmentation_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss == semantic_segmentation_loss(logits.float(), labels)


def test_wrong_arguments():
    logits = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"labels \(2, 1, 4, 4\)"):
        semantic_segmentation_loss(logits, torch.zeros(2, 1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels \(1, 4, 4\)"):
        semantic_segmentation_loss(logits, torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="'sum'"):
        semantic_segmentation_loss(logits, torch.zeros(2, 4, 4, dtype=torch.long), reduction="sum")


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_class_weights_multiply_each_pixels_term(reduction):
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (1, 4, 5))
    labels[0, 0] = 255
    weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    valid = int((labels != 255).sum())
    counted = valid if reduction == "valid" else labels.numel() + torch.finfo(torch.float32).eps
    expected = 0.0
    for label in range(3):
        one_class = torch.where(labels == label, labels, 255)
        expected += float(weights[label]) * brute_force(logits, one_class, "all") * labels.numel() / counted
    loss = semantic_segmentation_loss(logits, labels, reduction=reduction, class_weights=weights)
    assert loss.item() == pytest.approx(expected, rel=1e-7)
