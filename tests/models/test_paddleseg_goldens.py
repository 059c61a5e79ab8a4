"""What PaddleSeg's network and training do otherwise, part by part, against PaddleSeg: shortcuts, OHEM."""

import numpy as np
import pytest
import torch
from golden_files import assert_close, load_golden
from tiny_models import tiny_backbone_config
from torch import nn

from ccnet_hf import CCNetResNetBackbone
from ccnet_hf.models.loss_ccnet import paddleseg_ohem_loss, semantic_segmentation_loss


@pytest.mark.parametrize("shape", ["1x4x17x25", "1x4x8x10", "1x4x7x8"])
def test_pooling_of_a_shortcut(shape):
    golden = load_golden("paddle_vd_pool")
    backbone = CCNetResNetBackbone(tiny_backbone_config(pooled_shortcut=True))
    pooled = backbone.stages[1].blocks[0].shortcut_pooling(torch.from_numpy(golden[f"{shape}/x"]))
    assert np.array_equal(pooled, golden[f"{shape}/pooled"])


@pytest.mark.parametrize(
    ("output_stride", "pooled"), [(8, [(1, 0)]), (16, [(1, 0), (2, 0)]), (32, [(1, 0), (2, 0), (3, 0)])]
)
def test_only_shortcuts_that_halve_the_resolution_pool(output_stride, pooled):
    backbone = CCNetResNetBackbone(tiny_backbone_config(pooled_shortcut=True, output_stride=output_stride))
    found = [
        (index, number)
        for index, stage in enumerate(backbone.stages)
        for number, block in enumerate(stage.blocks)
        if isinstance(block.shortcut_pooling, nn.AvgPool2d)
    ]
    assert found == pooled
    shortcuts = [stage.blocks[0].shortcut for stage in backbone.stages]
    strides = [layer.convolution.stride for layer in shortcuts if not isinstance(layer, nn.Identity)]
    assert len(strides) >= 3 and set(strides) == {(1, 1)}


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_ohem(precision):
    golden = load_golden("paddle_ohem")
    dtype, tolerance = (torch.float64, 1e-6) if precision == "f64" else (torch.float32, 1e-5)
    logits, labels = torch.from_numpy(golden["logits"]).to(dtype), torch.from_numpy(golden["label"])
    settings = golden["thresh_minkept"].tolist()
    assert len(settings) == 10
    for case, (threshold, min_kept) in enumerate(settings):
        loss = paddleseg_ohem_loss(logits, labels, threshold, int(min_kept))
        assert loss.item() == pytest.approx(float(golden[f"{precision}/loss_ohem"][case]), rel=tolerance), case
    loss = semantic_segmentation_loss(logits, labels)
    assert loss.item() == pytest.approx(float(golden[f"{precision}/loss_ce"]), rel=tolerance)


@pytest.mark.parametrize("case", [0, 3])
def test_which_pixels_ohem_keeps(case):
    """Those that get a gradient."""
    golden = load_golden("paddle_ohem")
    labels = torch.from_numpy(golden["label"])
    threshold, min_kept = golden["thresh_minkept"][case].tolist()
    logits = torch.from_numpy(golden["logits"]).double().requires_grad_()
    paddleseg_ohem_loss(logits, labels, threshold, int(min_kept)).backward()
    kept = np.unpackbits(golden[f"f64/case{case}/kept_mask"])[: labels.numel()].reshape(labels.shape)
    assert kept.sum() == golden["kept_pixels"][case]
    assert np.array_equal(logits.grad.abs().sum(1) > 0, kept)
    assert_close(logits.grad[..., ::4, ::4], golden[f"f64/case{case}/grad_logits_s4"], 5e-6, "gradient")


def test_ohem_counts_without_a_golden_file():
    """Of eight pixels in ascending order of probability: `min_kept - 1`, all below the threshold, or all."""
    probability = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9, 0.95], dtype=torch.float64)
    logits = torch.stack([probability.log(), (1 - probability).log()])[None, :, None].requires_grad_()
    labels = torch.zeros(1, 1, 8, dtype=torch.long)
    for threshold, min_kept, kept in ((0.05, 4, 3), (0.4, 2, 3), (0.5, 2, 4), (0.05, 0, 8), (0.05, 8, 8)):
        logits.grad = None
        loss = paddleseg_ohem_loss(logits, labels, threshold, min_kept)
        loss.backward()
        assert (logits.grad.abs().sum(1) > 0).sum() == kept, (threshold, min_kept)
        mean = -probability[:kept].log().mean().item()
        assert loss.item() == pytest.approx(mean / (1 + 1e-5 * 8 / kept), rel=1e-12)


@pytest.mark.parametrize("min_kept", [0, 16, 10**6])
def test_ohem_of_ignored_pixels_is_zero(min_kept):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = paddleseg_ohem_loss(logits, torch.full((1, 8, 8), 255), 0.7, min_kept, class_weights=torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
