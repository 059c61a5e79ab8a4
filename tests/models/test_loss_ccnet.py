"""Cross entropy, OHEM and the category-consistent loss against their formulas, written as loops in float64."""

import math

import pytest
import torch

from ccnet_hf import CCNetConfig
from ccnet_hf.models import loss_ccnet
from ccnet_hf.models.loss_ccnet import category_consistent_loss, ccnet_losses, ohem_loss, semantic_segmentation_loss


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


def test_given_valid_pixels_divide():
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    total = 28 * semantic_segmentation_loss(logits, labels)
    torch.testing.assert_close(semantic_segmentation_loss(logits, labels, valid_pixels=7.5), total / 7.5)
    torch.testing.assert_close(semantic_segmentation_loss(logits, labels, valid_pixels=torch.tensor(7)), total / 7)
    nothing = semantic_segmentation_loss(logits, torch.full_like(labels, 255), valid_pixels=0)
    assert nothing.item() == 0
    by_all = [semantic_segmentation_loss(logits, labels, reduction="all", valid_pixels=n) for n in (None, 7)]
    assert by_all[0] == by_all[1]


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_the_mean_over_unequal_shares_is_the_loss_of_the_joined_batch(reduction):
    logits, labels = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.randint(0, 3, (4, 12, 12))
    labels[0, 1:] = labels[1] = 255
    joined = semantic_segmentation_loss(logits, labels, reduction=reduction)
    per_pass = (labels != 255).sum() / 4
    shares = [
        semantic_segmentation_loss(logits[i : i + 1], labels[i : i + 1], reduction=reduction, valid_pixels=per_pass)
        for i in range(4)
    ]
    assert torch.stack(shares).mean().item() == pytest.approx(joined.item(), rel=1e-7)


# --- OHEM ------------------------------------------------------------------------------------------------------------


def nearest(position: float) -> int:
    return math.floor(position + 0.5)


def ohem_brute_force(logits, labels, threshold, min_kept):
    """The authors' criterion pixel by pixel; probabilities and labels are zoomed as scipy.ndimage.zoom does."""
    batch, height, width = labels.shape
    probabilities = logits.softmax(1)
    rows, columns = round(height / 8), round(width / 8)
    small = []
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                y = i * (height - 1) / (rows - 1) if rows > 1 else 0.0
                x = j * (width - 1) / (columns - 1) if columns > 1 else 0.0
                label = int(labels[b, nearest(y), nearest(x)])
                if label == 255:
                    continue
                top, left = int(y), int(x)
                bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                map_of_class = probabilities[b, label]
                small.append(
                    float(
                        (1 - y + top) * (1 - x + left) * map_of_class[top, left]
                        + (1 - y + top) * (x - left) * map_of_class[top, right]
                        + (y - top) * (1 - x + left) * map_of_class[bottom, left]
                        + (y - top) * (x - left) * map_of_class[bottom, right]
                    )
                )
    k = min_kept // 64
    if k >= len(small):
        bound = 1.0
    else:
        bound = max(threshold, sorted(small)[k - 1]) if k else threshold
    terms = []
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                label = int(labels[b, i, j])
                if label != 255 and probabilities[b, label, i, j] <= bound:
                    terms.append(-float(probabilities[b, label, i, j].log()))
    return sum(terms) / max(1, len(terms)), len(terms)


@pytest.fixture
def hard_and_easy():
    """Logits at the labels' size that are sure of most pixels, and labels with a tenth ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 33, 41), generator=generator)
    logits = torch.randn(2, 4, 33, 41, dtype=torch.float64, generator=generator)
    logits += 3 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
    labels[:, :3, :] = 255
    return logits, labels


@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 0), (0.7, 63), (0.7, 640), (0.05, 640), (0.05, 64), (0.7, 1300), (0.7, 10**6)]
)
def test_ohem_equals_the_authors_criterion(hard_and_easy, threshold, min_kept):
    logits, labels = hard_and_easy
    expected, kept = ohem_brute_force(logits, labels, threshold, min_kept)
    assert 10 < kept < 2600
    assert ohem_loss(logits, labels, threshold, min_kept).item() == pytest.approx(expected, rel=1e-12)


def test_ohem_settings_matter(hard_and_easy):
    logits, labels = hard_and_easy
    losses = {ohem_loss(logits, labels, *setting).item() for setting in [(0.7, 0), (0.05, 640), (0.05, 64)]}
    assert len(losses) == 3
    everything = semantic_segmentation_loss(logits, labels)
    torch.testing.assert_close(ohem_loss(logits, labels, 0.7, 10**6), everything)
    assert min(losses) > everything


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (12, 20), (20, 97), (65, 64)])
def test_ohem_samples_as_scipy_zooms(size):
    """Maps on which few labelled pixels decide, sizes that round down, to even, and up."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, *size, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (1, *size), generator=generator)
    for min_kept in (64, 128, 640):
        loss = ohem_loss(logits, labels, 0.01, min_kept).item()
        if min(size) >= 5:  # below, scipy's copy is empty and its threshold keeps all
            assert loss == pytest.approx(ohem_brute_force(logits, labels, 0.01, min_kept)[0], rel=1e-12)
        assert math.isfinite(loss)


def test_ohem_resizes_and_learns_from_kept_pixels_only():
    logits = torch.tensor([[[[9.0, 9.0, 0.0]], [[0.0, 0.0, 0.5]]]], requires_grad=True)
    loss = ohem_loss(logits, torch.zeros(1, 1, 3, dtype=torch.long), 0.7, 0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.5)))
    assert logits.grad[..., :2].eq(0).all() and logits.grad[..., 2].ne(0).all()
    small = torch.randn(1, 3, 5, 5)
    resized = torch.nn.functional.interpolate(small, (33, 33), mode="bilinear", align_corners=True)
    labels = torch.randint(0, 3, (1, 33, 33))
    expected = ohem_loss(resized, labels, 0.3, 256)
    torch.testing.assert_close(ohem_loss(small, labels, 0.3, 256, align_corners=True), expected)


def test_ohem_class_weights_change_the_terms_but_not_the_choice(hard_and_easy):
    logits, labels = hard_and_easy
    weights = torch.tensor([2.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    expected = sum(
        float(weight)
        * ohem_brute_force(logits, torch.where(labels == label, labels, 255), 0.7, 0)[0]
        * ohem_brute_force(logits, torch.where(labels == label, labels, 255), 0.7, 0)[1]
        for label, weight in enumerate(weights)
    )
    kept = ohem_brute_force(logits, labels, 0.7, 0)[1]
    loss = ohem_loss(logits, labels, 0.7, 0, class_weights=weights)
    assert loss.item() == pytest.approx(expected / kept, rel=1e-12)


@pytest.mark.parametrize("min_kept", [0, 64, 10**5])
def test_ohem_of_ignored_pixels_is_zero(min_kept):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = ohem_loss(logits, torch.full((1, 32, 32), 255), 0.7, min_kept, class_weights=torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


# --- category-consistent loss ----------------------------------------------------------------------------------------


def category_brute_force(embeddings, labels, num_labels, align_corners=False):
    """The paper's three terms over the batch, class by class and pixel by pixel."""
    batch, _, height, width = embeddings.shape
    full_height, full_width = labels.shape[1:]
    members = {}
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                if align_corners:
                    y = nearest(i * (full_height - 1) / max(1, height - 1))
                    x = nearest(j * (full_width - 1) / max(1, width - 1))
                else:
                    y = math.floor((i + 0.5) * full_height / height)
                    x = math.floor((j + 0.5) * full_width / width)
                label = int(labels[b, y, x])
                if label != 255:
                    assert label < num_labels
                    members.setdefault(label, []).append(embeddings[b, :, i, j])
    if not members:
        return 0.0, 0.0, 0.0
    means = {label: torch.stack(vectors).mean(0) for label, vectors in members.items()}

    def phi(distance):
        if distance <= 0.5:
            return 0.0
        if distance <= 1.5:
            return (distance - 0.5) ** 2
        return distance - 1.5 + (1.5 - 0.5) ** 2

    variance = 0.0
    for label, vectors in members.items():
        variance += sum(phi(float((vector - means[label]).norm())) for vector in vectors) / len(vectors)
    variance /= len(members)
    separation, pairs = 0.0, 0
    for a in means:
        for b in means:
            if a != b:
                pairs += 1
                distance = float((means[a] - means[b]).norm())
                separation += (3.0 - distance) ** 2 if distance <= 3.0 else 0.0
    separation /= max(1, pairs)
    return variance, separation, sum(float(mean.norm()) for mean in means.values()) / len(means)


def embeddings_and_labels(scale: float, batch: int = 2):
    generator = torch.Generator().manual_seed(3)
    embeddings = scale * torch.randn(batch, 5, 9, 7, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 6, (batch, 65, 49), generator=generator)
    labels = torch.where(labels == 4, 255, labels)  # a class that does not occur
    labels[:, :10] = 255
    return embeddings, labels


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])  # within the inner margin, across both, beyond
def test_category_loss_equals_the_papers_formulas(scale, align_corners):
    embeddings, labels = embeddings_and_labels(scale)
    variance, separation, regularization = category_brute_force(embeddings, labels, 6, align_corners)
    assert (variance > 0) == (scale > 0.2) and separation > 0 and regularization > 0
    loss = category_consistent_loss(embeddings, labels, 6, align_corners=align_corners)
    assert loss.item() == pytest.approx(variance + separation + 0.001 * regularization, rel=1e-12)


def test_category_loss_of_classes_that_are_far_apart_and_tight():
    embeddings = torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    embeddings[0, 0] = torch.tensor([0.0, 0.2, 4.0, 4.4], dtype=torch.float64)
    labels = torch.tensor([[[0, 0, 2, 2]]])
    expected = 0.001 * (0.1 + 4.2) / 2
    assert category_consistent_loss(embeddings, labels, 3).item() == pytest.approx(expected, rel=1e-12)


def test_category_loss_per_image_is_the_mean_over_the_images_with_a_class():
    embeddings, labels = embeddings_and_labels(0.7, batch=3)
    labels[1] = 255
    alone = [category_consistent_loss(embeddings[i : i + 1], labels[i : i + 1], 6).item() for i in (0, 2)]
    loss = category_consistent_loss(embeddings, labels, 6, per_image=True)
    assert loss.item() == pytest.approx(sum(alone) / 2, rel=1e-12)
    assert loss.item() != pytest.approx(category_consistent_loss(embeddings, labels, 6).item(), rel=1e-3)


@pytest.mark.parametrize("per_image", [False, True])
def test_gradients_of_the_category_loss(per_image):
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    labels[1, 2, 3] = 3  # a class of one pixel: distance 0, where a root has no slope

    def loss(embeddings):
        return category_consistent_loss(embeddings, labels, 5, per_image=per_image)

    assert torch.autograd.gradcheck(loss, [embeddings])


def test_gradients_of_ohem():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (1, 16, 20), generator=generator)
    assert torch.autograd.gradcheck(lambda logits: ohem_loss(logits, labels, 0.4, 128), [logits])


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("labelled", ["nothing", "one pixel", "one class", "equal vectors"])
def test_category_loss_with_hardly_any_class(labelled, per_image):
    embeddings = torch.randn(2, 4, 6, 6, requires_grad=True)
    labels = torch.full((2, 6, 6), 255)
    if labelled == "one pixel":
        labels[0, 2, 2] = 1
    elif labelled == "one class":
        labels[:] = 1
    elif labelled == "equal vectors":  # every distance and every length is 0
        embeddings = torch.zeros(2, 4, 6, 6, requires_grad=True)
        labels = torch.randint(0, 3, (2, 6, 6))
    loss = category_consistent_loss(embeddings, labels, 3, per_image=per_image)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(embeddings.grad).all()
    if labelled == "nothing":
        assert loss.item() == 0 and embeddings.grad.eq(0).all()
    if labelled == "one pixel":
        assert loss.item() == pytest.approx(0.001 * embeddings[0, :, 2, 2].norm().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_category_loss_is_computed_in_fp32(dtype):
    embeddings, labels = embeddings_and_labels(1.0)
    embeddings = embeddings.to(dtype)
    loss = category_consistent_loss(embeddings, labels, 6)
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert category_consistent_loss(embeddings, labels, 6) == loss
    assert loss == category_consistent_loss(embeddings.float(), labels, 6)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def everything():
    config = CCNetConfig(
        num_labels=4,
        ohem_threshold=0.4,
        ohem_min_kept=256,
        category_consistent_loss_weight=0.5,
        auxiliary_loss_weight=0.25,
        align_corners=True,
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 33, 33), generator=generator)
    labels[:, :5] = 255
    logits, auxiliary_logits, embeddings = (torch.randn(2, 4, 5, 5, generator=generator) for _ in range(3))
    return config, labels, logits, auxiliary_logits, embeddings


def test_losses_by_name(everything):
    config, labels, logits, auxiliary_logits, embeddings = everything
    losses = ccnet_losses(*everything)
    assert list(losses) == ["decode_loss", "auxiliary_loss", "category_loss"]
    assert losses["decode_loss"] == ohem_loss(logits, labels, 0.4, 256, align_corners=True)
    plain = semantic_segmentation_loss(auxiliary_logits, labels, align_corners=True)
    assert losses["auxiliary_loss"] == 0.25 * plain
    assert losses["category_loss"] == 0.5 * category_consistent_loss(embeddings, labels, 4, align_corners=True)
    assert list(ccnet_losses(config, labels, logits)) == ["decode_loss"]


def test_a_further_loss_is_its_function_its_field_and_its_row(everything, monkeypatch):
    """As a loss of the logits would be added; at a weight of 0 it is not even computed."""

    def brightness(config, logits, targets):
        assert targets.class_weights is None and targets.valid_pixels == 7
        return logits.mean() * config.num_labels

    config, _, logits, *_ = everything
    row = loss_ccnet.Loss(brightness, of="logits", weight="brightness_weight")
    monkeypatch.setitem(loss_ccnet.LOSSES, "brightness_loss", row)
    config.brightness_weight = 0.5
    losses = ccnet_losses(*everything, valid_pixels=7)
    assert list(losses)[-1] == "brightness_loss" and losses["brightness_loss"] == 0.5 * 4 * logits.mean()
    config.brightness_weight = 0.0
    assert list(ccnet_losses(*everything)) == ["decode_loss", "auxiliary_loss", "category_loss"]


def test_a_head_of_its_own_learns_nothing_from_a_weight_of_0_but_has_gradients(everything):
    """Else DistributedDataParallel would wait for them without end."""
    config, labels, logits, auxiliary_logits, _ = everything
    config.auxiliary_loss_weight = 0.0
    auxiliary_logits.requires_grad_()
    ccnet_losses(config, labels, logits, auxiliary_logits)["auxiliary_loss"].backward()
    assert auxiliary_logits.grad.eq(0).all()


def test_losses_compile_without_a_break_whatever_the_labels(everything):
    config, labels, *outputs = everything
    compiled = torch.compile(ccnet_losses, fullgraph=True, backend="aot_eager")
    one_class, nothing = torch.where(labels == 255, 255, 2), torch.full_like(labels, 255)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (labels, one_class, nothing):
            leaves = [[output.clone().requires_grad_() for output in outputs] for _ in range(2)]
            results = [
                function(config, batch, *leaf) for function, leaf in zip((ccnet_losses, compiled), leaves, strict=True)
            ]
            for name, loss in results[0].items():
                torch.testing.assert_close(results[1][name], loss)
            for losses in results:
                sum(losses.values()).backward()
            for eager, graph in zip(*leaves, strict=True):
                torch.testing.assert_close(graph.grad, eager.grad)
