"""`benchmark.py instances`: what the attention in the trunk of Mask R-CNN costs inside the whole network."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.forms import NonLocalBlock
from ccnet_hf.errors import enough_memory
from ccnet_hf.models.layers_ccnet import FeatureMapAttention
from ccnet_hf.models.modeling_ccnet_instance import SIZE_DIVISOR, CCNetForInstanceSegmentation
from ccnet_hf.recipes import get_recipe


_GAMMA = 0.5


@dataclass
class InstanceArguments:
    variant: str = field(
        default="ccnet-r50-coco",
        metadata={
            "choices": ["ccnet-r50-coco", "ccnet-r101-coco"],
            "help": "recipe whose network is measured, with random weights",
        },
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    size: str = field(default="800x1333", metadata={"metavar": "HxW", "help": "height and width of the image"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=3, metadata={"help": "measurements of each form, in turn"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass
class Cost:
    """One row: the network with one kind of attention, or without any."""

    form: str
    flops: int  # of the network, by PyTorch's counter
    seconds: list[float]  # wall clock of an image, one entry per repeat
    processor_seconds: list[float]  # the same by the processor's clock, summed over threads
    bytes: int  # peak of what is allocated during the call
    saved_bytes: int  # what the attention alone keeps for a backward pass


def benchmark_instances(arguments: InstanceArguments) -> None:
    """Measure Mask R-CNN with criss-cross attention in its trunk, without it, and with the non-local block."""
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads)
    height, width = measuring.parse_size(arguments.size, "size")
    # The stem's feature maps of 64 channels, at half the size; and the weights of the non-local block.
    measuring.check_elements("the stem's feature map", 16, height, width)
    measuring.check_elements("the non-local block's weights", (height // 16 + 2) ** 2, (width // 16 + 2) ** 2)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # Every detection counts, however low its score: as many masks as trained weights would give at most.
    config = get_recipe(arguments.variant).config(box_score_thresh=0.0)
    model = CCNetForInstanceSegmentation(config).to(device).eval()
    pixel_values = torch.randn(1, 3, height, width).to(device)
    environment = measuring.environment(device)
    environment["network"] = f"{arguments.variant}, {height}x{width}, float32"
    measuring.print_environment(environment)

    stage = next(stage for stage in model.backbone.stages if stage.attention is not None)
    channels = stage.attention.hidden_size, stage.attention.query_key_size
    blocks: dict[str, nn.Module | None] = {"without": None}
    blocks |= {f"criss-cross, R = {rounds}": FeatureMapAttention(*channels, rounds) for rounds in (1, 2)}
    blocks["non-local"] = NonLocalBlock(*channels)
    rows, calls = {}, {}
    for name, block in blocks.items():
        if block is not None:
            nn.init.constant_(block.to(device).gamma, _GAMMA)
        calls[name] = _call(model, stage, block, pixel_values)
    with enough_memory(environment["network"]):
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            saved = _saved(blocks[name], channels[0], height, width, device)
            rows[name] = Cost(name, counter.get_total_flops(), [], [], measuring.peak_memory(call, device), saved)
        turns = [name for _ in range(arguments.repeats) for name in calls]
        for name in tqdm(turns, desc="measuring", unit="call", disable=None, leave=False):
            seconds, processor_seconds = measuring.call_seconds(calls[name], device)
            rows[name].seconds.append(seconds)
            rows[name].processor_seconds.append(processor_seconds)
    print(table(list(rows.values())))
    results = {"environment": environment, "rows": [asdict(row) for row in rows.values()]}
    measuring.write_results(arguments.json, results)


def _call(
    model: CCNetForInstanceSegmentation, stage: nn.Module, block: nn.Module | None, pixel_values: torch.Tensor
) -> Callable[[], object]:
    """A call of the network with this attention in the stage; all other weights are the same."""

    def call() -> object:
        stage.attention = block
        with torch.inference_mode():
            return model(pixel_values=pixel_values).scores

    return call


def _saved(block: nn.Module | None, channels: int, height: int, width: int, device: torch.device) -> int:
    if block is None:
        return 0
    rows, columns = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR // 16 for side in (height, width))
    hidden_state = torch.randn(1, channels, rows, columns, device=device, requires_grad=True)
    return measuring.saved_memory(lambda: block(hidden_state)[0], [hidden_state, *block.parameters()])


def table(rows: list[Cost]) -> str:
    """FLOPs, medians of the times with their range, and memory; what each form adds to the first row."""
    lines = [("attention", "GFLOP", "processor s", "least..most", "added", "peak MiB", "saved by it, MiB")]
    first = statistics.median(rows[0].processor_seconds)
    for row in rows:
        median = statistics.median(row.processor_seconds)
        lines.append(
            (
                row.form,
                f"{row.flops / 1e9:.1f}",
                f"{median:.2f}",
                f"{min(row.processor_seconds):.2f}..{max(row.processor_seconds):.2f}",
                f"{median / first - 1:+.1%}",
                f"{row.bytes / 2**20:.0f}",
                f"{row.saved_bytes / 2**20:.1f}",
            )
        )
    return measuring.aligned(lines, left=1)
