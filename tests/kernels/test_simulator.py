"""The CUDA kernels, run on the host: right in every dtype, size and layout, within bounds, and free of races."""

import itertools

import pytest
import torch
from simulator.checks import Case, brute_force, check_case, relative_error
from simulator.runner import SimulationError, Simulator, find_compiler


pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs g++ to run the CUDA kernels on the host")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Batch, height, width, query channels, value channels. Lines of one step and of several, of one block and of several,
# of one place; channels that fill the compiled tiles and that do not, one chunk of value channels and three.
SIZES = (
    (1, 5, 7, 64, 128),
    (2, 9, 3, 16, 72),
    (1, 1, 12, 8, 8),
    (1, 12, 1, 32, 136),
    (1, 1, 1, 64, 16),
    (1, 70, 2, 64, 128),
    (1, 3, 97, 128, 40),
    (1, 2, 150, 24, 40),
    (1, 3, 41, 40, 264),
)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory) -> Simulator:
    return Simulator(tmp_path_factory.mktemp("simulator"))


@pytest.fixture(scope="module")
def sanitized_simulator(tmp_path_factory) -> Simulator:
    return Simulator(tmp_path_factory.mktemp("sanitized"), sanitize=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_brute_force(simulator, size, dtype):
    check_case(simulator, Case(*size, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [(2, 5, 3, 16, 72), (1, 2, 35, 40, 136), (1, 12, 1, 8, 8), (1, 1, 18, 72, 8)], ids=str
)
def test_stays_within_bounds(sanitized_simulator, size, dtype):
    check_case(sanitized_simulator, Case(*size, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_warps_changes_nothing(simulator, dtype):
    case = Case(1, 2, 67, 40, 72, dtype)

    def run(seed):
        output, logsumexp = simulator.forward(*case.inputs, seed=seed)
        return output, logsumexp, *simulator.backward(case.grad, *case.inputs, output, logsumexp, seed=seed)

    first = run(0)
    for seed in (1, 2):
        for found, expected in zip(run(seed), first, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_and_written_in_place(simulator, dtype):
    """Query, key and value as slices of one tensor's channels, of a part of its rows and columns."""
    case = Case(2, 6, 11, 24, 40, dtype)
    joint = torch.full((2, 9, 16, 24 + 24 + 40 + 8), torch.nan, dtype=dtype)
    window = joint[:, 2:8, 3:14]
    window[..., :88] = torch.cat(case.inputs, 1).permute(0, 2, 3, 1)
    query, key, value = window[..., :88].permute(0, 3, 1, 2).split([24, 24, 40], 1)
    storage = torch.full((2, 7, 11, 48), 5.0, dtype=dtype)
    output, logsumexp = simulator.forward(query, key, value, output=storage[:, :6, :, 8:].permute(0, 3, 1, 2))
    expected, expected_logsumexp = simulator.forward(*case.inputs)
    assert torch.equal(output, expected) and torch.equal(logsumexp, expected_logsumexp)
    assert (storage[:, 6:] == 5).all() and (storage[..., :8] == 5).all()
    grads = simulator.backward(case.grad, query, key, value, output, logsumexp)
    for found, wanted in zip(grads, simulator.backward(case.grad, *case.inputs, expected, logsumexp), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("dtype", "gamma_dtype"), [*zip(DTYPES, DTYPES, strict=True), (torch.bfloat16, torch.float32)]
)
def test_gamma_of_any_dtype_is_read_where_it_is(simulator, dtype, gamma_dtype):
    case = Case(1, 6, 5, 8, 16, dtype)
    numbers = torch.tensor([9.0, 0.3125, 9.0]).to(gamma_dtype)
    output, _ = simulator.forward(*case.inputs, numbers[1:2], case.grad)
    expected = 0.3125 * case.reference[0] + case.grad
    assert relative_error(output, expected) < {torch.float32: 1e-6, torch.float16: 3e-4, torch.bfloat16: 3e-3}[dtype]
    output, _ = simulator.forward(*case.inputs, torch.zeros(1), case.grad)
    assert torch.equal(output, case.grad)


@pytest.mark.parametrize(("height", "width"), [(5, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 6e4), (torch.bfloat16, 1e16), (torch.float32, 1e16)])
def test_large_scores_stay_finite(simulator, dtype, largest, height, width):
    """Scores of 1e10 and more: one weight of 1; equal weights where all scores of row and column are equal."""
    case = Case(1, height, width, 64, 8, dtype)
    query, key, value = case.inputs
    query, key = (tensor * (largest / tensor.abs().max()) for tensor in (query, key))
    output, logsumexp = simulator.forward(query, key, value)
    expected, _ = brute_force(query.double(), key.double(), value.double())
    assert relative_error(output, expected) < 1e-6  # a value is copied
    grads = simulator.backward(case.grad, query, key, value, output, logsumexp)
    assert grads[2].isfinite().all() and not any(grad.isnan().any() for grad in grads)

    equal = torch.full_like(query, largest)
    output, _ = simulator.forward(equal, equal, value)
    expected, _ = brute_force(torch.ones_like(query).double(), torch.ones_like(query).double(), value.double())
    assert relative_error(output, expected) < {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_handed_on(simulator, dtype):
    """A query that is NaN spoils its own output, and the gradients of all that it looks at."""
    case = Case(1, 5, 6, 8, 16, dtype)
    query, key, value = case.inputs
    query = query.clone()
    query[0, :, 1, 2] = torch.nan
    output, logsumexp = simulator.forward(query, key, value)
    grads = simulator.backward(case.grad, query, key, value, output, logsumexp)
    own, seen = torch.zeros(2, 5, 6, dtype=torch.bool)
    own[1, 2] = True
    seen[1], seen[:, 2] = True, True
    for tensor, spoiled in zip((output, *grads), (own, own, seen, seen), strict=True):
        assert torch.equal(tensor.isnan(), spoiled.expand_as(tensor))


def test_counts_launches_and_skips_columns_of_one_place(simulator):
    for height, forward, backward in ((3, 2, 5), (1, 1, 3)):
        case = Case(1, height, 4, 8, 8, torch.bfloat16)
        output, logsumexp = simulator.forward(*case.inputs)
        assert simulator.launches == forward
        simulator.backward(case.grad, *case.inputs, output, logsumexp)
        assert simulator.launches == backward


def test_an_empty_batch_launches_nothing(simulator):
    case = Case(0, 3, 4, 8, 8, torch.bfloat16)
    output, logsumexp = simulator.forward(*case.inputs)
    simulator.backward(case.grad, *case.inputs, output, logsumexp)
    assert simulator.launches == 0


@pytest.mark.parametrize("size", [(1, 2, 2, 12, 8), (1, 2, 2, 136, 8), (1, 2, 2, 8, 12), (1, 1, 4097, 8, 8)], ids=str)
def test_sizes_outside_of_the_range_are_refused(simulator, size):
    case = Case(*size, torch.bfloat16)
    with pytest.raises(SimulationError, match="error 1"):
        simulator.forward(*case.inputs)
    logsumexp = torch.zeros(size[:3])
    with pytest.raises(SimulationError, match="error 1"):
        simulator.backward(case.grad, *case.inputs, case.grad, logsumexp)


def test_brute_force_counts_every_place_once():
    """With equal scores the output is the mean of H + W - 1 values."""
    value = torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4)
    output, logsumexp = brute_force(torch.zeros_like(value), torch.zeros_like(value), value)
    for row, column in itertools.product(range(3), range(4)):
        others = value[0, 0, :, column].sum() + value[0, 0, row].sum() - value[0, 0, row, column]
        torch.testing.assert_close(output[0, 0, row, column], others / 6)
    torch.testing.assert_close(logsumexp, torch.full((1, 3, 4), 6.0, dtype=torch.float64).log())
