"""The losses of human parsing against their formulas, written as loops in float64."""

import pytest
import torch
from tiny_models import tiny_parsing_config

from ccnet_hf.models.loss_ccnet import category_consistent_loss, semantic_segmentation_loss
from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses, edge_loss, edge_target


def edges_in_loops(labels: torch.Tensor) -> torch.Tensor:
    """One image's edges: the pixels that CE2P marks, and all around them."""
    height, width = labels.shape
    marked = set()

    def compare(pixel, neighbour):
        if neighbour[0] in range(height) and neighbour[1] in range(width):
            one, other = labels[pixel].item(), labels[neighbour].item()
            if one != other and 255 not in (one, other):
                marked.add(pixel)

    for i in range(height):
        for j in range(width):
            compare((i, j), (i - 1, j))
            compare((i, j), (i, j + 1))
            compare((i, j), (i + 1, j + 1))
            compare((i, j), (i + 1, j - 1))
    edges = torch.zeros(height, width, dtype=torch.int64)
    for i, j in marked:
        edges[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = 1
    return edges


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (17, 23)])
@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 1, 19, 255)])
def test_edges(size, values):
    random = torch.Generator().manual_seed(0)
    coarse = torch.tensor(values)[torch.randint(len(values), (3, *size), generator=random)]
    smooth = coarse.repeat_interleave(4, 1).repeat_interleave(3, 2)
    for labels in (coarse, smooth, smooth.to(torch.uint8)):
        found = edge_target(labels)
        assert found.dtype == torch.int64
        assert torch.equal(found, torch.stack([edges_in_loops(image) for image in labels]))


@pytest.mark.parametrize("axis", [0, 1])
def test_straight_edges_are_four_pixels_wide(axis):
    labels = torch.zeros(12, 12, dtype=torch.int64)
    labels.narrow(axis, 6, 6).fill_(3)
    assert edge_target(labels[None])[0].sum(axis).tolist() == [4] * 12


def test_ignored_pixels_make_no_edge_and_are_none():
    labels = torch.full((1, 8, 8), 255)
    labels[:, 2:6, 2:6] = 7
    assert not edge_target(labels).any()
    labels[:, 3, 3] = 255
    assert not edge_target(labels).any()
    assert edge_target(labels, ignore_index=-1).any()


def as_pytorch_weighs(logits, labels):
    """CE2P's own words: class weights from the counts of this batch, and PyTorch's mean."""
    target = edge_target(labels)
    positive, negative = (target == 1).sum().double(), (target == 0).sum().double()
    weight = torch.stack([positive, negative]) / (positive + negative)
    logits = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    return torch.nn.functional.cross_entropy(logits, target, weight=weight)


def test_edge_loss_weighs_by_the_other_one():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 3, 4)).repeat_interleave(5, 1).repeat_interleave(5, 2)
    labels[0, :4] = 255
    logits = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    loss = edge_loss(logits, labels)
    torch.testing.assert_close(loss, as_pytorch_weighs(logits, labels), rtol=1e-12, atol=0)
    # which is the mean of both means
    target = edge_target(labels)
    resized = torch.nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    pixels = torch.nn.functional.cross_entropy(resized, target, reduction="none")
    torch.testing.assert_close(loss, (pixels[target == 0].mean() + pixels[target == 1].mean()) / 2)


@pytest.mark.parametrize(
    "labels",
    [
        torch.full((2, 8, 8), 255),
        torch.zeros(2, 8, 8, dtype=torch.int64),
        torch.tensor([[[0, 1], [1, 0]]] * 2),  # nothing but edge
        torch.zeros(2, 1, 1, dtype=torch.int64),
    ],
)
def test_without_an_edge_or_without_anything_else_the_loss_is_zero(labels):
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = edge_loss(logits, labels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    logits = (100 * torch.randn(1, 2, 4, 4)).to(dtype)
    labels = torch.eye(8, dtype=torch.int64)[None]
    loss = edge_loss(logits, labels)
    assert loss.dtype == torch.float32 and loss == edge_loss(logits.float(), labels)


def outputs(num_labels: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    channels = {"logits": num_labels, "parsing_logits": num_labels, "edge_logits": 2, "category_embeddings": 6}
    return {name: torch.randn(2, count, 6, 7, dtype=torch.float64) for name, count in channels.items()}


def blocks(num_labels: int = 5) -> torch.Tensor:
    labels = torch.randint(0, num_labels, (2, 6, 8), generator=torch.Generator().manual_seed(1))
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[1, :, :5] = 255
    return labels


def test_every_loss_has_its_name_and_weight():
    config = tiny_parsing_config(
        parsing_loss_weight=0.5,
        edge_loss_weight=3.0,
        category_consistent_loss_weight=0.1,
        category_consistent_channels=6,
    )
    labels, given = blocks(), outputs()
    losses = ccnet_parsing_losses(config, labels, **given)
    assert list(losses) == ["fusion_loss", "parsing_loss", "edge_loss", "category_loss"]
    expected = {
        "fusion_loss": semantic_segmentation_loss(given["logits"], labels, align_corners=True),
        "parsing_loss": 0.5 * semantic_segmentation_loss(given["parsing_logits"], labels, align_corners=True),
        "edge_loss": 3 * as_pytorch_weighs(given["edge_logits"], labels),
        "category_loss": 0.1 * category_consistent_loss(given["category_embeddings"], labels, 5, align_corners=True),
    }
    torch.testing.assert_close(losses, expected)
    given.pop("category_embeddings")
    assert "category_loss" not in ccnet_parsing_losses(config, labels, **given)


def test_valid_pixels_and_class_weights_are_for_both_classifiers():
    config, labels, given = tiny_parsing_config(), blocks(), outputs()
    weights = torch.tensor([0.5, 1, 2, 1, 0.1], dtype=torch.float64)
    losses = ccnet_parsing_losses(config, labels, **given, class_weights=weights, valid_pixels=77)
    for name, logits in (("fusion_loss", "logits"), ("parsing_loss", "parsing_logits")):
        expected = semantic_segmentation_loss(
            given[logits], labels, align_corners=True, class_weights=weights, valid_pixels=77
        )
        torch.testing.assert_close(losses[name], expected)
    torch.testing.assert_close(losses["edge_loss"], as_pytorch_weighs(given["edge_logits"], labels))


def test_all_pixels_ignored_gives_zero_with_zero_gradients():
    given = {name: tensor.requires_grad_() for name, tensor in outputs().items()}
    config = tiny_parsing_config(category_consistent_loss_weight=1.0)
    loss = sum(ccnet_parsing_losses(config, torch.full((2, 24, 28), 255), **given).values())
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(tensor.grad, torch.zeros_like(tensor)) for tensor in given.values())
