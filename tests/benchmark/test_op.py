"""The other forms, the memory meter and the table of `benchmark.py op`, on tiny sizes."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ccnet_hf import benchmark, criss_cross_attention
from ccnet_hf.benchmark import checks, measuring, op
from ccnet_hf.benchmark.forms import dense_products, einsum_attention, merged_attention, non_local_attention
from ccnet_hf.benchmark.measuring import find_device, peak_memory
from ccnet_hf.benchmark.op import Case, Comparison, table


def plain_line_attention(query, key, value, masked):
    scores = query @ key.transpose(1, 2)
    if masked:
        scores = scores.masked_fill(torch.eye(scores.shape[-1], dtype=torch.bool), float("-inf"))
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.parametrize(
    "form",
    [einsum_attention, lambda *inputs: merged_attention(plain_line_attention, *inputs)],
    ids=["einsum", "merged"],
)
def test_forms_compute_the_same(form):
    query, key, value = (torch.randn(2, channels, 5, 7, dtype=torch.float64) for channels in (3, 3, 4))
    expected = criss_cross_attention(query, key, value)
    torch.testing.assert_close(form(query, key, value), expected, rtol=0, atol=1e-12)


def test_non_local_attention():
    query, key, value = (torch.randn(2, channels, 3, 4, dtype=torch.float64) for channels in (3, 3, 5))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.flatten(2).transpose(1, 2) for tensor in (query, key, value)), scale=1.0
    )
    actual = non_local_attention(query, key, value).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
def test_dense_products_are_those_of_the_operator(backward):
    """By their FLOPs, which the operator states."""
    inputs = [torch.randn(2, channels, 5, 7) for channels in (3, 3, 4)]
    multiply = dense_products(*inputs, *(inputs[2:] if backward else []))
    with FlopCounterMode(display=False) as alone:
        multiply()
    with FlopCounterMode(display=False) as whole:
        output = criss_cross_attention(*(tensor.requires_grad_(backward) for tensor in inputs))
        if backward:
            output.sum().backward()
    assert alone.get_total_flops() == whole.get_total_flops() > 0


def test_peak_memory_counts_what_lives_at_one_time():
    def call():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        temporary = torch.empty(1 << 19, dtype=torch.uint8)
        del temporary
        second = torch.empty(1 << 18, dtype=torch.uint8)
        return first, second

    assert peak_memory(call, torch.device("cpu")) == (1 << 20) + (1 << 19)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("multiplies_bfloat16", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_needs_little_beside_its_results(dtype, multiplies_bfloat16, backward, monkeypatch):
    """Whatever the processor can do: blocks of rows and columns, which do not grow with the map."""
    operator = sys.modules[criss_cross_attention.__module__]
    monkeypatch.setattr(operator, "_cpu_multiplies_bfloat16", lambda: multiplies_bfloat16)

    def temporaries(height, width):
        inputs = [
            torch.randn(1, channels, height, width)
            .to(dtype, memory_format=torch.channels_last)
            .requires_grad_(backward)
            for channels in (64, 64, 512)
        ]
        grad_output = torch.ones_like(inputs[2])

        def call():
            output = criss_cross_attention(*inputs)
            return torch.autograd.grad(output, inputs, grad_output) if backward else output

        channels = 512 + (640 if backward else 0)  # output, and the gradients of query, key and value
        results = height * width * (channels * dtype.itemsize + 4)
        return peak_memory(call, torch.device("cpu")) - results

    small, large = temporaries(64, 128), temporaries(128, 128)
    assert 0 < small <= 24 << 20 and large <= small + (1 << 20)


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
    cases = [tuple(row["case"].values()) for row in results["rows"]]
    assert cases == [
        (dtype, 1, *size, backward)
        for dtype in ("float32", "float16")
        for size in ((3, 4), (5, 2))
        for backward in (False, True)
    ]
    for row in results["rows"]:
        assert len(row["seconds"]) == len(row["operator_seconds"]) == len(row["products_cpu_seconds"]) == 2
        assert row["form"] == "einsum"
        positions = row["case"]["height"] * row["case"]["width"]
        bytes_of_result = 512 * positions * (4 if row["case"]["dtype"] == "float32" else 2)
        assert row["bytes"] >= bytes_of_result and row["operator_bytes"] >= bytes_of_result
    lines = printed.split("\n\n")[-1].splitlines()
    assert len(lines) == 1 + len(cases) and len(set(map(len, lines))) == 1


def test_table_shows_medians_and_the_spread_of_pairs():
    times = ([6.0, 9.0, 6.0], [2.0, 2.0, 4.0], [8.0, 8.0, 8.0], [2.0, 2.0, 2.0])
    row = Comparison(Case("float32", 1, 2, 3, False), "einsum", *times, 1 << 21, 1 << 20, [1.0, 1.0])
    cells = table([row]).splitlines()[1].split()
    assert cells[2:5] == ["2x3", "forward", "einsum"]
    assert cells[5:] == ["6000.0", "2000.0", "3.00x", "1.50..4.50", "4.00x", "2.00", "2.0", "1.0", "50%"]


def test_check_compares_with_float64(monkeypatch, capsys):
    monkeypatch.setattr(checks, "SHAPES", ((2, 8, 16, 1, 7), (1, 12, 20, 9, 10)))
    checks.check_operator(torch.device("cpu"), {"einsum": einsum_attention})
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    for name in (
        "bfloat16 1x12x20x9x10 gradient of v",
        "float32 1x16x24x5x6x7 forward and backward",
        "opcheck ccnet_hf.criss_cross_attention_backward test_faketensor",
        "torch.compile 12x10, forward and backward",
        "einsum computes the same",
    ):
        assert f"ok     {name}: " in printed


def test_check_finds_a_wrong_operator(monkeypatch, capsys):
    monkeypatch.setattr(checks, "SHAPES", ((2, 8, 16, 4, 7),))
    wrong = lambda query, key, value: criss_cross_attention(query, key, 1.001 * value)  # noqa: E731
    monkeypatch.setattr(checks, "criss_cross_attention", wrong)
    monkeypatch.setattr(checks, "tool_checks", lambda device: ())
    counts_itself_twice = lambda *inputs: merged_attention(  # noqa: E731
        lambda query, key, value, masked: plain_line_attention(query, key, value, masked=False), *inputs
    )
    with pytest.raises(ValueError, match=r"\d+ of \d+ checks of the operator failed on cpu"):
        checks.check_operator(torch.device("cpu"), {"merged": counts_itself_twice})
    printed = capsys.readouterr().out
    assert "FAILED float32 2x8x16x4x7 output" in printed and "FAILED merged computes the same" in printed


def test_every_size_is_compiled():
    """Also past the number of sizes after which torch.compile gives up."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    form = op.Form(torch.compile(einsum_attention, dynamic=False, backend=backend))
    limit = (
        "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    )  # PyTorch 2.6
    with torch._dynamo.config.patch({limit: 1}):
        for width in (3, 4, 5):
            op.compare({"compiled": form}, Case("float32", 1, 2, width, False), torch.device("cpu"), repeats=1)
    assert len(compiled) == 3


def test_what_does_not_fit_leaves_what_was_measured(tmp_path, monkeypatch, capsys):
    def compare(forms, case, *_):
        if case.backward:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Comparison(case, "einsum", [1.0], [1.0], [1.0], [1.0], 1, 1, [1.0])]

    monkeypatch.setattr(op, "compare", compare)
    file = tmp_path / "op.json"
    assert benchmark.main(["op", "--sizes", "3x4", "--dtypes", "float32", "--json", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "height=3" in error and "backward=True" in error and "einsum" in error
    assert [row["case"]["backward"] for row in json.loads(file.read_text())["rows"]] == [False]


@pytest.mark.parametrize("command", [["op"], ["model"], ["memory"], ["data"]])
def test_a_file_that_cannot_be_written_is_found_before_the_work(command, tmp_path, monkeypatch, capsys, full_disk):
    monkeypatch.setattr(measuring, "environment", None)
    with full_disk(1000):
        assert benchmark.main([*command, "--json", str(tmp_path / "new" / "file.json")]) == 1
    assert "file.json cannot be written: file too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_measurements_before(tmp_path, monkeypatch, capsys, full_disk):
    def compare(forms, case, *_):
        return [Comparison(case, "einsum", [1.0] * (1000 if case.backward else 1), [1.0], [1.0], [1.0], 1, 1, [1.0])]

    monkeypatch.setattr(op, "compare", compare)
    monkeypatch.setattr(op, "table", lambda rows: "")
    file = tmp_path / "op.json"
    with full_disk(5000):
        assert benchmark.main(["op", "--sizes", "3x4", "--dtypes", "float32", "--json", str(file)]) == 1
    assert "op.json cannot be written: file too large" in capsys.readouterr().err
    assert [row["case"]["backward"] for row in json.loads(file.read_text())["rows"]] == [False]


def test_choice_of_a_gpu(monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    assert [find_device(name).index for name in ("cpu", "cuda", "cuda:1")] == [None, None, 1]
    assert chosen == [0, 1]
    assert benchmark.main(["op", "--device", "cuda:2"]) == 1
    assert capsys.readouterr().err == "error: cannot measure on cuda:2: PyTorch finds 2 CUDA device(s)\n"


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
        (["op", "--batch_sizes", "0"], 1, "--batch_sizes"),
        (["op", "--against", "nothing"], 1, "einsum"),
        (["op", "--against", "sdpa"], 1, "--device cuda"),
        (["op", "--cuda_graphs"], 1, "--device cuda"),
        (["memory", "--size", "5"], 1, "--size"),
        (["model", "--variant", "nothing"], 1, "nothing"),
        (["model", "--batch_size", "0"], 1, "--batch_size"),
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
