"""The attention as a module of its own: one to three axes, heads, masks, rounds with weights of their own."""

import copy
import itertools
import math

import pytest
import torch
from golden_files import assert_close, load_golden
from torch import nn

from ccnet_hf import CrissCrossAttention, RecurrentCrissCrossAttention


SPATIAL = [(6,), (4, 5), (3, 4, 2)]
FORMS = [(spatial, heads, masked) for spatial in SPATIAL for heads in (1, 4) for masked in (False, True)]


def random_mask(batch: int, spatial: tuple[int, ...]) -> torch.Tensor:
    """Any pattern; every position of the second example but one is padding."""
    mask = torch.rand(batch, *spatial, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[1] = False
    mask[1].view(-1)[1] = True
    return mask


def awake(layer: CrissCrossAttention, seed: int = 0) -> CrissCrossAttention:
    """In float64, with a gamma that does something."""
    torch.manual_seed(seed)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def loops(layer: CrissCrossAttention, hidden_state: torch.Tensor, mask: torch.Tensor | None):
    """One round by its definition: the new hidden state, and weights (B, heads, *spatial, *spatial)."""
    with torch.no_grad():
        query, key, value = (
            projection(hidden_state).unflatten(1, (layer.num_heads, -1))
            for projection in (layer.query, layer.key, layer.value)
        )
    batch, spatial = len(hidden_state), hidden_state.shape[2:]
    result = hidden_state.clone()
    weights = torch.zeros(batch, layer.num_heads, *spatial, *spatial, dtype=torch.float64)
    positions = list(itertools.product(*map(range, spatial)))
    for number, head in itertools.product(range(batch), range(layer.num_heads)):
        for here in positions:
            if mask is not None and not mask[number, *here]:
                continue
            seen = [
                there
                for there in positions
                if sum(a != b for a, b in zip(here, there, strict=True)) <= 1
                and (mask is None or mask[number, *there])
            ]
            scores = [query[number, head, :, *here].dot(key[number, head, :, *there]).item() for there in seen]
            total = sum(map(math.exp, scores))
            channels = slice(head * value.shape[2], (head + 1) * value.shape[2])
            for score, there in zip(scores, seen, strict=True):
                weights[number, head, *here, *there] = math.exp(score) / total
                result[number, channels, *here] += (
                    layer.gamma.item() * math.exp(score) / total * value[number, head, :, *there]
                )
    return result, weights


@pytest.mark.parametrize(("spatial", "num_heads", "masked"), FORMS, ids=str)
def test_equals_the_definition(spatial, num_heads, masked):
    layer = awake(CrissCrossAttention(8, 4, num_axes=len(spatial), num_heads=num_heads))
    hidden_state = torch.randn(2, 8, *spatial, dtype=torch.float64)
    mask = random_mask(2, spatial) if masked else None
    expected, expected_weights = loops(layer, hidden_state, mask)
    with torch.no_grad():
        plain, nothing = layer(hidden_state, mask=mask)
        explicit, (weights,) = layer(hidden_state, output_attentions=True, mask=mask)
    assert nothing is None
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(explicit, expected, rtol=0, atol=1e-12)
    heads = weights if num_heads > 1 else weights[:, None]
    assert heads.shape == (2, num_heads, *spatial, sum(spatial))
    real = torch.ones(2, *spatial, dtype=torch.bool) if mask is None else mask
    of_the_definition = expected_weights.flatten(-len(spatial)).sum(-1)
    torch.testing.assert_close((heads.sum(-1) * real[:, None]), of_the_definition, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("spatial", "num_heads", "masked"), FORMS, ids=str)
def test_gradients(spatial, num_heads, masked):
    layer = awake(CrissCrossAttention(4, 4, num_axes=len(spatial), num_heads=num_heads))
    hidden_state = torch.randn(2, 4, *spatial, dtype=torch.float64, requires_grad=True)
    mask = random_mask(2, spatial) if masked else None
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(hidden_state, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, given, (hidden_state,), {"mask": mask})[0]

    assert torch.autograd.gradcheck(call, (hidden_state, *parameters))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sizes", [((5,), (3,)), ((4, 6), (5, 3)), ((3, 4, 5), (2, 5, 3))], ids=["lines", "images", "volumes"]
)
def test_a_padded_batch_equals_its_parts_alone(sizes, dtype, num_heads):
    """Whatever lies in the padding."""
    torch.manual_seed(0)
    axes = len(sizes[0])
    layer = RecurrentCrissCrossAttention(16, 8, 3, num_axes=axes, num_heads=num_heads, gamma_init=0.5).to(dtype)
    whole = tuple(max(pair) for pair in zip(*sizes, strict=True))
    batch = torch.full((2, 16, *whole), math.nan, dtype=dtype)
    mask = torch.zeros(2, *whole, dtype=torch.bool)
    parts = [torch.randn(1, 16, *size).to(dtype) for size in sizes]
    for number, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        where = tuple(map(slice, size))
        batch[number, :, *where], mask[number, *where] = part[0], True
    batch.requires_grad_()
    together, _ = layer(batch, mask=mask)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for number, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        alone, _ = layer(part)
        where = tuple(map(slice, size))
        torch.testing.assert_close(together[number, :, *where], alone[0], rtol=tolerance, atol=tolerance)
    assert together[~mask[:, None].expand_as(together)].isnan().all()  # as it was
    together[mask[:, None].expand_as(together)].sum().backward()
    assert batch.grad[mask[:, None].expand_as(together)].isfinite().all()


def test_a_mask_of_everything_changes_nothing():
    layer = awake(CrissCrossAttention(8, 4, num_heads=2))
    hidden_state = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    everywhere = torch.ones(2, 5, 6)  # numbers will do
    torch.testing.assert_close(layer(hidden_state, mask=everywhere)[0], layer(hidden_state)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounds_with_weights_of_their_own(dtype):
    torch.manual_seed(0)
    layer = RecurrentCrissCrossAttention(8, recurrence=3, share_weights=False, gamma_init=0.3).to(dtype)
    assert len(list(layer.parameters())) == 3 * 7 and not hasattr(layer, "query")
    hidden_state = torch.randn(2, 8, 4, 5).to(dtype)
    expected = hidden_state
    for one in layer.rounds:
        expected, _ = one(expected)
    output, attentions = layer(hidden_state, output_attentions=True)
    torch.testing.assert_close(layer(hidden_state)[0], expected)
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 5, 9)] * 3


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_three_rounds_of_one_layer_are_three_calls(num_axes):
    layer = awake(RecurrentCrissCrossAttention(8, recurrence=3, num_axes=num_axes))
    once = CrissCrossAttention(8, num_axes=num_axes).double()
    once.load_state_dict(layer.state_dict())
    hidden_state = torch.randn(2, 8, *(4, 3, 5)[:num_axes], dtype=torch.float64)
    expected = once(once(once(hidden_state)[0])[0])[0]
    torch.testing.assert_close(layer(hidden_state)[0], expected, rtol=0, atol=0)


# --- weights of other implementations ------------------------------------------------------------------------------


def foreign(layer: CrissCrossAttention, gamma: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in layer.state_dict().items():
        first, _, rest = key.partition(".")
        renamed[gamma if key == "gamma" else f"{first}_conv.{rest}"] = (
            tensor.reshape(shape) if key == "gamma" else tensor
        )
    return renamed


@pytest.mark.parametrize(("gamma", "shape"), [("gamma", (1,)), ("gamma", ()), ("gamma.scale", ())])
@pytest.mark.parametrize("prefix", ["", "head.cca."])
def test_names_of_the_authors_and_of_mmcv(gamma, shape, prefix):
    source = awake(RecurrentCrissCrossAttention(8))
    file = {prefix + key: tensor for key, tensor in foreign(source, gamma, shape).items()}
    layer = RecurrentCrissCrossAttention(8).double()
    network = nn.ModuleDict({"head": nn.ModuleDict({"cca": layer})}) if prefix else layer
    network.load_state_dict(file)
    for key, tensor in source.state_dict().items():
        assert torch.equal(layer.state_dict()[key], tensor)
    apart = RecurrentCrissCrossAttention(8, share_weights=False).double()
    copy.deepcopy(apart).load_state_dict(foreign(source, gamma, shape))
    apart.load_state_dict(source.state_dict())
    hidden_state = torch.randn(1, 8, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(apart(hidden_state)[0], source(hidden_state)[0], rtol=0, atol=0)


def test_images_give_volumes_their_weights():
    flat, volume = awake(CrissCrossAttention(8)), CrissCrossAttention(8, num_axes=3).double()
    volume.load_state_dict(flat.state_dict())
    hidden_state = torch.randn(2, 8, 1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(volume(hidden_state)[0][:, :, 0], flat(hidden_state[:, :, 0])[0], rtol=0, atol=1e-12)


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(RuntimeError, match=r"size mismatch for query\.weight"):
        CrissCrossAttention(8, 2).load_state_dict(CrissCrossAttention(8, 4).state_dict())


SHAPES_3D = ["1x8x3x4x5", "2x16x2x3x3", "1x16x4x1x3", "1x8x3x4x1", "1x8x1x3x4", "2x8x1x1x5"]


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("shape", SHAPES_3D)
def test_volumes_against_the_authors_formula(shape, precision):
    """Their 3-D module as it was meant counts a position itself twice: what it adds to ours is one more term."""
    golden = load_golden("cca3d")
    assert ["x".join(map(str, row)) for row in golden["shapes"].tolist()] == SHAPES_3D
    dtype, tolerance = (torch.float64, 1e-9) if precision == "f64" else (torch.float32, 2e-5)
    file = {
        key.removeprefix(f"{shape}/param/"): torch.from_numpy(value)
        for key, value in golden.items()
        if key.startswith(f"{shape}/param/")
    }
    query_key_size, hidden_size = file["query_conv.weight"].shape[:2]
    layer = CrissCrossAttention(hidden_size, query_key_size, num_axes=3)
    layer.load_state_dict(file)
    layer, hidden_state = layer.to(dtype), torch.from_numpy(golden[f"{shape}/x"]).to(dtype)
    with torch.no_grad():
        query, key, value = layer.query(hidden_state), layer.key(hidden_state), layer.value(hidden_state)
        ours = (layer(hidden_state)[0] - hidden_state) / layer.gamma
        _, logsumexp = torch.ops.ccnet_hf.criss_cross_attention(query, key, value)
        own_share = torch.sigmoid((query * key).sum(1) - logsumexp)[:, None]
        expected = layer.gamma * (ours * (1 - own_share) + value * own_share) + hidden_state
    assert_close(expected, golden[f"{shape}/intended/{precision}/out"], tolerance)


# --- as part of a network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_heads": 4}, {"share_weights": False}], ids=str)
def test_compiled_and_exported(options, masked):
    torch.manual_seed(0)
    layer = RecurrentCrissCrossAttention(16, 8, num_axes=3, gamma_init=0.5, **options)
    hidden_state = torch.randn(2, 16, 3, 4, 5)
    mask = random_mask(2, (3, 4, 5)) if masked else None
    expected = layer(hidden_state, False, mask)[0]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden_state, False, mask)[0], expected)
    exported = torch.export.export(layer, (hidden_state, False, mask)).module()
    torch.testing.assert_close(exported(hidden_state, False, mask)[0], expected)


def test_autocast():
    layer = RecurrentCrissCrossAttention(16, num_heads=2, gamma_init=0.5)
    hidden_state, mask = torch.randn(2, 16, 4, 5), random_mask(2, (4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(hidden_state, mask=mask)
    torch.testing.assert_close(output.float(), layer(hidden_state, mask=mask)[0], rtol=5e-2, atol=5e-2)


def test_gamma_starts_where_it_is_told():
    hidden_state = torch.randn(1, 8, 3, 4)
    assert torch.equal(CrissCrossAttention(8)(hidden_state)[0], hidden_state)
    assert CrissCrossAttention(8, gamma_init=0.01).gamma.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_axes": 4}, "num_axes must be 1, 2 or 3, got 4"),
        ({"num_axes": 0}, "num_axes must be an integer of at least 1, got 0"),
        ({"num_heads": 3}, "hidden_size must be a multiple of num_heads, got 8 for 3 heads"),
        ({"num_heads": 4, "query_key_size": 2}, "query_key_size must be a multiple of num_heads, got 2 for 4 heads"),
        ({"num_heads": True}, "num_heads must be an integer of at least 1, got True"),
        ({"recurrence": 0}, "recurrence must be an integer of at least 1, got 0"),
        ({"recurrence": 10**9}, "recurrence must be at most 100, got 1000000000"),
        ({"recurrence": 10**5, "share_weights": False}, "recurrence must be at most 100, got 100000"),
        ({"query_key_size": 10**9}, "query_key_size must be at most 8,192, got 1000000000"),
        ({"gamma_init": math.nan}, "gamma_init must be a finite number, got nan"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RecurrentCrissCrossAttention(8, **options)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"num_axes=3 takes \(batch, channels, 3 spatial axes\), got \(2, 8, 4, 5\)"):
        CrissCrossAttention(8, num_axes=3)(torch.randn(2, 8, 4, 5))
    for wrong in (torch.randn(2, 4, 4, 5), torch.ones(2, 8, 4, 5).long()):
        with pytest.raises(ValueError, match=rf"hidden_size=8 takes so many channels, .* got .* of {wrong.dtype}"):
            RecurrentCrissCrossAttention(8)(wrong)
    with pytest.raises(ValueError, match=r"mask must be \(batch, \*spatial\), here \(2, 4, 5\), got \(2, 5, 4\)"):
        CrissCrossAttention(8)(torch.randn(2, 8, 4, 5), mask=torch.ones(2, 5, 4))
