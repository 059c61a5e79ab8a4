"""Schedule, parameter groups, class weights and losses against their formulas."""

from functools import partial

import pytest
import torch
from torch import nn

from ccnet_hf import CCNetConfig
from ccnet_hf.models.modeling_ccnet import CCNetSemanticSegmenterOutput
from ccnet_hf.recipes import RECIPES, TrainingRecipe
from ccnet_hf.training.objective import SemanticObjective, class_weights_from_counts
from ccnet_hf.training.optimization import (
    build_optimizer,
    build_scheduler,
    learning_rate_factor,
)


def losses_of(objective: SemanticObjective, outputs: CCNetSemanticSegmenterOutput, labels) -> dict[str, torch.Tensor]:
    """The losses of one pass, and their sum as `loss`."""
    batch = {"pixel_values": torch.zeros(1), "labels": labels}
    losses = objective(lambda pixel_values: outputs, batch, objective.counts(batch))
    assert all(name.endswith("_loss") for name in losses)
    return {"loss": sum(losses.values()), **losses}


def make_recipe(**changes) -> TrainingRecipe:
    return TrainingRecipe(**({"crop_size": (4, 4), "scale": (4, 4), "batch_size": 1, "eval_steps": 1} | changes))


def learning_rates(recipe: TrainingRecipe, steps: int) -> list[list[float]]:
    module = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    optimizer = build_optimizer(module, recipe)
    scheduler = build_scheduler(optimizer, recipe)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_with_floor():
    rates = learning_rates(make_recipe(max_train_steps=100), 101)
    for step in (0, 1, 50, 99, 100):
        assert rates[step][0] == pytest.approx(1e-4 + (0.01 - 1e-4) * (1 - step / 100) ** 0.9, rel=1e-9)
    assert rates[100][0] == pytest.approx(1e-4)


ZOO = [recipe for recipe in RECIPES.values() if recipe.checkpoint_file]


@pytest.mark.parametrize("recipe", ZOO, ids=lambda recipe: recipe.name)
def test_learning_rates_are_mmsegmentations_at_every_step(recipe):
    """lr(t) = eta_min + (lr0 - eta_min) (1 - t / end)^power for the t-th iteration, t from 0."""
    training, end = recipe.training, recipe.training.max_train_steps
    ours = torch.tensor([0.01 * learning_rate_factor(step, training) for step in range(end)], dtype=torch.float64)
    steps = torch.arange(end, dtype=torch.float64)
    torch.testing.assert_close(ours, 1e-4 + (0.01 - 1e-4) * (1 - steps / end) ** 0.9, rtol=1e-12, atol=0)
    assert ours[0] == 0.01 and ours[-1] > 1e-4 and (ours.diff() < 0).all()


def test_stepping_through_a_whole_schedule():
    """The optimiser's own rate at every step, against mmengine's recursion from each rate to the next."""
    recipe = make_recipe(max_train_steps=3000)
    expected = [0.01]
    for step in range(1, 3000):
        expected.append((expected[-1] - 1e-4) * (1 - 1 / (3000 - step + 1)) ** 0.9 + 1e-4)
    rates = learning_rates(recipe, 3000)
    assert [rate for rate, _ in rates] == pytest.approx(expected, rel=1e-9)


def test_sgd_decays_every_parameter_like_mmsegmentation(model):
    """One rate and one decay for weights, biases, batch norms and gamma, with momentum: two steps by formula."""
    model = model()
    recipe = RECIPES["ccnet-r50-cityscapes-512x1024-40k"].training
    optimizer = build_optimizer(model, recipe)
    names = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    with torch.no_grad():
        for parameter in names.values():
            parameter.add_(0.5)  # biases and gamma start at 0
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    gradients = {name: torch.randn_like(parameter) for name, parameter in names.items()}
    for _ in range(2):
        for name, parameter in names.items():
            parameter.grad = gradients[name].clone()
        optimizer.step()
    for name, parameter in names.items():
        first = gradients[name] + 5e-4 * before[name]
        between = before[name] - 0.01 * first
        second = 0.9 * first + gradients[name] + 5e-4 * between
        torch.testing.assert_close(parameter.detach(), between - 0.01 * second, msg=name)


def test_warm_up_and_backbone_factor():
    recipe = make_recipe(max_train_steps=100, warmup_steps=4, backbone_learning_rate_factor=0.3, min_learning_rate=0.0)
    rates = learning_rates(recipe, 6)
    poly = [0.01 * (1 - step / 100) ** 0.9 for step in range(6)]
    for step, warm in enumerate([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]):
        assert rates[step] == pytest.approx([warm * poly[step], 0.3 * warm * poly[step]])


def test_constant_when_the_floor_is_the_rate():
    rates = learning_rates(make_recipe(max_train_steps=10, min_learning_rate=0.01), 10)
    assert all(rate == [0.01, 0.01] for rate in rates)


def test_optimizers_and_frozen_parameters(model):
    model = model()
    model.model.backbone.requires_grad_(False)
    sgd = build_optimizer(model, make_recipe(max_train_steps=1))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["weight_decay"] == 5e-4
    (group,) = sgd.param_groups
    assert len(group["params"]) == sum(p.requires_grad for p in model.parameters())
    adamw = build_optimizer(model.requires_grad_(True), make_recipe(max_train_steps=1, optimizer="adamw"))
    assert isinstance(adamw, torch.optim.AdamW)
    backbone = {id(p) for p in model.model.backbone.parameters()}
    assert {id(p) for p in adamw.param_groups[1]["params"]} == backbone
    assert not backbone & {id(p) for p in adamw.param_groups[0]["params"]}


def test_class_weights():
    counts = torch.tensor([810, 160, 30, 0])
    weights = class_weights_from_counts(counts, 0.5)
    assert weights[1] / weights[0] == pytest.approx((0.81 / 0.16) ** 0.5)
    assert weights[3] == weights[2]
    assert float((weights * counts).sum()) / 1000 == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no pixel of the training split is labelled"):
        class_weights_from_counts(torch.zeros(3, dtype=torch.int64), 0.5)


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_losses_by_hand(reduction):
    torch.manual_seed(0)
    config = CCNetConfig(num_labels=3, loss_reduction=reduction, auxiliary_loss_weight=0.25)
    logits, auxiliary = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = 255
    class_weights = torch.tensor([0.5, 1.0, 3.0])
    outputs = CCNetSemanticSegmenterOutput(logits=logits, auxiliary_logits=auxiliary)
    objective = SemanticObjective(config, class_weights)
    losses = losses_of(objective, outputs, labels)

    def by_hand(scores):
        total, counted = 0.0, 0
        for b in range(2):
            for i in range(4):
                for j in range(4):
                    label = int(labels[b, i, j])
                    if label != 255:
                        total -= class_weights[label] * scores[b, :, i, j].log_softmax(0)[label]
                        counted += 1
        return total / (32 if reduction == "all" else counted)

    torch.testing.assert_close(losses["decode_loss"], by_hand(logits))
    torch.testing.assert_close(losses["auxiliary_loss"], 0.25 * by_hand(auxiliary))
    torch.testing.assert_close(losses["loss"], losses["decode_loss"] + losses["auxiliary_loss"])


@pytest.mark.parametrize(
    "extras", [{}, {"ohem_threshold": 0.5, "ohem_min_kept": 64}, {"category_consistent_loss_weight": 0.5}]
)
def test_losses_without_weights_are_the_models_own(model, extras):
    model = model(**extras).train()
    pixel_values, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    labels[:, :9] = 255
    torch.manual_seed(0)
    own = model(pixel_values=pixel_values, labels=labels).loss
    torch.manual_seed(0)
    losses = losses_of(SemanticObjective(model.config), model(pixel_values=pixel_values), labels)
    torch.testing.assert_close(losses["loss"], own)
    assert ("category_loss" in losses) == ("category_consistent_loss_weight" in extras)
    assert losses["loss"] == sum(value for name, value in losses.items() if name != "loss")


@pytest.mark.parametrize("reduction", ["valid", "all"])
def test_gradients_of_unequal_passes_add_up_to_the_joined_batch(model, reduction):
    """Three passes with all, some and none of their pixels labelled, each divided by their number as the loop does."""
    model = model(loss_reduction=reduction, classifier_dropout_prob=0.0).double().eval()
    pixel_values = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 32, 32))
    labels[1, :20] = 255
    labels[2] = 255
    objective = SemanticObjective(model.config)

    def gradients(parts, valid_pixels):
        model.zero_grad()
        for part in parts:
            batch = {"pixel_values": pixel_values[part], "labels": labels[part]}
            counts = objective.counts(batch) if valid_pixels is None else {"valid_pixels": valid_pixels}
            # With labels the model gives its outputs in training mode.
            losses = objective(partial(model, labels=labels[part]), batch, counts)
            (sum(losses.values()) / len(parts)).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    joined = gradients([slice(0, 3)], None)
    parts = gradients([slice(i, i + 1) for i in range(3)], (labels != 255).sum() / 3)
    for one, other in zip(joined, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    if reduction == "valid":
        alone = gradients([slice(i, i + 1) for i in range(3)], None)
        assert not torch.allclose(joined[-1], alone[-1], rtol=1e-2)


def test_all_ignored_gives_zero():
    config = CCNetConfig(num_labels=3)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    outputs = CCNetSemanticSegmenterOutput(logits=logits)
    loss = losses_of(SemanticObjective(config, torch.ones(3)), outputs, torch.full((1, 4, 4), 255))["loss"]
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.eq(0).all()
