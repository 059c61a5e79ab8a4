"""The criss-cross attention layer alone against mmcv's and PaddleSeg's, in float32 and float64, lines of one pixel
included."""

import numpy as np
import pytest
import torch
from golden_files import assert_close, load_golden

from ccnet_hf import CrissCrossAttention


SHAPES = ["1x16x5x7", "2x8x1x6", "2x8x6x1", "1x8x1x1", "1x64x9x13", "2x16x12x12", "1x24x17x4", "3x32x2x11"]
PADDLE_SHAPES = ["2x16x5x7", "1x16x1x6", "1x16x6x1", "1x8x1x1", "1x32x9x4"]
NAMES = {"query_conv": "query", "key_conv": "key", "value_conv": "value", "gamma.scale": "gamma"}
NAMES |= {"q_conv": "query", "k_conv": "key", "v_conv": "value"}
TOLERANCES = {"cca2d": {"f32": 2e-5, "f64": 1e-9}, "paddle_cca2d": {"f32": 2e-5, "f64": 1e-12}}


def our_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("cca2d", shape) for shape in SHAPES] + [("paddle_cca2d", shape) for shape in PADDLE_SHAPES],
)
def test_attention(name, shape, precision):
    golden, tolerance = load_golden(name), TOLERANCES[name][precision]
    stored = list(dict.fromkeys(key.partition("/")[0] for key in golden if key.endswith("/x")))
    assert sorted(stored) == sorted(SHAPES if name == "cca2d" else PADDLE_SHAPES)
    dtype = torch.float64 if precision == "f64" else torch.float32
    prefix = f"{shape}/param/"
    parameters = {
        our_name(key.removeprefix(prefix)): torch.from_numpy(value)
        for key, value in golden.items()
        if key.startswith(prefix)
    }
    query_key_size, hidden_size = parameters["query.weight"].shape[:2]
    layer = CrissCrossAttention(hidden_size, query_key_size).to(dtype)
    layer.load_state_dict(
        {name: parameters[name].reshape(tensor.shape) for name, tensor in layer.state_dict().items()}
    )

    hidden_state = torch.from_numpy(golden[f"{shape}/x"]).to(dtype).requires_grad_()
    output, _ = layer(hidden_state)
    output.backward(torch.from_numpy(golden[f"{shape}/grad_out"]).to(dtype))
    assert_close(output.detach(), golden[f"{shape}/{precision}/out"], tolerance, "output")
    twice, _ = layer(output.detach())
    assert_close(twice.detach(), golden[f"{shape}/{precision}/out_twice"], tolerance, "output of two rounds")
    assert_close(hidden_state.grad, golden[f"{shape}/{precision}/grad_x"], tolerance, "gradient of the input")

    prefix = f"{shape}/{precision}/grad/"
    gradients = {our_name(key.removeprefix(prefix)): value for key, value in golden.items() if key.startswith(prefix)}
    assert gradients.keys() == dict(layer.named_parameters()).keys()
    # A key's bias always, query and key where there is a single pixel: zero in exact arithmetic, so only noise here.
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, expected in gradients.items():
        actual = dict(layer.named_parameters())[name].grad.numpy().reshape(expected.shape)
        if np.abs(expected).max() <= 1e-5 * largest:
            assert np.abs(actual).max() <= tolerance * largest, name
        else:
            assert_close(actual, expected, tolerance, name)
