"""What stays in float32 of an OpenVINO program in bfloat16: the layers with large maps, up to one map that carries
all that follows."""

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import ConvNextConfig, TimmBackboneConfig

from ccnet_hf.deployment.programs import make_program
from ccnet_hf.deployment.runtimes import rewrite


openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")

from ccnet_hf.deployment.bfloat16 import cut_after_large_maps  # noqa: E402


def program(module: nn.Module, size: tuple[int, int]):
    model = openvino.convert_model(module.eval(), example_input=torch.randn(1, 3, *size))
    model.reshape([-1, 3, *size])
    return model


def compiled(model):
    network = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: network([torch.as_tensor(value).numpy() for value in inputs])[0]


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, 4 * channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, hidden_state):
        return hidden_state + self.pointwise(self.depthwise(hidden_state).relu())


class Enlarged(nn.Sequential):
    """To the size of the images again, which is read from them."""

    def forward(self, images):
        return nn.functional.interpolate(super().forward(images), size=images.shape[2:], mode="bilinear")


@pytest.mark.parametrize("size", [(64, 96), (97, 65)])
def test_the_cut_is_behind_the_last_map_larger_than_an_eighth(size):
    torch.manual_seed(0)
    network = Enlarged(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        Residual(6),
        nn.Conv2d(6, 12, 3, stride=2, padding=1),
        Residual(12),
        nn.Conv2d(12, 5, 1),
    )
    model = program(network, size)
    operations = len(model.get_ordered_ops())
    before, after = cut_after_large_maps(model)
    assert len(model.get_ordered_ops()) == operations and len(model.inputs) == 1
    (carried,) = before.outputs
    quarter = [-(-side // 4) for side in size]
    assert [side.get_length() for side in list(carried.get_partial_shape())[1:]] == [6, *quarter]
    convolutions = [
        sum("Convolution" in op.get_type_name() for op in part.get_ordered_ops()) for part in (model, before, after)
    ]
    assert convolutions == [8, 4, 4]
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = network(images)
    found = torch.from_numpy(compiled(after)(compiled(before)(images), images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Around(nn.Module):
    """A way leads around the only large map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)

    def forward(self, images):
        return self.depthwise(self.stem(images)) + images[:, :1, ::8, ::8]


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=8)),
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.Conv2d(8, 8, 3, groups=8)),
        Around(),
    ],
    ids=["no depthwise convolution", "no large map", "a way around"],
)
def test_networks_that_are_not_cut(network):
    assert cut_after_large_maps(program(network, (64, 96))) is None


@pytest.mark.parametrize(
    ("backbone", "is_cut"),
    [
        (TimmBackboneConfig(backbone="mobilenetv2_050", out_indices=[3, 4], output_stride=8), True),
        (TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[3, 4], output_stride=8), True),
        (TimmBackboneConfig(backbone="mobilenetv3_small_050", out_indices=[3, 4], output_stride=8), True),
        (ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_indices=[3, 4]), False),
        (None, False),
    ],
    ids=["MobileNetV2", "EfficientNet-Lite", "MobileNetV3", "ConvNeXt", "ResNet"],
)
def test_what_is_cut_of_each_backbone(backbone, is_cut):
    model = tiny_model(**({"backbone_config": backbone} if backbone else {})).eval()
    exported = make_program(rewrite(model, torch.float32), "openvino").program.clone()
    exported.reshape([-1, 3, 64, 96])
    parts = cut_after_large_maps(exported)
    assert (parts is not None) == is_cut
    if is_cut:
        images = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            expected = model(pixel_values=images).logits
        found = torch.from_numpy(compiled(parts[1])(compiled(parts[0])(images), images))
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
