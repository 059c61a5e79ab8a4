"""The paper's efficiency table: exact FLOPs, and memory that is measured."""

import json

import pytest
import torch
from torch import nn

from ccnet_hf import RecurrentCrissCrossAttention, benchmark
from ccnet_hf.benchmark.efficiency import counted_flops, measure_block
from ccnet_hf.benchmark.measuring import saved_memory


@pytest.mark.parametrize(("recurrence", "gflop"), [(0, 108.15), (1, 8.27), (2, 16.54), (3, 24.81)])
def test_flops_of_the_papers_table(recurrence, gflop):
    assert round(counted_flops(97, 97, 512, 64, recurrence) / 1e9, 2) == gflop


def test_measured_block(tmp_path, capsys):
    """PyTorch's counter, through the operator's formula, agrees with the closed form; memory grows with the rounds."""
    file = tmp_path / "memory.json"
    arguments = ["--size", "24x31", "--hidden_size", "32", "--query_key_size", "8", "--json", str(file)]
    assert benchmark.main(["memory", *arguments]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["counted_flops"] for row in rows] == [row["torch_flops"] for row in rows]
    assert [row["counted_flops"] for row in rows] == [counted_flops(24, 31, 32, 8, rounds) for rounds in range(4)]
    non_local, *ours = rows
    for column in ("saved_bytes", "training_bytes", "inference_bytes"):
        sizes = [row[column] for row in ours]
        assert sizes == sorted(sizes) and sizes[1] < non_local[column]
    assert non_local["saved_bytes"] >= 4 * (24 * 31) ** 2, "the non-local block keeps a weight for every pair"
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert len(table) == 5 and "R = 3" in table[-1]
    assert all(row["paper_gflop"] is None for row in rows), "the paper has figures for one size only"


def test_a_round_saves_inputs_output_and_one_number_per_position():
    """What the second round keeps: its input, query, key, value, the attention's output and its log-sum-exp."""
    positions, hidden_size, query_key_size = 9 * 14, 16, 4
    hidden_state = torch.randn(1, hidden_size, 9, 14).contiguous(memory_format=torch.channels_last)
    saved = []
    for recurrence in (1, 2):
        block = RecurrentCrissCrossAttention(hidden_size, query_key_size, recurrence)
        nn.init.constant_(block.gamma, 0.5)
        saved.append(measure_block(block, hidden_state)[1])
    assert saved[1] - saved[0] == 4 * positions * (3 * hidden_size + 2 * query_key_size + 1)


def test_saved_memory_counts_every_storage_once():
    weight = torch.randn(8, requires_grad=True)
    factor = torch.randn(8)
    assert saved_memory(lambda: (weight * factor) * factor, [weight]) == 8 * 4
