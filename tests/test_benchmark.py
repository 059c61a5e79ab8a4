"""The benchmark's yardstick, its memory meter and its table, on tiny sizes."""

import json

import pytest
import torch

from ccnet_hf import benchmark, criss_cross_attention


def test_yardstick_computes_the_same():
    query, key, value = (torch.randn(2, channels, 5, 7, dtype=torch.float64) for channels in (3, 3, 4))
    expected = criss_cross_attention(query, key, value)
    torch.testing.assert_close(benchmark.einsum_attention(query, key, value), expected, rtol=0, atol=1e-12)


def test_peak_memory_counts_what_lives_at_one_time():
    def call():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        temporary = torch.empty(1 << 19, dtype=torch.uint8)
        del temporary
        second = torch.empty(1 << 18, dtype=torch.uint8)
        return first, second

    assert benchmark.peak_memory(call, torch.device("cpu")) == (1 << 20) + (1 << 19)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_takes_at_most_60_percent_of_the_einsum_form(dtype, backward):
    height, width, device = 64, 128, torch.device("cpu")
    inputs = [torch.randn(1, channels, height, width).to(dtype) for channels in (64, 64, 512)]
    grad_output = torch.ones_like(inputs[2])

    def peak(attention, memory_format):
        arranged = [tensor.to(memory_format=memory_format).requires_grad_(backward) for tensor in inputs]
        grad = grad_output.to(memory_format=memory_format)

        def call():
            output = attention(*arranged)
            return torch.autograd.grad(output, arranged, grad) if backward else output

        return benchmark.peak_memory(call, device)

    theirs = peak(benchmark.einsum_attention, torch.contiguous_format)
    assert peak(criss_cross_attention, torch.channels_last) <= 0.6 * theirs


def test_op(tmp_path, capsys):
    threads = torch.get_num_threads()
    file = tmp_path / "op.json"
    arguments = [
        "op",
        "--repeats",
        "2",
        "--threads",
        "1",
        "--sizes",
        "3x4",
        "5x2",
        "--dtypes",
        "float32",
        "float16",
        "--json",
        str(file),
    ]
    try:
        assert benchmark.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["environment"]["torch"] == torch.__version__ and results["environment"]["threads"] == 1
    rows = [(row["dtype"], row["size"], row["passes"]) for row in results["rows"]]
    sizes = [(size, passes) for size in ("3x4", "5x2") for passes in ("forward", "both")]
    assert rows == [(dtype, *size) for dtype in ("float32", "float16") for size in sizes]
    for row in results["rows"]:
        assert len(row["einsum_seconds"]) == len(row["operator_seconds"]) == 2
        pixels = {"3x4": 12, "5x2": 10}[row["size"]]
        bytes_of_result = 512 * pixels * (4 if row["dtype"] == "float32" else 2)
        assert row["einsum_bytes"] >= bytes_of_result and row["operator_bytes"] >= bytes_of_result
    table = printed.split("\n\n")[-1].splitlines()
    assert len(table) == 1 + len(rows) and len(set(map(len, table))) == 1


def test_table_shows_medians_and_the_spread_of_pairs():
    row = benchmark.Comparison(
        "2x2",
        "float32",
        "forward",
        [6.0, 9.0, 6.0],
        [2.0, 2.0, 4.0],
        [8.0, 8.0, 8.0],
        [2.0, 2.0, 2.0],
        1 << 21,
        1 << 20,
    )
    cells = benchmark.table([row]).splitlines()[1].split()
    assert cells[3:] == ["6000.0", "2000.0", "3.00x", "1.50..4.50", "4.00x", "2.0", "1.0", "50%"]


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["op", "--sizes", "97"], 1, "'97'"),
        (["op", "--sizes", "0x5"], 1, "'0x5'"),
        (["op", "--repeats", "0"], 1, "--repeats"),
        (["op", "--device", "meta"], 1, "meta"),
        (["op", "--device", "nowhere"], 1, "nowhere"),
        (["op", "--threads", "0"], 1, "--threads"),
        (["op", "--dtypes", "int8"], 2, "bfloat16"),
        (["nothing"], 2, "op"),
        ([], 2, "op"),
    ],
)
def test_bad_arguments_are_one_line(arguments, status, complaint, capsys):
    try:
        assert benchmark.main(arguments) == status
    except SystemExit as exit:
        assert exit.code == status
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
