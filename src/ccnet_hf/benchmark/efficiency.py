"""`benchmark.py memory`: the paper's efficiency table, recurrent criss-cross attention against the non-local block."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ccnet_hf import RecurrentCrissCrossAttention
from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.forms import NonLocalBlock
from ccnet_hf.errors import enough_memory


# TPAMI 2020, the table on efficiency at 97x97 with 512 channels: GFLOP and MB as printed; 0 is the non-local block.
PAPER = {0: (108, 1411), 1: (8.3, 53), 2: (16.5, 127), 3: (24.7, 208)}


@dataclass
class MemoryArguments:
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    size: str = field(default="97x97", metadata={"metavar": "HxW", "help": "height and width of the feature map"})
    hidden_size: int = field(default=512, metadata={"help": "channels of the feature map"})
    query_key_size: int = field(default=64, metadata={"help": "channels of query and key"})
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtype"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass
class Efficiency:
    """One row of the table. Parameters, input and its gradient's seed are in none of the bytes."""

    name: str
    counted_flops: int  # by the closed form
    torch_flops: int  # by PyTorch's counter
    saved_bytes: int  # kept for the backward pass
    training_bytes: int  # peak of forward and backward
    inference_bytes: int  # peak of forward alone
    paper_gflop: float | None
    paper_megabytes: float | None


def counted_flops(height: int, width: int, hidden_size: int, query_key_size: int, recurrence: int) -> int:
    """FLOPs of `recurrence` rounds of criss-cross attention, or of the non-local block for 0.

    Two a multiply-add, over the three 1x1 convolutions and the attention's two products; every position attends to
    H + W positions (its own column entry is computed, then masked), or to all H * W.
    """
    positions = height * width
    attended = height + width if recurrence else positions
    per_position = hidden_size * (2 * query_key_size + hidden_size) + attended * (query_key_size + hidden_size)
    return 2 * positions * per_position * max(1, recurrence)


def measure_block(block: nn.Module, hidden_state: torch.Tensor) -> tuple[int, int, int, int]:
    """FLOPs by PyTorch's counter, bytes saved for backward, peak of a training and of an inference call."""
    device = hidden_state.device
    learning = hidden_state.detach().requires_grad_()
    seed = torch.ones_like(hidden_state)
    wanted = [learning, *block.parameters()]

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return block(hidden_state)[0]

    def train() -> object:
        return torch.autograd.grad(block(learning)[0], wanted, seed)

    with FlopCounterMode(display=False) as counter:
        infer()
    saved = measuring.saved_memory(lambda: block(learning)[0], wanted)
    return counter.get_total_flops(), saved, *(measuring.peak_memory(call, device) for call in (train, infer))


def benchmark_memory(arguments: MemoryArguments) -> None:
    """Measure FLOPs and memory of recurrent criss-cross attention against the non-local block: the paper's table."""
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(hidden_size=arguments.hidden_size, query_key_size=arguments.query_key_size)
    height, width = measuring.parse_size(arguments.size, "size")
    measuring.check_elements("the feature map", arguments.hidden_size, height, width)
    environment = measuring.environment(device)
    environment["tensors"] = f"{height}x{width}, {arguments.hidden_size} channels, {arguments.dtype}"
    measuring.print_environment(environment)

    channels = arguments.hidden_size, arguments.query_key_size
    blocks: dict[int, Callable[[], nn.Module]] = {0: lambda: NonLocalBlock(*channels)}
    blocks |= {rounds: lambda rounds=rounds: RecurrentCrissCrossAttention(*channels, rounds) for rounds in (1, 2, 3)}
    like_paper = (height, width, *channels) == (97, 97, 512, 64)
    rows = []
    for recurrence, build in tqdm(blocks.items(), desc="measuring", unit="block", disable=None, leave=False):
        torch.manual_seed(0)
        block = build().to(device, getattr(torch, arguments.dtype))
        hidden_state = torch.randn(1, arguments.hidden_size, height, width).to(device, block.gamma.dtype)
        if recurrence:
            hidden_state = hidden_state.contiguous(memory_format=torch.channels_last)
        nn.init.constant_(block.gamma, 0.5)
        flops = counted_flops(height, width, *channels, recurrence)
        name = f"criss-cross, R = {recurrence}" if recurrence else "non-local"
        paper = PAPER[recurrence] if like_paper else (None, None)
        with enough_memory(name):
            rows.append(Efficiency(name, flops, *measure_block(block, hidden_state), *paper))
    print(table(rows))
    measuring.write_results(arguments.json, {"environment": environment, "rows": [asdict(row) for row in rows]})


def table(rows: list[Efficiency]) -> str:
    """GFLOP and MiB of every block, and how many times less than the first row's they are."""
    columns = ("saved_bytes", "training_bytes", "inference_bytes")
    header = ("block", "GFLOP", "by torch", "paper", "saved MiB", "training MiB", "inference MiB", "paper MB")
    lines = [header]
    for row in rows:
        sizes = []
        for column in columns:
            size, first = getattr(row, column), getattr(rows[0], column)
            sizes.append(f"{size / 2**20:.1f}" + (f" ({first / size:.1f}x less)" if row is not rows[0] else ""))
        flops = (f"{flops / 1e9:.2f}" for flops in (row.counted_flops, row.torch_flops))
        paper = ("-" if value is None else f"{value:g}" for value in (row.paper_gflop, row.paper_megabytes))
        lines.append((row.name, *flops, next(paper), *sizes, next(paper)))
    return measuring.aligned(lines, left=1)
