"""Lovasz-softmax, Dice and focal loss against their definitions in loops, and as rows of the table of losses."""

import math

import pytest
import torch

from ccnet_hf import CCNetConfig, CCNetParsingConfig
from ccnet_hf.models.loss_ccnet import ccnet_losses
from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses
from ccnet_hf.models.loss_regions_ccnet import dice_loss, focal_loss, lovasz_softmax_loss


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels; class 3 does not occur, and some pixels are ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 5, 6), generator=generator)
    labels[0, :2] = 255
    return torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator), labels


def valid_pixels(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[float], int]]:
    """Probabilities and class of every labelled pixel."""
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).tolist()
    return [(p, label) for p, label in zip(probabilities, labels.flatten().tolist(), strict=True) if label != 255]


def lovasz_by_definition(pixels, num_labels):
    """For every class the mistakes in order of their size, each times what it adds to the Jaccard loss."""
    losses = []
    for c in range(num_labels):
        size = sum(label == c for _, label in pixels)
        if not size:
            continue
        errors = sorted(((1 - p[c] if label == c else p[c], label == c) for p, label in pixels), reverse=True)
        total, hits, others, before = 0.0, size, 0, 0.0
        for error, is_class in errors:
            hits, others = hits - is_class, others + (not is_class)
            jaccard = 1 - hits / (size + others)
            total, before = total + error * (jaccard - before), jaccard
        losses.append(total)
    return sum(losses) / len(losses)


def dice_by_definition(pixels, num_labels):
    losses = []
    for c in range(num_labels):
        size = sum(label == c for _, label in pixels)
        if size:
            overlap = sum(p[c] for p, label in pixels if label == c)
            losses.append(1 - 2 * overlap / (sum(p[c] for p, _ in pixels) + size))
    return sum(losses) / len(losses)


def focal_by_definition(pixels, gamma):
    return sum((1 - p[label]) ** gamma * -math.log(p[label]) for p, label in pixels) / len(pixels)


def test_equal_their_definitions(case):
    logits, labels = case
    pixels = valid_pixels(logits, labels)
    assert lovasz_softmax_loss(logits, labels).item() == pytest.approx(lovasz_by_definition(pixels, 4), abs=1e-12)
    assert dice_loss(logits, labels).item() == pytest.approx(dice_by_definition(pixels, 4), abs=1e-12)
    for gamma in (0, 0.5, 2.0):
        expected = focal_by_definition(pixels, gamma)
        assert focal_loss(logits, labels, gamma).item() == pytest.approx(expected, abs=1e-12)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou(case):
    _, labels = case
    predicted = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(1))
    logits = 1000.0 * torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).double()
    valid, ious = labels != 255, []
    for c in range(3):
        both = ((predicted == c) & (labels == c)).sum()
        ious.append(both / (((predicted == c) & valid) | (labels == c)).sum())
    expected = 1 - torch.stack(ious).double().mean()
    torch.testing.assert_close(lovasz_softmax_loss(logits, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [lovasz_softmax_loss, dice_loss, focal_loss])
def test_gradients(case, loss):
    logits, labels = case
    assert torch.autograd.gradcheck(lambda logits: loss(logits, labels), logits.requires_grad_())


@pytest.mark.parametrize("loss", [lovasz_softmax_loss, dice_loss, focal_loss])
def test_nothing_labelled_and_perfect_predictions(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), 255))
    value.backward()
    assert value == 0 and logits.grad.eq(0).all()
    labels = torch.randint(0, 3, (1, 4, 4))
    logits = (200.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)).requires_grad_()
    value = loss(logits, labels)
    value.backward()
    assert value.abs() < 1e-6 and logits.grad.isfinite().all()


def test_focal_loss_by_class_and_over_a_step(case):
    logits, labels = case
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    alone = focal_loss(logits, labels, 2.0, class_weights=weights)
    by_class = [focal_loss(logits, labels.where(labels == c, 255), valid_pixels=1.0) for c in range(3)]
    expected = sum(w * value for w, value in zip(weights, by_class, strict=False)) / (labels != 255).sum()
    torch.testing.assert_close(alone, expected)


def test_rows_of_the_table(case):
    logits, labels = case
    low = torch.nn.functional.avg_pool2d(logits, 2, ceil_mode=True)
    whole = torch.nn.functional.interpolate(low, (5, 6), mode="bilinear", align_corners=True)
    weights = {"lovasz_loss_weight": 0.5, "dice_loss_weight": 2.0, "focal_loss_weight": 3.0, "focal_loss_gamma": 1.0}
    config = CCNetConfig(num_labels=4, align_corners=True, **weights)
    losses = ccnet_losses(config, labels, low)
    expected = {
        "lovasz_loss": 0.5 * lovasz_softmax_loss(whole, labels),
        "dice_loss": 2 * dice_loss(whole, labels),
        "focal_loss": 3 * focal_loss(whole, labels, 1.0),
    }
    assert list(losses) == ["decode_loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert list(ccnet_losses(CCNetConfig(num_labels=4), labels, low)) == ["decode_loss"]

    config = CCNetParsingConfig(num_labels=4, parsing_loss_weight=0.25, **weights)
    losses = ccnet_parsing_losses(config, labels, low, 2 * low, low[:, :2])
    assert list(losses)[3:] == ["lovasz_loss", "dice_loss", "focal_loss"]
    both = dice_loss(whole, labels) + 0.25 * dice_loss(2 * whole, labels)
    torch.testing.assert_close(losses["dice_loss"], 2 * both)


@pytest.mark.parametrize("config_class", [CCNetConfig, CCNetParsingConfig])
@pytest.mark.parametrize("name", ["lovasz_loss_weight", "dice_loss_weight", "focal_loss_weight", "focal_loss_gamma"])
def test_wrong_weights_are_named(config_class, name):
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be a finite number, at least 0"):
            config_class(**{name: value})


def test_compiles_without_a_break(case):
    logits, labels = (case[0].float(), case[1])
    config = CCNetConfig(num_labels=4, lovasz_loss_weight=1.0, dice_loss_weight=1.0, focal_loss_weight=1.0)
    compiled = torch.compile(ccnet_losses, fullgraph=True, backend="aot_eager")
    for name, value in compiled(config, labels, logits).items():
        torch.testing.assert_close(value, ccnet_losses(config, labels, logits)[name])
