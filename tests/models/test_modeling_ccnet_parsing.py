"""Human parsing the way transformers' users meet it; its numbers against SCHP's network are in tests/zoo."""

from typing import ClassVar

import pytest
import torch
import transformers
from model_cases import DenseModelTests, losses_of_a_training
from tiny_models import tiny_backbone_config, tiny_parsing_config, tiny_parsing_model
from transformers import (
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    TimmBackboneConfig,
)
from transformers.loss.loss_utils import ForSemanticSegmentationLoss

from ccnet_hf import CCNetForHumanParsing
from ccnet_hf.models.loss_ccnet import category_consistent_loss
from ccnet_hf.models.loss_ccnet_parsing import ccnet_parsing_losses


CONTEXT_MODULES = ("rcca", "pyramid")


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    labels = torch.randint(0, 5, (2, 13, 14), generator=torch.Generator().manual_seed(2))
    labels = labels.repeat_interleave(5, 1).repeat_interleave(7, 2)[..., :97]
    labels[:, :7] = 255
    return labels


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_module", CONTEXT_MODULES)
def test_output_shapes(context_module, pixel_values, labels):
    model = tiny_parsing_model(context_module=context_module)
    outputs = model(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
    assert outputs.loss.shape == ()
    assert outputs.logits.shape == outputs.parsing_logits.shape == (2, 5, 17, 25)
    assert outputs.edge_logits.shape == (2, 2, 17, 25)
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (8, 17, 25), (16, 17, 25), (32, 9, 13), (64, 5, 7), (64, 5, 7)
    ]  # fmt: skip
    rounds = 2 if context_module == "rcca" else 0
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 5, 7, 12)] * rounds


@pytest.mark.parametrize("context_module", CONTEXT_MODULES)
def test_optional_outputs_come_only_when_asked_for(context_module, pixel_values):
    model = tiny_parsing_model(context_module=context_module)
    assert set(model(pixel_values).keys()) == {"logits"}
    as_tuple = model(pixel_values, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == (2, 5, 17, 25)
    assert set(model.train()(pixel_values).keys()) == {"logits", "parsing_logits", "edge_logits"}


@pytest.mark.parametrize("context_module", CONTEXT_MODULES)
def test_loss_is_the_sum_in_both_modes(context_module, pixel_values, labels):
    model = tiny_parsing_model(context_module=context_module, classifier_dropout_prob=0.0, edge_loss_weight=0.3)
    for mode in (False, True):
        outputs = model.train(mode)(pixel_values, labels=labels)
        losses = ccnet_parsing_losses(
            model.config, labels, outputs.logits, outputs.parsing_logits, outputs.edge_logits
        )
        torch.testing.assert_close(outputs.loss, sum(losses.values()))
        assert list(losses) == ["fusion_loss", "parsing_loss", "edge_loss"] and min(losses.values()) > 0


def test_a_loss_function_of_the_users(pixel_values, labels):
    """As of the image model; it gets what the model's own does."""
    model = tiny_parsing_model()
    given = {}

    def loss_function(logits, labels, **kwargs):
        given.update(kwargs)
        return logits.square().mean() + labels.sum()

    model.loss_function = loss_function
    outputs = model(pixel_values, labels=labels, num_items_in_batch=7)
    assert outputs.loss == outputs.logits.square().mean() + labels.sum()
    assert given["parsing_logits"] is outputs.parsing_logits and given["edge_logits"] is outputs.edge_logits
    assert given["num_items_in_batch"] == 7 and given["config"] is model.config
    model.loss_function = ForSemanticSegmentationLoss
    assert model(pixel_values, labels=labels).loss > 0


def test_labels_are_any_integers_and_wrong_ones_are_named(pixel_values, labels):
    model = tiny_parsing_model()
    assert model(pixel_values, labels=labels.to(torch.uint8)).loss == model(pixel_values, labels=labels).loss
    with pytest.raises(ValueError, match="labels must be from 0 to 4, or 255 where pixels are ignored, got 7"):
        model(pixel_values, labels=labels.masked_fill(labels == 1, 7))
    with pytest.raises(ValueError, match="labels must be integers"):
        model(pixel_values, labels=labels.float())


def test_category_consistent_loss_looks_at_the_attended_map(pixel_values, labels):
    model = tiny_parsing_model(category_consistent_loss_weight=0.5, category_consistent_channels=6)
    attended = []
    model.context.attention.register_forward_hook(lambda module, inputs, output: attended.append(output[0]))
    outputs = model(pixel_values, labels=labels)
    embeddings = model.category_projection(attended[0])
    assert embeddings.shape == (2, 6, 5, 7)
    torch.testing.assert_close(outputs.category_embeddings, embeddings)
    others = ccnet_parsing_losses(model.config, labels, outputs.logits, outputs.parsing_logits, outputs.edge_logits)
    expected = sum(others.values()) + 0.5 * category_consistent_loss(embeddings, labels, 5, align_corners=True)
    torch.testing.assert_close(outputs.loss, expected)
    model.config.category_consistent_loss_weight = 0.0
    assert model(pixel_values, labels=labels).category_embeddings is None


def test_the_edge_branch_has_one_convolution_for_all_scales():
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_parsing_model().edge_branch.named_parameters()}
    assert shapes["classifier.weight"] == (2, 16, 3, 3) and shapes["fusion_classifier.weight"] == (2, 6, 1, 1)
    assert len([name for name in shapes if name.endswith("classifier.weight")]) == 2


def test_the_final_classifier_sees_the_edges(pixel_values):
    model = tiny_parsing_model()
    expected = model(pixel_values).logits
    with torch.no_grad():
        model.edge_branch.projections[2].normalization.bias.add_(1)
    assert not torch.allclose(model(pixel_values).logits, expected)


def test_corners_are_aligned_in_every_resize(pixel_values, labels, monkeypatch):
    """Nine of them in a network with pyramid pooling, three in its loss."""
    asked = []
    interpolate = torch.nn.functional.interpolate

    def record(*arguments, **options):
        asked.append((options["mode"], options["align_corners"]))
        return interpolate(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", record)
    tiny_parsing_model(context_module="pyramid")(pixel_values, labels=labels)
    assert asked == [("bilinear", True)] * (4 + 1 + 3 + 3 + 3)
    asked.clear()
    tiny_parsing_model(align_corners=False)(pixel_values, labels=labels)
    assert set(asked) == {("bilinear", False)}


@pytest.mark.parametrize("context_module", CONTEXT_MODULES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (31, 8)])
def test_images_of_any_size(context_module, size):
    model = tiny_parsing_model(context_module=context_module)
    labels = torch.zeros(1, *size, dtype=torch.int64)
    outputs = model(torch.randn(1, 3, *size), labels=labels)
    assert torch.isfinite(outputs.logits).all() and torch.isfinite(outputs.loss)


def test_options_of_the_context_module(pixel_values):
    model = tiny_parsing_model(concat_input=False, head_activation="relu", query_key_size=3)
    assert model.context.fusion is None and model.context.attention.query.out_channels == 3
    assert model.fusion(torch.randn(1, 64, 5, 5)).min() >= 0
    model = tiny_parsing_model(recurrence=0)
    assert model.context.attention is None and model(pixel_values, output_attentions=True).attentions == ()


class TestCCNetForHumanParsing(DenseModelTests):
    model_class = CCNetForHumanParsing
    classifiers: ClassVar = {"classifier", "parsing_classifier"}
    forms: ClassVar = {
        "rcca": {},
        "pyramid": {"context_module": "pyramid"},
        "category-consistent": {"category_consistent_loss_weight": 1.0},
    }

    def build(self, **options):
        return tiny_parsing_model(**options)

    def inputs(self):
        labels = torch.randint(0, 5, (2, 13, 14), generator=torch.Generator().manual_seed(2))
        labels = labels.repeat_interleave(5, 1).repeat_interleave(7, 2)[..., :97]
        labels[:, :7] = 255
        pixel_values = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": pixel_values, "labels": labels}


# --- saving, loading, initialising -----------------------------------------------------------------------------------


def test_initialisation():
    torch.manual_seed(0)
    model = CCNetForHumanParsing(tiny_parsing_config(hidden_size=256, decoder_channels=64))
    assert model.context.attention.gamma.item() == 0
    convolution = model.context.output_projection.convolution
    assert convolution.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)
    for classifier in (model.classifier, model.parsing_classifier, model.edge_branch.classifier):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert not classifier.bias.any()


def test_what_is_set_later_is_refused_with_the_model():
    config = tiny_parsing_config()
    config.num_labels = 1
    with pytest.raises(ValueError, match="num_labels must be at least 2"):
        CCNetForHumanParsing(config)


def test_a_backbone_that_names_no_feature_map_gives_its_last_four():
    model = CCNetForHumanParsing(tiny_parsing_config(backbone_config=tiny_backbone_config(out_features=None)))
    assert model.backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_a_backbone_with_three_feature_maps_is_refused():
    config = tiny_parsing_config(backbone_config=tiny_backbone_config(out_features=["stage2", "stage3", "stage4"]))
    with pytest.raises(ValueError, match="needs 4 feature maps"):
        CCNetForHumanParsing(config)


def test_transformers_knows_the_class_by_name():
    names = transformers.models.auto.modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    assert names["ccnet_parsing"] == "CCNetForHumanParsing"


# --- precision, compilation, training --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 does not trace transformers' outputs")
@pytest.mark.parametrize("context_module", CONTEXT_MODULES)
def test_export(context_module, pixel_values):
    model = tiny_parsing_model(context_module=context_module)
    program = torch.export.export(model, (pixel_values,))
    torch.testing.assert_close(program.module()(pixel_values)["logits"], model(pixel_values).logits)


BACKBONES = {
    "convnext": lambda: ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage1", "stage2", "stage3", "stage4"]
    ),
    "timm": lambda: TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False, out_indices=[1, 2, 3, 4]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones_train_a_step_and_reload(name, tmp_path):
    if name == "timm":
        pytest.importorskip("timm")
    model = tiny_parsing_model(backbone_config=BACKBONES[name]()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pixel_values, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    before = model.decoder.context_projection.convolution.weight.clone()
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(before, model.decoder.context_projection.convolution.weight)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values).logits, model.eval()(pixel_values).logits)


def test_transformers_trainer_learns(tmp_path):
    losses = losses_of_a_training(
        lambda: CCNetForHumanParsing(tiny_parsing_config(num_labels=2)), learning_rate=2e-2, folder=str(tmp_path)
    )
    # Three losses that start at ln 2 each; with two accumulation steps they must not double.
    assert losses[0] < 2.2
    assert losses[-1] < losses[0] / 2
