"""`benchmark.py model`: a whole network, with the operator and with the einsum form in its place."""

import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from unittest import mock

import torch
from tqdm import tqdm
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.forms import einsum_attention
from ccnet_hf.models import layers_ccnet
from ccnet_hf.recipes import get_recipe


@dataclass
class ModelArguments:
    variant: str = field(
        default="ccnet-r50-cityscapes", metadata={"help": "recipe whose network is measured, with random weights"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    size: str = field(default="512x512", metadata={"metavar": "HxW", "help": "height and width of the images"})
    batch_size: int = field(default=1, metadata={"help": "images in a batch"})
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtype"})
    train: bool = field(default=False, metadata={"help": "measure forward and backward instead of inference"})
    compile: bool = field(default=False, metadata={"help": "measure the network under torch.compile too"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=5, metadata={"help": "measurements of each form, in turn"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass
class Speed:
    """One row: a form of the network."""

    form: str
    seconds: list[float]  # per batch, one entry per repeat
    bytes: int  # peak of what is allocated during the call


def benchmark_model(arguments: ModelArguments) -> None:
    """Measure a whole network, with the operator and with the einsum form in NCHW in its place."""
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads, batch_size=arguments.batch_size)
    height, width = measuring.parse_size(arguments.size, "size")
    # The stem's feature maps of 64 channels, at half the size.
    measuring.check_elements("the stem's feature map", 16, arguments.batch_size, height, width)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = AutoModelForSemanticSegmentation.from_config(get_recipe(arguments.variant).config())
    model = model.to(device, getattr(torch, arguments.dtype)).train(arguments.train)
    pixel_values = torch.randn(arguments.batch_size, 3, height, width).to(device, model.dtype)
    labels = torch.randint(model.config.num_labels, (arguments.batch_size, height, width), device=device)
    environment = measuring.environment(device)
    environment["network"] = f"{arguments.variant}, {pixel_values.shape[0]}x{height}x{width}, {arguments.dtype}"
    measuring.print_environment(environment)

    def run(network: Callable) -> object:
        if not arguments.train:
            with torch.inference_mode():
                return network(pixel_values=pixel_values).logits
        network.zero_grad()
        return network(pixel_values=pixel_values, labels=labels).loss.backward()

    plain = _in_nchw(model)
    model.to(memory_format=torch.channels_last)
    calls = {"einsum form, NCHW": lambda: _with_einsum(lambda: run(plain)), "operator": lambda: run(model)}
    if arguments.compile:
        compiled = torch.compile(model)
        calls["operator, compiled"] = lambda: run(compiled)
    with measuring.enough_memory(environment["network"]):
        for call in calls.values():
            call()
        rows = {name: Speed(name, [], measuring.peak_memory(call, device)) for name, call in calls.items()}
        turns = [name for _ in range(arguments.repeats) for name in calls]
        for name in tqdm(turns, desc="measuring", unit="call", disable=None, leave=False):
            rows[name].seconds.append(measuring.call_seconds(calls[name], device)[0])
    print(table(list(rows.values()), arguments.batch_size))
    results = {"environment": environment, "rows": [asdict(row) for row in rows.values()]}
    measuring.write_results(arguments.json, results)


def _in_nchw(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes in NCHW, where the model itself turns every image into channels_last."""
    plain = copy.deepcopy(model)
    plain.base_model.backbone.register_forward_pre_hook(lambda _, args: tuple(tensor.contiguous() for tensor in args))
    return plain


def _with_einsum(call: Callable[[], object]) -> object:
    """`call` with the plain form where the layer calls the operator."""

    def einsum_round(query, key, value, gamma, hidden_state):
        return gamma * einsum_attention(query, key, value) + hidden_state

    with mock.patch.object(layers_ccnet, "criss_cross_attention_round", einsum_round):
        return call()


def table(rows: list[Speed], batch_size: int) -> str:
    """Medians with their range, images a second, speed against the first row, memory."""
    lines = [("form", "ms", "least..most", "images/s", "speedup", "MiB")]
    first = statistics.median(rows[0].seconds)
    for row in rows:
        median = statistics.median(row.seconds)
        lines.append(
            (
                row.form,
                f"{1e3 * median:.1f}",
                f"{1e3 * min(row.seconds):.1f}..{1e3 * max(row.seconds):.1f}",
                f"{batch_size / median:.2f}",
                f"{first / median:.2f}x",
                f"{row.bytes / 2**20:.0f}",
            )
        )
    return measuring.aligned(lines, left=1)
