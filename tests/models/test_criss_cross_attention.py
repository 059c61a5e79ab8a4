"""The criss-cross attention operator against its definition, written as loops over positions."""

import gc
import importlib
import importlib.util
import itertools
import math
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ccnet_hf import RecurrentCrissCrossAttention, criss_cross_attention
from ccnet_hf.benchmark.forms import einsum_attention


# The package exports a function of the module's name, so the module is not an attribute of the package.
operator_module = importlib.import_module("ccnet_hf.models.criss_cross_attention")
criss_cross_attention_with_weights = operator_module.criss_cross_attention_with_weights
criss_cross_attention_residual = operator_module.criss_cross_attention_residual

SPATIAL = [(1,), (7,), (1, 1), (1, 6), (6, 1), (5, 7), (8, 4), (1, 1, 1), (3, 4, 5), (2, 1, 3)]


def loops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: a position's weights over all positions that share all coordinates but one with it.

    Output (B, C, *spatial) and weights (B, *spatial, *spatial), zero where a position does not look, in float64.
    """
    query, key, value = query.double(), key.double(), value.double()
    batch, channels, *spatial = value.shape
    positions = list(itertools.product(*map(range, spatial)))
    output = torch.zeros(batch, channels, *spatial, dtype=torch.float64)
    weights = torch.zeros(batch, *spatial, *spatial, dtype=torch.float64)
    for number in range(batch):
        for here in positions:
            seen = [there for there in positions if sum(a != b for a, b in zip(here, there, strict=True)) <= 1]
            scores = [query[number, :, *here].dot(key[number, :, *there]).item() for there in seen]
            largest = max(scores)
            total = sum(math.exp(score - largest) for score in scores)
            for score, there in zip(scores, seen, strict=True):
                weight = math.exp(score - largest) / total
                weights[number, *here, *there] = weight
                output[number, :, *here] += weight * value[number, :, *there]
    return output, weights


def random_inputs(spatial, batch=2, query_key_size=3, channels=5, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, query_key_size, *spatial)] * 2 + [(batch, channels, *spatial)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple((scale * tensor if index < 2 else tensor).to(dtype) for index, tensor in enumerate(tensors))


def gradients(function, inputs, grad_output):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(function(*inputs), inputs, grad_output)


def explicit(query, key, value):
    return criss_cross_attention_with_weights(query, key, value)[0]


# --- the definition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [criss_cross_attention, explicit], ids=["operator", "explicit"])
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_equals_the_definition(spatial, function):
    inputs = random_inputs(spatial)
    expected, _ = loops(*inputs)
    torch.testing.assert_close(function(*inputs), expected, rtol=0, atol=1e-12)


def test_float32_equals_the_definition():
    inputs = random_inputs((9, 13), query_key_size=8, channels=16, dtype=torch.float32)
    expected, _ = loops(*inputs)
    output = criss_cross_attention(*inputs)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_weights(spatial):
    query, key, value = random_inputs(spatial)
    output, weights = criss_cross_attention_with_weights(query, key, value)
    assert weights.shape == (2, *spatial, sum(spatial))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, *spatial, dtype=torch.float64), rtol=0, atol=1e-12)
    _, expected = loops(query, key, value)
    gathered = torch.zeros_like(output)
    for here in itertools.product(*map(range, spatial)):
        for axis, part in enumerate(weights[:, *here].split(list(spatial), dim=-1)):
            line = tuple(slice(None) if other == axis else place for other, place in enumerate(here))
            wanted = expected[:, *here][:, *line].clone()
            if axis < len(spatial) - 1:
                wanted[:, here[axis]] = 0
                assert (part[:, here[axis]] == 0).all(), "a position counts itself along the last axis only"
            torch.testing.assert_close(part, wanted, rtol=0, atol=1e-12)
            gathered[:, :, *here] += torch.einsum("bn,bcn->bc", part, value[:, :, *line])
    torch.testing.assert_close(gathered, output, rtol=0, atol=1e-12)


def test_weights_are_differentiable():
    query, key, value = (tensor.requires_grad_() for tensor in random_inputs((3, 4), batch=1))
    assert torch.autograd.gradcheck(criss_cross_attention_with_weights, (query, key, value))


@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_gradcheck(spatial):
    inputs = tuple(tensor.requires_grad_() for tensor in random_inputs(spatial, batch=1))
    assert torch.autograd.gradcheck(criss_cross_attention, inputs)


@pytest.mark.parametrize(
    ("channels", "values", "spatial"),
    [(3, 5, (0,)), (3, 5, (0, 4)), (3, 5, (4, 0)), (3, 5, (2, 0, 4)), (0, 5, (4, 4)), (3, 0, (4, 4))],
)
@pytest.mark.parametrize("function", [criss_cross_attention, criss_cross_attention_with_weights])
def test_axes_of_nothing_are_refused(function, channels, values, spatial):
    query, value = torch.zeros(1, channels, *spatial), torch.zeros(1, values, *spatial)
    with pytest.raises(ValueError, match="criss_cross_attention needs channels and positions, got query"):
        function(query, query, value)


def test_empty_batch():
    inputs = random_inputs((4, 5), batch=0)
    assert criss_cross_attention(*inputs).shape == (0, 5, 4, 5)
    assert [grad.shape for grad in gradients(criss_cross_attention, inputs, inputs[2])] == [x.shape for x in inputs]


def test_gradients_of_some_inputs_only():
    query, key, value = random_inputs((4, 5))
    value.requires_grad_()
    grad_output = torch.randn(value.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad(criss_cross_attention(query, key, value), value, grad_output)
    torch.testing.assert_close(grad, gradients(explicit, (query, key, value), grad_output)[2])


def plain_residual(query, key, value, gamma, residual):
    return gamma * explicit(query, key, value) + residual


def residual_inputs(spatial, dtype=torch.float64):
    query, key, value = random_inputs(spatial, dtype=dtype)
    return query, key, value, torch.tensor([0.7], dtype=dtype), value.flip(1)


@pytest.mark.parametrize("spatial", [(7,), (1, 6), (5, 7), (2, 1, 3)], ids=str)
def test_residual_equals_the_sum(spatial):
    inputs = residual_inputs(spatial)
    grad_output = torch.randn(inputs[2].shape, dtype=torch.float64)
    before = [tensor.clone() for tensor in inputs]
    output = criss_cross_attention_residual(*inputs)
    torch.testing.assert_close(output, plain_residual(*inputs), rtol=0, atol=1e-12)
    actual = gradients(criss_cross_attention_residual, inputs, grad_output)
    torch.testing.assert_close(actual, gradients(plain_residual, inputs, grad_output), rtol=0, atol=1e-12)
    assert all(map(torch.equal, inputs, before)), "the inputs are not written to"


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({3: torch.zeros(2)}, r"gamma \(2,\)"),
        ({4: torch.zeros(2, 5, 4, 4)}, r"residual \(2, 5, 4, 4\)"),
        ({3: torch.zeros(1, dtype=torch.float64)}, "gamma torch.float64"),
        ({4: torch.zeros(2, 5, 4, 6, dtype=torch.bfloat16)}, "residual torch.bfloat16"),
        ({4: torch.zeros(2, 5, 4, 6, device="meta")}, "residual torch.float32 on meta"),
    ],
)
def test_residual_names_bad_input(changed, seen):
    inputs = residual_inputs((4, 6), torch.float32)
    with pytest.raises(ValueError, match=seen):
        criss_cross_attention_residual(*(changed.get(index, tensor) for index, tensor in enumerate(inputs)))


# --- memory layout and memory --------------------------------------------------------------------------------------


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at every second place of a larger tensor, spatial axes in reverse order in memory."""
    spatial = range(2, tensor.dim())
    larger = torch.empty(*(2 * size for size in reversed(tensor.shape)), dtype=tensor.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.dim())))
    assert view.shape == tensor.shape and all(view.stride(axis) != 1 for axis in spatial)
    return view.copy_(tensor)


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "strided": strided,
    "slice": lambda tensor: torch.cat([tensor, tensor], dim=1)[:, tensor.shape[1] :],
    "slice_channels_last": lambda tensor: torch.cat([tensor, tensor], dim=1).contiguous(
        memory_format=torch.channels_last
    )[:, tensor.shape[1] :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    inputs = random_inputs((5, 7))
    grad_output = torch.randn(inputs[2].shape, dtype=torch.float64)
    expected, expected_gradients = criss_cross_attention(*inputs), gradients(explicit, inputs, grad_output)
    arranged = tuple(map(LAYOUTS[layout], inputs))
    before = [tensor.clone() for tensor in arranged]
    output = criss_cross_attention(*arranged)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert output.is_contiguous(memory_format=torch.channels_last)
    actual = gradients(criss_cross_attention, arranged, LAYOUTS[layout](grad_output))
    torch.testing.assert_close(actual, expected_gradients, rtol=0, atol=1e-12)
    assert all(map(torch.equal, arranged, before)), "the inputs are not written to"


def test_expanded_gradient():
    inputs = random_inputs((4, 5))
    grad_output = torch.ones((), dtype=torch.float64).expand(inputs[2].shape)
    actual = gradients(criss_cross_attention, inputs, grad_output)
    torch.testing.assert_close(actual, gradients(explicit, inputs, grad_output.contiguous()))


@pytest.mark.parametrize("spatial", [(6,), (5, 7), (3, 4, 5)], ids=str)
def test_output_and_gradients_have_channels_innermost(spatial):
    inputs = random_inputs(spatial)
    output = criss_cross_attention(*inputs)
    assert output.movedim(1, -1).is_contiguous()
    for grad in gradients(criss_cross_attention, inputs, torch.ones_like(output)):
        assert grad.movedim(1, -1).is_contiguous()


def test_saves_inputs_output_and_one_number_per_position():
    inputs = [tensor.requires_grad_() for tensor in random_inputs((6, 9))]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda saved: saved):
        output = criss_cross_attention(*inputs)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*inputs, output)}
    others = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in known]
    assert len(saved) == 5 and [tensor.shape for tensor in others] == [(2, 6, 9)]
    scores = torch.einsum("bchw,bcij->bhwij", *inputs[:2]).detach()
    places = torch.arange(6)[:, None, None, None] == torch.arange(6)[:, None]
    seen = places | (torch.arange(9)[:, None, None] == torch.arange(9))
    expected = scores.masked_fill(~seen, -math.inf).flatten(3).logsumexp(-1)
    torch.testing.assert_close(others[0], expected)


def test_deterministic():
    inputs = random_inputs((17, 23), dtype=torch.float32)
    grad_output = torch.randn(inputs[2].shape)
    assert torch.equal(criss_cross_attention(*inputs), criss_cross_attention(*inputs))
    first, second = (gradients(criss_cross_attention, inputs, grad_output) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("block", [1, 40, 100])
@pytest.mark.parametrize("spatial", [(7,), (5, 7), (3, 4, 5)], ids=str)
def test_blocks_do_not_change_the_result(spatial, block, monkeypatch):
    inputs = random_inputs(spatial)
    grad_output = torch.randn(inputs[2].shape, dtype=torch.float64)
    expected = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    monkeypatch.setattr(operator_module, "_CPU_BLOCK_SCORES", block)
    output = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


# --- precision -----------------------------------------------------------------------------------------------------


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


def half_precision_inputs(dtype):
    return random_inputs((24, 31), query_key_size=16, channels=24, dtype=dtype, scale=0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_no_more_than_the_einsum_form(dtype):
    inputs = half_precision_inputs(dtype)
    grad_output = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    doubles = [tensor.double() for tensor in inputs]
    exact = explicit(*doubles), *gradients(explicit, doubles, grad_output.double())
    ours = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    theirs = einsum_attention(*inputs), *gradients(einsum_attention, inputs, grad_output)
    for name, a, b, reference in zip(("output", "query", "key", "value"), ours, theirs, exact, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, reference) <= 1.25 * relative_error(b, reference), name


def test_native_bfloat16_products(monkeypatch):
    """The path of processors that multiply bfloat16, which this one may not be."""
    inputs = half_precision_inputs(torch.bfloat16)
    grad_output = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    doubles = [tensor.double() for tensor in inputs]
    exact = explicit(*doubles), *gradients(explicit, doubles, grad_output.double())
    monkeypatch.setattr(operator_module, "_product_dtype", lambda tensor: tensor.dtype)
    native = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    theirs = einsum_attention(*inputs), *gradients(einsum_attention, inputs, grad_output)
    for name, a, b, reference in zip(("output", "query", "key", "value"), native, theirs, exact, strict=True):
        assert relative_error(a, reference) <= 1.25 * relative_error(b, reference), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_large_scores(dtype):
    """Scores of up to 6e4, near the largest number of float16, choose single positions and stay finite."""
    query, key, value = random_inputs((6, 7), batch=1, query_key_size=1, channels=4)
    query, key = (244.9 * tensor / tensor.abs().max() for tensor in (query, key))
    inputs = query.to(dtype), key.to(dtype), value.to(dtype)
    expected, _ = loops(*inputs)
    assert 5.9e4 < (inputs[0].double().abs().max() * inputs[1].double().abs().max()).item() < 6.01e4
    torch.testing.assert_close(criss_cross_attention(*inputs).double(), expected, rtol=1e-2, atol=1e-2)
    for grad in gradients(criss_cross_attention, inputs, torch.ones_like(inputs[2])):
        assert grad.isfinite().all()


@pytest.mark.parametrize("score", [1.0, 1e10])
def test_equal_scores_weigh_the_same_however_large(score):
    """Next to 1e10, fp32 does not see the logarithm of the number of positions."""
    query = key = torch.full((1, 1, 4, 6), score**0.5)
    value = torch.randn(1, 3, 4, 6)
    expected, _ = loops(torch.zeros_like(query), torch.zeros_like(key), value)
    torch.testing.assert_close(criss_cross_attention(query, key, value).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_changes_nothing_inside(dtype):
    inputs = half_precision_inputs(dtype)
    grad_output = torch.randn(inputs[2].shape).to(dtype)
    expected = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = criss_cross_attention(*inputs), *gradients(criss_cross_attention, inputs, grad_output)
    assert all(map(torch.equal, actual, expected))


# --- the operator as PyTorch's tools see it --------------------------------------------------------------------------


OPCHECK_SPATIAL = [(5,), (4, 6), (1, 3), (2, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spatial", OPCHECK_SPATIAL, ids=str)
def test_opcheck_forward(spatial, dtype):
    inputs = tuple(tensor.requires_grad_() for tensor in random_inputs(spatial, dtype=dtype))
    torch.library.opcheck(torch.ops.ccnet_hf.criss_cross_attention, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_residual(dtype):
    inputs = tuple(tensor.requires_grad_() for tensor in residual_inputs((4, 6), dtype))
    torch.library.opcheck(torch.ops.ccnet_hf.criss_cross_attention_residual, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spatial", OPCHECK_SPATIAL, ids=str)
def test_opcheck_backward(spatial, dtype):
    inputs = random_inputs(spatial, dtype=dtype)
    results = torch.ops.ccnet_hf.criss_cross_attention(*inputs)
    arguments = (torch.randn_like(results[0]), *inputs, *results)
    torch.library.opcheck(torch.ops.ccnet_hf.criss_cross_attention_backward, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_fake_and_meta_tensors_describe_the_result(dtype):
    inputs = random_inputs((5, 7), dtype=dtype)
    real = torch.ops.ccnet_hf.criss_cross_attention(*inputs)
    meta = torch.ops.ccnet_hf.criss_cross_attention(*(tensor.to("meta") for tensor in inputs))
    with FakeTensorMode() as mode:
        fake = torch.ops.ccnet_hf.criss_cross_attention(*map(mode.from_tensor, inputs))
    for actual, like_meta, like_fake in zip(real, meta, fake, strict=True):
        for other in (like_meta, like_fake):
            assert (other.shape, other.dtype, other.stride()) == (actual.shape, actual.dtype, actual.stride())
    assert meta[0].device.type == "meta"


@pytest.mark.parametrize("spatial", [(6,), (5, 7), (3, 4, 5)], ids=str)
def test_flops(spatial):
    """Two FLOPs a multiply-add; a position's own entry is computed in every axis, then masked in all but the last."""
    batch, query_key_size, channels = 2, 3, 5
    inputs = [tensor.requires_grad_() for tensor in random_inputs(spatial, batch, query_key_size, channels)]
    pairs = batch * sum(len(spatial) and size for _ in itertools.product(*map(range, spatial)) for size in spatial)
    with FlopCounterMode(display=False) as counter:
        output = criss_cross_attention(*inputs)
    assert counter.get_total_flops() == 2 * pairs * (query_key_size + channels)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    # scores, their gradient, value's gradient, query's, key's
    assert counter.get_total_flops() == 2 * pairs * (query_key_size + channels + channels + 2 * query_key_size)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    torch.compiler.reset()
    compiled = torch.compile(criss_cross_attention, fullgraph=True, backend=backend)
    for spatial in [(5, 7), (6, 4)]:
        inputs = random_inputs(spatial, dtype=torch.float32)
        grad_output = torch.randn(inputs[2].shape)
        torch.testing.assert_close(compiled(*inputs), criss_cross_attention(*inputs))
        expected = gradients(criss_cross_attention, inputs, grad_output)
        torch.testing.assert_close(gradients(compiled, inputs, grad_output), expected)


class _Attention(torch.nn.Module):
    def forward(self, query, key, value):
        return criss_cross_attention(query, key, value)


def test_export_with_dynamic_height_and_width():
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    shapes = {name: {2: height, 3: width} for name in ("query", "key", "value")}
    program = torch.export.export(_Attention(), random_inputs((5, 7)), dynamic_shapes=shapes)
    for spatial in [(5, 7), (8, 3), (2, 11)]:
        inputs = random_inputs(spatial)
        torch.testing.assert_close(program.module()(*inputs), criss_cross_attention(*inputs), rtol=0, atol=1e-12)


def test_loading_the_file_again_registers_nothing_twice(monkeypatch):
    """Remote code is a copy of the file under another module name, loaded beside the package or another copy."""
    before = torch.ops.ccnet_hf.criss_cross_attention.default
    spec = importlib.util.spec_from_file_location("copy_of_the_operator", operator_module.__file__)
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, copy)
    spec.loader.exec_module(copy)
    inputs = random_inputs((5, 7))
    grad_output = torch.randn(inputs[2].shape, dtype=torch.float64)
    assert copy.criss_cross_attention is not criss_cross_attention
    assert torch.equal(copy.criss_cross_attention(*inputs), criss_cross_attention(*inputs))
    grads = [gradients(module.criss_cross_attention, inputs, grad_output) for module in (copy, operator_module)]
    assert all(map(torch.equal, *grads))
    assert torch.ops.ccnet_hf.criss_cross_attention.default is before
    monkeypatch.delitem(sys.modules, spec.name)
    del copy, spec
    gc.collect()
    criss_cross_attention(*inputs)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [criss_cross_attention, criss_cross_attention_with_weights])
@pytest.mark.parametrize(
    ("shapes", "dtypes", "seen"),
    [
        (((2, 3), (2, 3), (2, 5)), (torch.float32,) * 3, ["(2, 3)", "(2, 5)"]),
        (((1, 2, 2, 2, 2, 2),) * 3, (torch.float32,) * 3, ["(1, 2, 2, 2, 2, 2)"]),
        (((2, 3, 4, 5), (2, 3, 5, 4), (2, 5, 4, 5)), (torch.float32,) * 3, ["(2, 3, 4, 5)", "(2, 3, 5, 4)"]),
        (((2, 3, 4, 5), (2, 6, 4, 5), (2, 5, 4, 5)), (torch.float32,) * 3, ["(2, 3, 4, 5)", "(2, 6, 4, 5)"]),
        (((2, 3, 4, 5), (2, 3, 4, 5), (1, 5, 4, 5)), (torch.float32,) * 3, ["(2, 3, 4, 5)", "(1, 5, 4, 5)"]),
        (((2, 3, 4, 5), (2, 3, 4, 5), (2, 5, 4, 6)), (torch.float32,) * 3, ["(2, 3, 4, 5)", "(2, 5, 4, 6)"]),
        (((2, 3, 4, 5), (2, 3, 4, 5), (2, 5, 20)), (torch.float32,) * 3, ["(2, 3, 4, 5)", "(2, 5, 20)"]),
        (((2, 3, 4, 5),) * 3, (torch.float32, torch.float32, torch.bfloat16), ["torch.float32", "torch.bfloat16"]),
        (((2, 3, 4, 5),) * 3, (torch.int64,) * 3, ["torch.int64"]),
    ],
)
def test_bad_input_is_named(shapes, dtypes, seen, function):
    inputs = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(ValueError, match="criss_cross_attention") as error:
        function(*inputs)
    assert all(text in str(error.value) for text in seen), str(error.value)


def test_devices_are_named():
    query, key, value = random_inputs((4, 5))
    with pytest.raises(ValueError, match=r"cpu, cpu, meta"):
        criss_cross_attention(query, key, value.to("meta"))


# --- the layer uses the operator -----------------------------------------------------------------------------------


def attentive_layer() -> RecurrentCrissCrossAttention:
    """gamma and the biases start at values that hide the attention; these do not."""
    torch.manual_seed(0)
    layer = RecurrentCrissCrossAttention(8, query_key_size=4, recurrence=2).double()
    with torch.no_grad():
        layer.gamma.fill_(0.7)
        layer.query.bias.normal_()
        layer.key.bias.normal_()
    return layer


@torch.no_grad()
def test_layer_equals_the_definition():
    layer = attentive_layer()
    hidden_state = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    expected = hidden_state
    for _ in range(2):
        context, _ = loops(layer.query(expected), layer.key(expected), layer.value(expected))
        expected = 0.7 * context + expected
    torch.testing.assert_close(layer(hidden_state)[0], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_layer_without_the_operator_differs(monkeypatch):
    layer, hidden_state = attentive_layer(), torch.randn(2, 8, 4, 5, dtype=torch.float64)
    output, _ = layer(hidden_state)
    layers = importlib.import_module(type(layer).__module__)
    monkeypatch.setattr(layers, "criss_cross_attention_round", lambda query, key, value, gamma, residual: value)
    assert (layer(hidden_state)[0] - output).abs().max() > 0.1


def test_higher_derivatives_are_refused():
    query, key, value = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    loss = criss_cross_attention(query, key, value).square().sum()
    with pytest.raises(NotImplementedError, match="can be differentiated once"):
        torch.autograd.grad(loss, query, create_graph=True)


def test_large_scores_in_half_precision():
    query, key, value = (100 * torch.randn(1, 64, 5, 6, generator=torch.Generator().manual_seed(0)) for _ in range(3))
    query, key, value = query.half(), key.half(), (value / 100).half()
    assert (query * key).sum(1).abs().max() == torch.inf  # beyond what fp16 holds
    output, weights = criss_cross_attention_with_weights(query, key, value)
    assert output.isfinite().all() and weights.isfinite().all()
    torch.testing.assert_close(output, criss_cross_attention(query, key, value), rtol=2e-3, atol=2e-3)
