"""The model the way transformers' users meet it; its numbers against mmsegmentation are in tests/zoo."""

import math
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import transformers
from model_cases import DenseModelTests, losses_of_a_training
from tiny_models import tiny_backbone_config, tiny_config, tiny_model, wake_attention
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)
from transformers.loss.loss_utils import ForSemanticSegmentationLoss

from ccnet_hf import (
    CCNetConfig,
    CCNetForSemanticSegmentation,
    CCNetModel,
    CrissCrossAttention,
    RecurrentCrissCrossAttention,
)
from ccnet_hf.models.loss_ccnet import (
    category_consistent_loss,
    ohem_loss,
    paddleseg_ohem_loss,
    semantic_segmentation_loss,
)
from ccnet_hf.models.modeling_ccnet import in_whole_patches


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    labels = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(2))
    labels[:, :7] = 255
    return labels


# --- outputs -------------------------------------------------------------------------------------------------------


def test_output_shapes(pixel_values, labels):
    outputs = tiny_model()(pixel_values, labels=labels, output_hidden_states=True, output_attentions=True)
    assert outputs.loss.shape == ()
    assert outputs.logits.shape == outputs.auxiliary_logits.shape == (2, 5, 9, 13)
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (8, 17, 25), (16, 17, 25), (32, 9, 13), (64, 9, 13), (64, 9, 13)
    ]  # fmt: skip
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 9, 13, 22)] * 2


def test_optional_outputs_come_only_when_asked_for(pixel_values):
    assert set(tiny_model()(pixel_values).keys()) == {"logits"}
    assert set(tiny_model().model(pixel_values).keys()) == {"last_hidden_state", "feature_maps"}
    as_tuple = tiny_model()(pixel_values, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].shape == (2, 5, 9, 13)


def test_loss_is_decode_plus_weighted_auxiliary_in_both_modes(pixel_values, labels):
    model = tiny_model(auxiliary_loss_weight=0.3, classifier_dropout_prob=0.0)
    for mode in (False, True):
        outputs = model.train(mode)(pixel_values, labels=labels)
        losses = [
            torch.nn.functional.cross_entropy(
                torch.nn.functional.interpolate(logits, (65, 97), mode="bilinear"), labels, ignore_index=255
            )
            for logits in (outputs.logits, outputs.auxiliary_logits)
        ]
        torch.testing.assert_close(outputs.loss, losses[0] + 0.3 * losses[1])


def test_loss_of_hard_pixels(pixel_values, labels):
    model = tiny_model(ohem_threshold=0.21, ohem_min_kept=128, auxiliary_loss_weight=0.3, align_corners=True)
    outputs = model(pixel_values, labels=labels)
    hard = ohem_loss(outputs.logits, labels, 0.21, 128, align_corners=True)
    auxiliary = semantic_segmentation_loss(outputs.auxiliary_logits, labels, align_corners=True)
    torch.testing.assert_close(outputs.loss, hard + 0.3 * auxiliary)
    assert hard > 1.001 * semantic_segmentation_loss(outputs.logits, labels, align_corners=True)


def test_loss_of_hard_pixels_by_another_rule(pixel_values, labels):
    model = tiny_model(ohem_threshold=0.21, ohem_min_kept=128, ohem_rule="paddleseg", auxiliary_loss_weight=0.0)
    outputs = model(pixel_values, labels=labels)
    torch.testing.assert_close(outputs.loss, paddleseg_ohem_loss(outputs.logits, labels, 0.21, 128))


def test_category_consistent_loss_looks_at_the_attended_map(pixel_values, labels):
    """The paper's place for it: the output of the last round of attention, through a 1x1 convolution."""
    model = tiny_model(category_consistent_loss_weight=0.5, category_consistent_channels=6)
    attended = []
    model.model.head.attention.register_forward_hook(lambda module, inputs, output: attended.append(output[0]))
    outputs = model(pixel_values, labels=labels)
    embeddings = model.category_projection(attended[0])
    assert embeddings.shape == (2, 6, 9, 13)
    torch.testing.assert_close(outputs.category_embeddings, embeddings)
    plain = semantic_segmentation_loss(outputs.logits, labels)
    auxiliary = semantic_segmentation_loss(outputs.auxiliary_logits, labels)
    expected = plain + 0.4 * auxiliary + 0.5 * category_consistent_loss(embeddings, labels, 5)
    torch.testing.assert_close(outputs.loss, expected)
    assert set(model(pixel_values).keys()) == {"logits"}
    assert "category_embeddings" in model.train()(pixel_values)


def test_category_consistent_loss_without_attention_and_its_weights_in_the_base_model(tmp_path, pixel_values, labels):
    model = tiny_model(category_consistent_loss_weight=1.0, recurrence=0)
    assert model(pixel_values, labels=labels).loss.isfinite()
    model.save_pretrained(tmp_path)
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not [name for name, _ in tiny_model().named_parameters() if "category" in name]


def test_category_consistent_loss_can_be_switched_off(pixel_values, labels):
    model = tiny_model(category_consistent_loss_weight=0.5)
    assert model(pixel_values, labels=labels).category_embeddings is not None
    model.config.category_consistent_loss_weight = 0.0
    outputs = model(pixel_values, labels=labels)
    assert outputs.category_embeddings is None and outputs.loss.isfinite()


def test_last_hidden_state_is_what_the_classifier_sees(pixel_values):
    model = tiny_model()
    hidden_state = model.model(pixel_values).last_hidden_state
    assert hidden_state.shape == (2, 32, 9, 13)
    torch.testing.assert_close(model.classifier(hidden_state), model(pixel_values).logits)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (31, 8)])
def test_images_of_any_size(size):
    assert torch.isfinite(tiny_model()(torch.randn(1, 3, *size)).logits).all()


# --- attention -----------------------------------------------------------------------------------------------------


def test_an_untrained_layer_is_the_identity():
    hidden_state = torch.randn(1, 16, 5, 7)
    assert torch.equal(CrissCrossAttention(16)(hidden_state)[0], hidden_state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", "512"),
        ("hidden_size", 16.0),
        ("query_key_size", 0),
        ("query_key_size", -1),
        ("recurrence", 0),
        ("recurrence", 1.5),
        ("recurrence", True),
    ],
)
def test_layers_name_what_they_cannot_have(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value!r}"):
        RecurrentCrissCrossAttention(**{"hidden_size": 16} | {name: value})


def test_recurrence_applies_one_layer_repeatedly():
    torch.manual_seed(0)
    recurrent = RecurrentCrissCrossAttention(16, recurrence=3)
    wake_attention(recurrent)
    once = CrissCrossAttention(16)
    once.load_state_dict(recurrent.state_dict())
    hidden_state = torch.randn(1, 16, 5, 7)
    expected = hidden_state
    for _ in range(3):
        expected = once(expected)[0]
    torch.testing.assert_close(recurrent(hidden_state)[0], expected)


@pytest.mark.parametrize(("recurrence", "reached"), [(1, 5 + 7 - 1), (2, 5 * 7)])
def test_two_rounds_reach_every_pixel(recurrence, reached):
    """The paper's claim (section 3.3): one round sees row and column, two see the whole map."""
    torch.manual_seed(0)
    attention = RecurrentCrissCrossAttention(16, recurrence=recurrence)
    wake_attention(attention)
    hidden_state = torch.randn(1, 16, 5, 7, requires_grad=True)
    attention(hidden_state)[0][0, :, 2, 3].sum().backward()
    assert (hidden_state.grad.abs().sum(1) > 0).sum() == reached


def test_attentions_sum_to_one_and_reproduce_the_output(pixel_values):
    model = tiny_model().double()
    attention = model.model.head.attention
    inputs = []
    attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    outputs = model(pixel_values.double(), output_attentions=True)
    torch.testing.assert_close(outputs.logits, model(pixel_values.double()).logits)

    hidden_state = inputs[0]
    height = hidden_state.shape[-2]
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        own_column_weight = weights[..., :height].diagonal(dim1=1, dim2=3)
        assert torch.equal(own_column_weight, torch.zeros_like(own_column_weight))
        value = attention.value(hidden_state)
        context = torch.einsum("bhwi,bciw->bchw", weights[..., :height], value)
        context += torch.einsum("bhwj,bchj->bchw", weights[..., height:], value)
        hidden_state = attention.gamma * context + hidden_state
    torch.testing.assert_close(hidden_state, attention(inputs[0])[0])


def test_attentions_have_gradients(pixel_values):
    model = tiny_model()
    outputs = model(pixel_values, output_attentions=True)
    outputs.attentions[0].square().sum().backward()
    assert model.model.head.attention.query.weight.grad.abs().sum() > 0


def test_a_loss_function_of_transformers(pixel_values, labels):
    """Its own function for this task can be taken."""
    model = tiny_model(semantic_loss_ignore_index=255)
    plain = model(pixel_values, labels=labels).loss
    model.loss_function = ForSemanticSegmentationLoss
    torch.testing.assert_close(model(pixel_values, labels=labels).loss, plain)


def test_recurrence_zero_is_the_plain_head(pixel_values):
    model = tiny_model(recurrence=0)
    assert model.model.head.attention is None
    assert model(pixel_values, output_attentions=True).attentions == ()


def test_options_of_the_head(pixel_values):
    model = tiny_model(concat_input=False, head_activation="leaky_relu", query_key_size=3, use_auxiliary_head=False)
    assert model.model.head.fusion is None and model.auxiliary_head is None
    assert model.model.head.attention.query.out_channels == 3
    assert model.model(pixel_values).last_hidden_state.min() < 0


@pytest.mark.parametrize(("rest", "around"), [("relu", "leaky_relu"), ("leaky_relu", "relu")])
def test_activation_around_the_attention(rest, around):
    model = tiny_model(head_activation=rest, attention_activation=around)
    head, kinds = model.model.head, {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}
    for layer in (head.input_projection, head.output_projection):
        assert type(layer.activation) is kinds[around]
    for layer in (head.fusion, model.auxiliary_head.projection):
        assert type(layer.activation) is kinds[rest]


def test_a_pooled_shortcut_has_the_same_tensors_and_other_numbers(pixel_values):
    plain, pooled = (tiny_model(backbone_config=tiny_backbone_config(pooled_shortcut=x)) for x in (False, True))
    pooled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(pixel_values).logits, pooled(pixel_values).logits, atol=1e-3)


class TestCCNetForSemanticSegmentation(DenseModelTests):
    model_class = CCNetForSemanticSegmentation
    classifiers: ClassVar = {"classifier", "auxiliary_head.classifier"}
    forms: ClassVar = {
        "cross entropy": {},
        "ohem": {"ohem_threshold": 0.7, "ohem_min_kept": 128},
        "category-consistent": {"category_consistent_loss_weight": 1.0},
    }

    def build(self, **options):
        return tiny_model(**options)

    def inputs(self):
        labels = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(2))
        labels[:, :7] = 255
        pixel_values = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
        return {"pixel_values": pixel_values, "labels": labels}

    def test_gradient_checkpointing_of_a_backbone_without_it(self):
        """ConvNeXt has no layers to checkpoint, the head has."""
        self.test_gradient_checkpointing_gives_equal_gradients({"backbone_config": BACKBONES["convnext"]()})

    @pytest.mark.parametrize("use_auxiliary_head", [False, True])
    def test_heads_that_are_not_split(self, use_auxiliary_head):
        names = self.build(use_auxiliary_head=use_auxiliary_head)._no_split_modules
        assert "CCNetHead" in names and ("CCNetAuxiliaryHead" in names) == use_auxiliary_head


# --- saving, loading, initialising -----------------------------------------------------------------------------------


def test_auto_model_gives_the_part_before_the_classifier(tmp_path, pixel_values):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is CCNetModel and not any(info.values())
    assert torch.equal(
        base.eval()(pixel_values).last_hidden_state, model.model(pixel_values).last_hidden_state
    )  # fmt: skip


def test_initialisation_is_mmsegmentations():
    torch.manual_seed(0)
    model = CCNetForSemanticSegmentation(tiny_config(hidden_size=256))
    attention = model.model.head.attention
    assert attention.gamma.item() == 0
    assert attention.query.weight.abs().max() <= 256**-0.5 < 1.02 * attention.query.weight.abs().max()
    for convolution in (
        model.model.head.output_projection.convolution,
        model.model.backbone.stages[1].blocks[0].conv2.convolution,
    ):
        fan_out = convolution.out_channels * 9
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(model.classifier.bias, torch.zeros(5))


def test_a_backbone_with_one_feature_map_cannot_feed_the_auxiliary_head():
    config = tiny_config(backbone_config=tiny_backbone_config(out_features=["stage3"]))
    with pytest.raises(ValueError, match="second feature map"):
        CCNetForSemanticSegmentation(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_labels", 1, "num_labels must be at least 2"),
        ("num_labels", 10**6, "num_labels must be at most 65,536"),
        ("recurrence", 10**9, "recurrence must be at most 100"),
    ],
)
def test_what_is_set_later_is_refused_with_the_model(name, value, message):
    config = tiny_config()
    setattr(config, name, value)
    for model_class in (CCNetModel, CCNetForSemanticSegmentation):
        with pytest.raises(ValueError, match=message):
            model_class(config)


def test_transformers_knows_the_classes_by_name():
    """Its pipeline, and its shared tests, which would train a base model or a backbone that has no loss."""
    names = transformers.models.auto.modeling_auto
    assert "CCNetModel" in names.MODEL_MAPPING_NAMES.values()
    assert "CCNetForSemanticSegmentation" in names.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values()
    assert "CCNetResNetBackbone" in names.MODEL_FOR_BACKBONE_MAPPING_NAMES.values()


# --- precision, compilation, training --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inputs_take_the_dtype_of_the_weights(dtype, pixel_values):
    """Of the model, of the part before its classifier, and of the backbone alone."""
    model = tiny_model().to(dtype)
    for other in {torch.float32, torch.float16} - {dtype}:
        given, same = pixel_values.to(other), pixel_values.to(other).to(dtype)
        assert torch.equal(model(given).logits, model(same).logits)
        assert torch.equal(model.model(given).last_hidden_state, model.model(same).last_hidden_state)
        backbone = model.model.backbone
        assert torch.equal(backbone(given).feature_maps[-1], backbone(same).feature_maps[-1])


def test_inputs_must_be_normalised_images(pixel_values):
    model = tiny_model()
    for part in (model, model.model, model.model.backbone):
        with pytest.raises(ValueError, match="pixel_values must be floating point"):
            part((pixel_values * 100).to(torch.uint8))
        for shape in ((3, 32, 32), (1, 3, 0, 32), (1, 3, 32, 0), (1, 2, 3, 32, 32)):
            with pytest.raises(
                ValueError, match=rf"pixel_values must be \(batch, .* got shape {re.escape(str(shape))}"
            ):
                part(torch.zeros(shape))
        for shape in ((1, 1, 32, 32), (1, 4, 32, 32), (1, 32, 32, 3)):
            with pytest.raises(ValueError, match=rf"pixel_values .* num_channels=3, .*{re.escape(str(shape))}"):
                part(torch.zeros(shape))
        for other in (pixel_values.numpy(), pixel_values.tolist(), None):
            with pytest.raises(ValueError, match=f"pixel_values must be a tensor .*, got {type(other).__name__}"):
                part(other)


def test_the_checkpoint_in_the_repository_runs_as_it_loads():
    pytest.importorskip("timm")
    folder = Path(__file__).parents[2] / "checkpoints" / "ccnet-mobilenetv2-camvid"
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model(torch.zeros(1, 3, 64, 64)).logits.dtype == torch.float32
    half = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.float16)
    assert half(torch.zeros(1, 3, 64, 64)).logits.dtype == torch.float16


LABEL_DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16]


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
@pytest.mark.parametrize(
    "config", [{}, {"ohem_threshold": 0.7, "ohem_min_kept": 128}, {"category_consistent_loss_weight": 1.0}]
)
def test_labels_of_any_integer_dtype(dtype, config, pixel_values, labels):
    model = tiny_model(**config)
    assert torch.equal(model(pixel_values, labels=labels.to(dtype)).loss, model(pixel_values, labels=labels).loss)


def test_labels_may_be_masks(pixel_values, labels):
    model = tiny_model(num_labels=2)
    assert torch.equal(
        model(pixel_values, labels=labels > 2).loss, model(pixel_values, labels=(labels > 2).long()).loss
    )


@pytest.mark.parametrize("wrong", [-100, -1, 5, 254, 256])
def test_labels_that_are_no_class_are_named(wrong, pixel_values, labels):
    labels[1, 30, 40] = wrong
    with pytest.raises(ValueError, match=f"labels must be from 0 to 4, or 255 where pixels are ignored, got {wrong}$"):
        tiny_model()(pixel_values, labels=labels)


def test_labels_must_be_ids(pixel_values, labels):
    with pytest.raises(ValueError, match=r"labels must be integers, the ids of classes, got torch\.float32"):
        tiny_model()(pixel_values, labels=labels.float())
    for other in (labels.numpy(), labels.tolist()):
        with pytest.raises(ValueError, match=f"labels must be a tensor .*, got {type(other).__name__}"):
            tiny_model()(pixel_values, labels=other)
    with pytest.raises(ValueError, match=r"labels must be .* with pixels .* got labels \(2, 0, 97\)"):
        tiny_model()(pixel_values, labels=labels[:, :0])


def test_autocast_decides_what_is_computed_in_half_precision(pixel_values):
    """The network takes what it is given, whatever its weights are."""
    model = tiny_model()
    inputs = []
    model.model.backbone.stem.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].dtype))
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            model.to(dtype)(pixel_values)
    assert inputs == [torch.float32, torch.float32]


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 does not trace transformers' outputs")
def test_a_compiled_model_takes_other_dtypes(pixel_values, labels):
    torch.compiler.reset()  # other tests compile the same code
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(pixel_values, labels=labels)
    found = compiled(pixel_values.double(), labels=labels.to(torch.uint8))
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.nightly
def test_compile_with_inductor(pixel_values):
    torch.compiler.reset()
    model = tiny_model()
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True)(pixel_values).logits
        torch.testing.assert_close(compiled, model(pixel_values).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 does not trace transformers' outputs")
@pytest.mark.parametrize("multiple", [1, 8])
def test_export_with_dynamic_height_and_width(multiple, pixel_values):
    if multiple == 1 and torch.__version__.startswith("2.11."):
        pytest.skip("torch 2.11 exports max pooling for even or for odd sizes only")
    model = tiny_model()
    height = torch.export.Dim("height", min=32 // multiple, max=1024 // multiple)
    width = torch.export.Dim("width", min=32 // multiple, max=2048 // multiple)
    sizes = {2: multiple * height, 3: multiple * width} if multiple > 1 else {2: height, 3: width}
    example = pixel_values if multiple == 1 else pixel_values[..., :64, :96]
    program = torch.export.export(model, (example,), dynamic_shapes={"pixel_values": sizes})
    other = torch.randn(2, 3, 48, 131 if multiple == 1 else 136)
    torch.testing.assert_close(program.module()(other)["logits"], model(other).logits)


@pytest.mark.nightly
def test_onnx_export_with_dynamic_height_and_width(pixel_values, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_model()
    sides = {axis: 8 * torch.export.Dim(name, min=4, max=256) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.onnx.export(
        model, (pixel_values[..., :64, :96],), dynamo=True, dynamic_shapes={"pixel_values": sides}, verbose=False
    )
    file = str(tmp_path / "model.onnx")
    program.save(file)
    session = onnxruntime.InferenceSession(file)
    other = torch.randn(2, 3, 48, 136)
    logits, *_ = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(other).logits)


BACKBONES = {
    "convnext": lambda: ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=["stage3", "stage4"]
    ),
    "swin": lambda: SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage3", "stage4"],
    ),
    "dinov3_vit": lambda: DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        out_features=["stage1", "stage2"],
    ),
    "resnet": lambda: ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], embedding_size=8, out_features=["stage3", "stage4"]
    ),
    "timm resnet18": lambda: TimmBackboneConfig(
        backbone="resnet18", use_pretrained_backbone=False, out_indices=[3, 4]
    ),
    "timm mobilenetv2_050": lambda: TimmBackboneConfig(
        backbone="mobilenetv2_050", use_pretrained_backbone=False, out_indices=[3, 4], output_stride=8
    ),
}


@pytest.mark.parametrize("name", ["timm resnet18", "timm mobilenetv2_050"])
def test_hidden_states_of_timms_backbones_are_their_feature_maps(name, pixel_values):
    pytest.importorskip("timm")
    config = CCNetConfig(backbone_config=BACKBONES[name](), hidden_size=16, auxiliary_channels=8, num_labels=3)
    model = CCNetModel(config).eval()
    outputs = model(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == 2
    assert all(map(torch.equal, outputs.hidden_states, outputs.feature_maps))
    assert model(pixel_values).hidden_states is None


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones_train_a_step_and_reload(name, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    config = CCNetConfig(backbone_config=BACKBONES[name](), hidden_size=16, auxiliary_channels=8, num_labels=3)
    model = CCNetForSemanticSegmentation(config).train()
    wake_attention(model.model.head.attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pixel_values, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 64, 96))
    before = model.model.head.input_projection.convolution.weight.clone()
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, model.model.head.input_projection.convolution.weight)
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.model.backbone.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixel_values).logits, model.eval()(pixel_values).logits)


@pytest.mark.parametrize("name, unit", [("convnext", 32), ("swin", 32), ("dinov3_vit", 16)])
def test_networks_of_patches_see_the_whole_image_in_whole_patches(name, unit, pixel_values):
    """So that their maps cover it: an image of another size is enlarged to the next multiple."""
    config = CCNetConfig(backbone_config=BACKBONES[name](), hidden_size=16, auxiliary_channels=8, num_labels=3)
    model = CCNetForSemanticSegmentation(config).eval()
    size = tuple(math.ceil(side / unit) * unit for side in pixel_values.shape[-2:])
    enlarged = torch.nn.functional.interpolate(pixel_values, size, mode="bilinear")
    assert torch.equal(in_whole_patches(enlarged, config.backbone_config), enlarged)
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert torch.equal(logits, model(enlarged).logits)
        assert logits.shape[-2:] == (size[0] // unit, size[1] // unit)
        assert model(pixel_values[..., :1, :1]).logits.shape == (2, 3, 1, 1)


def test_networks_without_patches_see_images_as_they_are(pixel_values):
    assert in_whole_patches(pixel_values, tiny_backbone_config()) is pixel_values
    assert in_whole_patches(pixel_values, BACKBONES["resnet"]()) is pixel_values


def test_transformers_trainer_learns(tmp_path):
    losses = losses_of_a_training(
        lambda: CCNetForSemanticSegmentation(tiny_config(num_labels=2)), learning_rate=3e-3, folder=str(tmp_path)
    )
    # Decode plus 0.4 of the auxiliary loss starts at 1.4 ln 2; with two accumulation steps it must not double.
    assert losses[0] < 1.3
    assert losses[-1] < losses[0] / 2
