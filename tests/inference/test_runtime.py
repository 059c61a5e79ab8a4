"""What inference asks of whatever computes logits: `config` and `logits`, and nothing else."""

import pytest
import torch
from torch import nn

from ccnet_hf.inference import Predictor, predict_logits
from ccnet_hf.inference.runtime import ModelRuntime, Runtime, as_runtime
from ccnet_hf.models.image_processing_ccnet import CCNetImageProcessor


class OtherRuntime:
    """No module: no parameters, no device, no dtype. Computes where and as it wants, here in float16's precision."""

    __slots__ = ("_model", "batch_sizes", "config")

    def __init__(self, model: nn.Module):
        self._model, self.config, self.batch_sizes = model, model.config, []

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.batch_sizes.append(len(pixel_values))
        return self._model(pixel_values).logits.half()


def test_a_model_is_wrapped_and_a_runtime_is_not(tiny_network):
    model = tiny_network()
    runtime = as_runtime(model)
    assert isinstance(runtime, ModelRuntime) and runtime.config is model.config
    assert isinstance(runtime, Runtime) and as_runtime(runtime) is runtime
    other = OtherRuntime(model)
    assert as_runtime(other) is other


def test_a_model_gets_its_input_in_its_own_dtype(tiny_network):
    runtime = as_runtime(tiny_network().to(torch.bfloat16))
    pixel_values = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        logits = runtime.logits(pixel_values)
    assert logits.dtype == torch.bfloat16 and logits.shape == (1, 5, 3, 4)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("views", [{}, {"scales": (0.5, 1.0), "flip": True}], ids=["plain", "augmented"])
def test_another_runtime_takes_the_place_of_a_model(tiny_network, make_image, mode, views):
    model = tiny_network(mode=mode, crop_size=[24, 24], stride=[16, 16])
    runtime = OtherRuntime(model)
    processor = CCNetImageProcessor(size={"shortest_edge": 40, "longest_edge": 72})
    image = make_image(45, 67)
    scores = Predictor(runtime, processor, **views).scores(image)
    assert scores.dtype == torch.float32 and runtime.batch_sizes
    torch.testing.assert_close(scores, Predictor(model, processor, **views).scores(image), atol=2e-3, rtol=2e-3)
    pixel_values = torch.randn(2, 3, 40, 50)
    expected = predict_logits(model, pixel_values)
    torch.testing.assert_close(predict_logits(runtime, pixel_values), expected, atol=2e-3, rtol=2e-3)
