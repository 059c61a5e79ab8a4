"""Schedule, parameter groups, class weights and losses against their formulas."""

from functools import partial

import pytest
import torch
from torch import nn

from ccnet_hf import CCNetConfig, CCNetForSemanticSegmentation
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


def groups_of(model: nn.Module, recipe: TrainingRecipe) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, each of which is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in build_optimizer(model, recipe).param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


BACKBONES = {
    "convnext": {"hidden_sizes": [4, 8], "depths": [1, 2], "num_stages": 2, "out_features": ["stage1", "stage2"]},
    "dinov3_vit": {
        **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 1},
        **{"num_register_tokens": 2, "out_features": ["stage2", "stage3"]},
    },
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "out_features": ["stage1", "stage2"]},
    "timm_backbone": {"backbone": "mobilenetv2_050", "out_indices": [3, 4], "freeze_batch_norm_2d": False},
    "ccnet_resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "stem_size": 8},
}


def with_backbone(model_type: str) -> CCNetForSemanticSegmentation:
    backbone = {"model_type": model_type} | BACKBONES[model_type]
    config = CCNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_channels=8, num_labels=3)
    return CCNetForSemanticSegmentation(config)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        (
            "convnext",
            {
                "embeddings.patch_embeddings.weight": 3,
                "encoder.stages.0.layers.0.dwconv.weight": 2,
                "encoder.stages.1.downsampling_layer.1.weight": 1,
                "encoder.stages.1.layers.1.layer_scale_parameter": 1,
                "hidden_states_norms.stage1.weight": 0,
            },
        ),
        (
            "dinov3_vit",
            {
                "embeddings.register_tokens": 4,
                "embeddings.patch_embeddings.weight": 4,
                "layer.0.attention.q_proj.weight": 3,
                "layer.1.layer_scale1.lambda1": 2,
                "layer.2.mlp.down_proj.bias": 1,
                "backbone.norm.weight": 0,
            },
        ),
        (
            "swin",
            {
                "embeddings.patch_embeddings.projection.weight": 3,
                "encoder.layers.0.blocks.1.layernorm_before.weight": 2,
                "encoder.layers.0.downsample.reduction.weight": 2,
                "encoder.layers.1.blocks.0.layernorm_before.weight": 1,
                "hidden_states_norms.stage2.bias": 0,
            },
        ),
        (
            "timm_backbone",
            {
                "_backbone.conv_stem.weight": 8,
                "_backbone.blocks.0.0.conv_dw.weight": 7,
                "_backbone.blocks.6.0.conv_pw.weight": 1,
            },
        ),
        (
            "ccnet_resnet",
            {
                "stem.convolutions.0.convolution.weight": 5,
                "stages.0.blocks.0.conv1.convolution.weight": 4,
                "stages.3.blocks.0.conv3.convolution.weight": 1,
            },
        ),
    ],
)
def test_each_layer_learns_at_layer_decay_times_the_rate_of_the_next(model_type, expected):
    model = with_backbone(model_type)
    factor, decay = 0.5, 0.7
    recipe = make_recipe(max_train_steps=1, optimizer="adamw", backbone_learning_rate_factor=factor, layer_decay=decay)
    groups = groups_of(model, recipe)
    for ending, below in expected.items():  # what stands before it changes between versions of transformers
        ((name, group),) = ((name, group) for name, group in groups.items() if name.endswith(f".{ending}"))
        assert group == pytest.approx((0.01 * factor * decay**below, 5e-4)), name
    for name, group in groups.items():
        if ".backbone." not in name:
            assert group == (0.01, 5e-4), name
    rates = {rate for name, (rate, _) in groups.items() if ".backbone." in name}
    highest = max(expected.values())
    assert len(rates) == highest + (0 in expected.values())
    assert min(rates) == pytest.approx(0.01 * factor * decay**highest)


def test_the_first_group_is_the_heads():
    recipe = make_recipe(max_train_steps=1, layer_decay=0.5, decay_norms_and_biases=False)
    optimizer = build_optimizer(with_backbone("swin"), recipe)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert build_scheduler(optimizer, recipe).get_last_lr()[0] == rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("model_type", ["convnext", "dinov3_vit", "swin"])
def test_only_weights_of_convolutions_and_linear_layers_decay(model_type):
    model = with_backbone(model_type)
    groups = groups_of(model, make_recipe(max_train_steps=1, decay_norms_and_biases=False))
    decaying = {name for name, (_, decay) in groups.items() if decay == 5e-4}
    layers = (nn.Linear, nn.Conv2d)
    modules = model.named_modules()
    assert decaying == {f"{name}.weight" for name, module in modules if isinstance(module, layers)}
    assert {decay for _, decay in groups.values()} == {0.0, 5e-4}
    spared = {
        "convnext": ("layer_scale_parameter", "layernorm.weight", "dwconv.bias"),
        "dinov3_vit": ("cls_token", "register_tokens", "lambda1", "norm1.weight", "q_proj.bias"),
        "swin": ("relative_position_bias_table", "layernorm_before.weight", "projection.bias"),
    }
    for ending in (*spared[model_type], "attention.gamma", "normalization.weight", "classifier.bias"):
        assert any(name.endswith(ending) for name in groups.keys() - decaying), ending
    assert set(groups_of(model, make_recipe(max_train_steps=1)).values()) == {(0.01, 5e-4)}


def test_a_backbone_without_layers_has_no_layer_decay():
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="layer_decay must be 1 for a backbone without numbered stages or blocks"):
        build_optimizer(model, make_recipe(max_train_steps=1, layer_decay=0.9))


def test_a_table_of_positions_does_not_decay():
    model = nn.ModuleDict({"positions": nn.Embedding(3, 4), "head": nn.Linear(4, 2)})
    groups = groups_of(model, make_recipe(max_train_steps=1, decay_norms_and_biases=False))
    assert groups == {"positions.weight": (0.01, 0.0), "head.weight": (0.01, 5e-4), "head.bias": (0.01, 0.0)}


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
