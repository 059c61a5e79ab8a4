"""Converted checkpoints against mmsegmentation: every stage, logits, losses, gradients, batch statistics."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from golden_files import assert_close, assert_same_statistics, load_golden
from torch import nn

from ccnet_hf.inference import predict_logits
from ccnet_hf.zoo import mmsegmentation_key


INPUTS = [
    (50, "r50_c19_1x3x65x97"),
    (50, "r50_c19_2x3x64x128"),
    (101, "r101_c150_1x3x65x97"),
    (101, "r101_c150_2x3x64x128"),
]
LOSS_INPUTS = [INPUTS[0], INPUTS[1], INPUTS[3]]
# Differences that another order of summation makes in mmsegmentation itself, with room: of the largest magnitude.
FORWARD_TOLERANCE = {50: 2e-5, 101: 2e-4}
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 3e-2
FLOAT64_TOLERANCE = 1e-9
# In exact arithmetic this gradient is zero: a key's bias adds one number to every score of a pixel.
ZERO_GRADIENT = "decode_head.cca.key_conv.bias"
ZERO_GRADIENT_TOLERANCE = 1e-6


def record_outputs(model: nn.Module, pixel_values: torch.Tensor) -> tuple[object, dict[str, np.ndarray]]:
    """Run the model and keep what its stages and the layers of its head return (the last call of each)."""
    backbone, head = model.model.backbone, model.model.head
    modules = {f"stage{index + 1}": stage for index, stage in enumerate(backbone.stages)}
    modules |= {"head_conva": head.input_projection, "cca": head.attention, "head_convb": head.output_projection}
    recorded = {}

    def recorder(name: str):
        def hook(module, args, output):
            recorded[name] = (output if isinstance(output, torch.Tensor) else output[0]).detach().numpy()

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    # Labels, all of them ignored, because the auxiliary head runs only where there is a loss.
    labels = torch.full((len(pixel_values), *pixel_values.shape[-2:]), 255)
    with torch.no_grad():
        outputs = model(pixel_values, labels=labels)
    for handle in handles:
        handle.remove()
    return outputs, recorded


@pytest.mark.parametrize(("depth", "name"), INPUTS)
class TestForward:
    def test_every_layer(self, depth, name, load_model):
        golden, tolerance = load_golden(f"{name}_forward"), FORWARD_TOLERANCE[depth]
        outputs, recorded = record_outputs(load_model(depth), torch.from_numpy(golden["input"]))
        for stage in ("stage1", "stage2", "stage3", "stage4"):
            assert list(recorded[stage].shape) == golden[f"{stage}_shape"].tolist()
            assert_close(recorded[stage][:, ::16, ::2, ::2], golden[f"{stage}_c16_s2"], tolerance, stage)
            assert_same_statistics(recorded[stage], golden[f"{stage}_stats"], tolerance, stage)
        assert_close(
            recorded["head_conva"][:, ::8], golden["head_conva_c8"], tolerance, "first convolution of the head"
        )
        assert_same_statistics(recorded["head_conva"], golden["head_conva_stats"], tolerance, "first convolution")
        assert_close(recorded["cca"][:, ::8], golden["cca_r2_c8"], tolerance, "attention after two rounds")
        assert_same_statistics(recorded["cca"], golden["cca_r2_stats"], tolerance, "attention after two rounds")
        assert_close(recorded["head_convb"][:, ::8], golden["head_convb_c8"], tolerance, "second convolution")
        assert_close(outputs.logits, golden["decode_logits"], tolerance, "logits")
        assert_close(outputs.auxiliary_logits, golden["aux_logits"], tolerance, "auxiliary logits")

    @pytest.mark.parametrize("recurrence", [1, 3])
    def test_other_recurrence(self, depth, name, recurrence, load_model):
        golden, tolerance = load_golden(f"{name}_forward"), FORWARD_TOLERANCE[depth]
        model = load_model(depth, recurrence=recurrence)
        outputs, recorded = record_outputs(model, torch.from_numpy(golden["input"]))
        expected = golden[f"decode_logits_recurrence{recurrence}_s2"]
        assert_close(outputs.logits[..., ::2, ::2], expected, tolerance, f"logits after {recurrence} rounds")
        if recurrence == 1:
            assert_close(recorded["cca"][:, ::8], golden["cca_r1_c8"], tolerance, "attention after one round")
            assert_same_statistics(recorded["cca"], golden["cca_r1_stats"], tolerance, "attention after one round")

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_label_map(self, depth, name, align_corners, load_model):
        golden, tolerance = load_golden(f"{name}_forward"), FORWARD_TOLERANCE[depth]
        model = load_model(depth, align_corners=align_corners)
        logits = predict_logits(model, torch.from_numpy(golden["input"]))
        suffix = f"ac{int(align_corners)}"
        ((key, stride),) = (
            (key, int(key.rpartition("_s")[2]))
            for key in golden
            if key.startswith(f"final_logits_{suffix}_s") and key[-1].isdigit()
        )
        assert_close(logits[..., ::stride, ::stride], golden[key], tolerance, key)
        assert_same_statistics(logits, golden[f"final_logits_{suffix}_stats"], tolerance, "final logits")
        assert np.mean(logits.argmax(1).numpy() == golden[f"argmax_{suffix}"]) >= 0.999


def accuracy(logits: torch.Tensor, labels: torch.Tensor, align_corners: bool) -> float:
    """mmsegmentation's `acc_seg`: percentage of labelled pixels that are right."""
    logits = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    valid = labels != 255
    return 100 * (logits.argmax(1) == labels)[valid].double().mean().item()


def check_losses(model: nn.Module, outputs, golden: dict, labels: torch.Tensor, suffix: str, tolerance: float) -> None:
    """Total, its two parts, and the accuracy of both heads."""
    assert outputs.loss.item() == pytest.approx(float(golden[f"loss_total{suffix}"]), rel=tolerance)
    align_corners = model.config.align_corners
    for head, logits in (("decode", outputs.logits), ("aux", outputs.auxiliary_logits)):
        assert accuracy(logits.detach(), labels, align_corners) == pytest.approx(
            float(golden[f"{head}_acc_seg{suffix}"]), abs=0.05
        )
    total, auxiliary = float(golden[f"loss_total{suffix}"]), float(golden[f"aux_loss_ce{suffix}"])
    assert total - auxiliary == pytest.approx(float(golden[f"decode_loss_ce{suffix}"]), rel=1e-6)


def gradients(model: nn.Module) -> dict[str, np.ndarray]:
    found = {mmsegmentation_key(name): parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return found | {"decode_head.cca.gamma.scale": found["decode_head.cca.gamma.scale"].reshape(())}


def sampled(golden: dict, prefix: str = "grad") -> Iterator[tuple[str, int, np.ndarray]]:
    """Every stored gradient: its key, the stride of both channel axes it was thinned with, its values."""
    for name, values in golden.items():
        match = re.fullmatch(rf"{prefix}(?:_s(\d+))?/(.+)", name)
        if match:
            yield match[2], int(match[1] or 1), values


def check_gradients(found: dict[str, np.ndarray], golden: dict, tolerance: float, compare=assert_close) -> None:
    stored = list(sampled(golden))
    assert len(stored) >= 20
    for key, stride, expected in stored:
        thinned = found[key] if stride == 1 else found[key][::stride, ::stride]
        if key == ZERO_GRADIENT:
            assert np.abs(thinned).max() <= ZERO_GRADIENT_TOLERANCE
        else:
            compare(thinned, expected, tolerance, key)
    norms = dict(zip(golden["grad_norm_names"].tolist(), golden["grad_norm_values"].tolist(), strict=True))
    assert norms.keys() == found.keys()
    for key, norm in norms.items():
        if key != ZERO_GRADIENT:
            assert np.linalg.norm(found[key].astype(np.float64)) == pytest.approx(norm, rel=tolerance), key


@pytest.mark.parametrize(("depth", "name"), LOSS_INPUTS)
class TestLoss:
    def test_losses_and_gradients(self, depth, name, load_model):
        golden = load_golden(f"{name}_loss")
        model, labels = load_model(depth), torch.from_numpy(golden["label"]).long()
        outputs = model(torch.from_numpy(golden["input"]), labels=labels)
        check_losses(model, outputs, golden, labels, "", LOSS_TOLERANCE)
        outputs.loss.backward()
        check_gradients(gradients(model), golden, GRADIENT_TOLERANCE)

    def test_aligned_corners(self, depth, name, load_model):
        golden = load_golden(f"{name}_loss")
        model, labels = load_model(depth, align_corners=True), torch.from_numpy(golden["label"]).long()
        with torch.no_grad():
            outputs = model(torch.from_numpy(golden["input"]), labels=labels)
        check_losses(model, outputs, golden, labels, "_ac1", LOSS_TOLERANCE)

    def test_parts_of_the_loss(self, depth, name, load_model):
        golden = load_golden(f"{name}_loss")
        model = load_model(depth, use_auxiliary_head=False)
        with torch.no_grad():
            outputs = model(torch.from_numpy(golden["input"]), labels=torch.from_numpy(golden["label"]).long())
        assert outputs.loss.item() == pytest.approx(float(golden["decode_loss_ce"]), rel=LOSS_TOLERANCE)


@pytest.mark.parametrize(("depth", "name"), [INPUTS[0], INPUTS[3]])
def test_float64(depth, name, load_model):
    golden = load_golden(f"{name}_lossf64")
    if "input" not in golden:
        golden |= {key: value for key, value in load_golden(f"{name}_loss").items() if key in ("input", "label")}
    model = load_model(depth, dtype=torch.float64)
    labels = torch.from_numpy(golden["label"]).long()
    outputs = model(torch.from_numpy(golden["input"]).double(), labels=labels)
    assert_close(outputs.logits.detach(), golden["decode_logits"], FLOAT64_TOLERANCE, "logits")
    assert_close(outputs.auxiliary_logits.detach(), golden["aux_logits"], FLOAT64_TOLERANCE, "auxiliary logits")
    check_losses(model, outputs, golden, labels, "", FLOAT64_TOLERANCE)
    outputs.loss.backward()
    check_gradients(gradients(model), golden, FLOAT64_TOLERANCE)


def assert_close_in_norm(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape
    error = np.linalg.norm((actual.astype(np.float64) - expected).ravel()) / np.linalg.norm(expected.ravel())
    assert error <= tolerance, f"{what}: off by {error:.2e} in norm, {tolerance:.0e} allowed"


@pytest.mark.parametrize(
    ("dtype", "gradient_tolerance", "buffer_tolerance"), [(torch.float64, 3e-2, 2e-5), (torch.float32, 5e-2, 4e-5)]
)
def test_training_mode(dtype, gradient_tolerance, buffer_tolerance, load_model):
    """Batch statistics used and updated.

    They amplify rounding: mmsegmentation's float32 gradients are off our float64 ones by up to 9 % of the largest
    magnitude in single elements and 2.5 % in norm, so gradients are compared in norm. In float32 both sides carry that
    error, ours changing with the number of threads.
    """
    golden = load_golden("r50_c19_2x3x65x97_trainbn")
    labels = torch.from_numpy(golden["label"]).long()
    model = load_model(50, dtype=dtype, classifier_dropout_prob=0.0).train()
    outputs = model(torch.from_numpy(golden["input"]).to(dtype), labels=labels)
    check_losses(model, outputs, golden, labels, "", LOSS_TOLERANCE)
    outputs.loss.backward()
    check_gradients(gradients(model), golden, gradient_tolerance, compare=assert_close_in_norm)
    buffers = {mmsegmentation_key(name): buffer.numpy() for name, buffer in model.named_buffers()}
    after = {name.removeprefix("after/"): value for name, value in golden.items() if name.startswith("after/")}
    assert len(after) == 18
    for key, expected in after.items():
        assert_close(buffers[key], expected, buffer_tolerance, key)
