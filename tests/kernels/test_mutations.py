"""The simulator's checks notice when a barrier, a wait, a mask, a bound or a term is taken out of the kernels."""

import shutil
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from simulator.checks import Case, check_case
from simulator.runner import SOURCES, SimulationError, Simulator, find_compiler


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(find_compiler() is None, reason="needs g++ to run the CUDA kernels on the host"),
]

SEEDS = (0, 1, 2)


@dataclass
class Mutation:
    """`old` becomes `new` wherever it stands in `file`, `count` times."""

    name: str
    file: str
    old: str
    new: str
    count: int = 1
    sanitize: bool = False


BARRIER = "    __syncthreads();"
COPIES = "    if (step + kStages - 1 < steps) load(step + kStages - 1);"

MUTATIONS = (
    Mutation("wait for copies removed", "tiles.cuh", "wait_copies<kStages - 2>();", ""),
    Mutation("wait one group short", "tiles.cuh", "wait_copies<kStages - 2>();", "wait_copies<kStages - 1>();"),
    Mutation("barrier removed", "tiles.cuh", "__syncthreads();", ""),
    Mutation("next copies before the barrier", "tiles.cuh", f"{BARRIER}\n{COPIES}", f"{COPIES}\n{BARRIER}"),
    Mutation("one buffer for two steps", "backward.cuh", "step / slices % 2 * Shared::kBuffer", "0", count=2),
    Mutation("own place not masked", "forward.cuh", "(skip_self && place == row)", "false"),
    Mutation("places beyond the line not masked", "forward.cuh", "place >= length || ", ""),
    Mutation("earlier sums not corrected", "forward.cuh", "sums[tile][2 * half] *= correction;", ""),
    Mutation("maximum of a pair of lanes only", "forward.cuh", "__shfl_xor_sync(kWholeWarp, found, 2)", "found"),
    Mutation("weight of the columns dropped", "forward.cuh", "other[i] * other_weight[half]", "other[i]"),
    Mutation("gamma dropped", "forward.cuh", "gamma * result[i] + other[i]", "result[i] + other[i]"),
    Mutation("missing channels not zero", "tiles.cuh", " && column < valid_columns;", ";"),
    Mutation("delta dropped", "backward.cuh", " - place_delta)", ")"),
    Mutation("statistics of the wrong side", "backward.cuh", "of_keys ? numbers[place]", "false ? numbers[place]"),
    Mutation("columns' gradients overwritten", "backward.cuh", "if (add) {", "if (false) {"),
    Mutation("rows read beyond the line", "tiles.cuh", "valid = row < valid_rows && ", "valid = ", sanitize=True),
    Mutation("rows written beyond the line", "tiles.cuh", "if (row < valid_rows && ", "if (", sanitize=True),
    Mutation("stages without memory", "forward.cuh", "kStages * kStage)", "kStage)", sanitize=True),
)


@cache
def cases(sanitize: bool) -> list[Case]:
    sizes = [(1, 2, 35, 24, 40)] if sanitize else [(1, 3, 41, 40, 136), (1, 2, 140, 24, 8)]
    return [Case(*size, torch.bfloat16) for size in sizes]


def check(folder, sources, sanitize: bool) -> None:
    simulator = Simulator(folder, sources, sanitize=sanitize, optimize=False)
    for case in cases(sanitize):
        for seed in SEEDS[:1] if sanitize else SEEDS:
            check_case(simulator, case, seed)


@pytest.mark.parametrize("sanitize", [False, True])
def test_the_sources_as_they_are_pass(tmp_path, sanitize):
    check(tmp_path, SOURCES, sanitize)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_is_noticed(tmp_path, mutation):
    sources = tmp_path / "csrc"
    shutil.copytree(SOURCES, sources)
    file = sources / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == mutation.count, f"{mutation.file} no longer says {mutation.old!r}"
    file.write_text(text.replace(mutation.old, mutation.new))
    with pytest.raises((AssertionError, SimulationError)):
        check(tmp_path, sources, mutation.sanitize)
