"""`benchmark.py model`: a whole network in every form that it can take, in one run, and what could be used instead."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from unittest import mock

import torch
import transformers.utils.logging
from tqdm import tqdm
from transformers import PreTrainedModel

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.forms import einsum_attention
from ccnet_hf.benchmark.networks import build_network, network_inputs
from ccnet_hf.benchmark.rivals import RIVALS, rival_call
from ccnet_hf.benchmark.runtimes import RUNTIME_FORMS, Int8Runtime, make_runtime
from ccnet_hf.benchmark.speed import Speed, auto_line, compare_logits, table
from ccnet_hf.deployment.programs import quiet
from ccnet_hf.deployment.runtimes import ProgramRuntime
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.inference.images import find_images
from ccnet_hf.inference.runtime import Runtime
from ccnet_hf.models import layers_ccnet


@dataclass
class ModelArguments:
    variant: str = field(
        default="ccnet-r50-cityscapes", metadata={"help": "recipe whose network is measured, with random weights"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"metavar": "MODEL", "help": "measure this checkpoint instead"}
    )
    images: list[str] | None = field(
        default=None,
        metadata={
            "metavar": "IMAGE",
            "help": "pictures or folders: the first one is measured, int8 is calibrated on all; default: smooth noise",
        },
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    size: str = field(default="512x512", metadata={"metavar": "HxW", "help": "height and width of the images"})
    batch_size: int = field(default=1, metadata={"help": "images in a batch"})
    dtype: str = field(default="float32", metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtype"})
    train: bool = field(
        default=False, metadata={"help": "measure forward and backward instead of inference, of the model as it is"}
    )
    compile: bool = field(
        default=False, metadata={"help": "measure the model as it is under torch.compile too, in --train as well"}
    )
    runtimes: list[str] = field(
        default_factory=lambda: list(RUNTIME_FORMS),
        metadata={
            "choices": list(RUNTIME_FORMS),
            "help": "forms of ccnet_hf.optimize, and int8; one that this machine cannot make is named and left out",
        },
    )
    against: list[str] = field(
        default_factory=list,
        metadata={"choices": list(RIVALS), "help": "other networks in the same run, with random weights"},
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=5, metadata={"help": "measurements of each form, in turn"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})

    def __post_init__(self):
        if self.train and self.against:
            raise InputError("--against is for inference; --train measures the model as it is")


def benchmark_model(arguments: ModelArguments) -> None:
    """Measure a whole network in every form that it can take: as it is, with the einsum form in NCHW in the operator's
    place, by `ccnet_hf.optimize`, in int8; and other networks beside it."""
    transformers.utils.logging.disable_progress_bar()
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads, batch_size=arguments.batch_size)
    height, width = measuring.parse_size(arguments.size, "size")
    # The stem's feature maps of 64 channels, at half the size.
    measuring.check_elements("the stem's feature map", 16, arguments.batch_size, height, width)
    paths = find_images(arguments.images) if arguments.images else []
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    name = arguments.model_name_or_path or arguments.variant
    environment = measuring.environment(device)
    environment["network"] = f"{name}, {arguments.batch_size}x{height}x{width}, {arguments.dtype}"
    environment["input"] = str(paths[0]) if paths else "smooth noise"
    measuring.print_environment(environment)
    with enough_memory(environment["network"]):
        measured = _Comparison(arguments, device, paths)
        measured.run()
    clock = "cpu_seconds" if device.type == "cpu" else "seconds"
    print(table(measured.rows, arguments.batch_size, clock))
    if line := auto_line(measured.rows, measured.model, measured.dtype, clock):
        print(f"\n{line}")
    results = {"environment": environment, "rows": [asdict(row) for row in measured.rows]}
    measuring.write_results(arguments.json, results)


class _Comparison:
    """What is measured, made once, and its rows."""

    def __init__(self, arguments: ModelArguments, device: torch.device, paths):
        self.arguments, self.device = arguments, device
        self.dtype = getattr(torch, arguments.dtype)
        size = measuring.parse_size(arguments.size, "size")
        self.batches = [batch.to(device) for batch in network_inputs(paths, arguments.batch_size, size)]
        self.model = build_network(arguments.variant, arguments.model_name_or_path).to(device)
        self.rows: list[Speed] = []
        self.calls: dict[str, Callable[[], object]] = {}
        with torch.inference_mode():
            self.expected = None if arguments.train else self.model(pixel_values=self.batches[0]).logits

    def run(self) -> None:
        self._add_model()
        if not self.arguments.train:
            for name in self.arguments.runtimes:
                self._add_runtime(name)
            for name in self.arguments.against:
                call = rival_call(name, self.model.config.num_labels, self.batches[0], self.dtype)
                self._add(name, call, is_ours=False)
        rows = {row.form: row for row in self.rows}
        turns = [name for _ in range(self.arguments.repeats) for name in self.calls]
        for name in tqdm(turns, desc="measuring", unit="call", disable=None, leave=False):
            wall, processor = measuring.call_seconds(self.calls[name], self.device)
            rows[name].seconds.append(wall)
            rows[name].cpu_seconds.append(processor)

    def _add_model(self) -> None:
        """The model as it is, after mmsegmentation's form of it."""
        arguments = self.arguments
        model = copy.deepcopy(self.model).to(self.dtype).train(arguments.train)
        pixel_values = self.batches[0].to(self.dtype)
        labels = torch.randint(model.config.num_labels, (len(pixel_values), *pixel_values.shape[2:])).to(self.device)

        def run(network: Callable) -> object:
            if not arguments.train:
                with torch.inference_mode():
                    return network(pixel_values=pixel_values).logits
            network.zero_grad()
            return network(pixel_values=pixel_values, labels=labels).loss.backward()

        plain = _in_nchw(model)
        self._add("einsum form, NCHW", lambda: _with_einsum(lambda: run(plain)))
        model.to(memory_format=torch.channels_last)
        self._add("operator", lambda: run(model))
        if arguments.compile:
            compiled = torch.compile(model)
            self._add("operator, compiled", lambda: run(compiled))

    def _add_runtime(self, name: str) -> None:
        start = time.perf_counter()
        try:
            with quiet():
                runtime = make_runtime(name, self.model, self.dtype, self.batches)
        except InputError as error:
            print(f"{name}: not measured: {error}")
            return
        self._add(name, lambda: runtime.logits(self.batches[0]), start, is_program=_is_program(runtime))

    def _add(
        self,
        name: str,
        call: Callable[[], object],
        start: float | None = None,
        is_program: bool = False,
        is_ours: bool = True,
    ) -> None:
        """Run a form for the first time. `start` is when making it began."""
        with measuring.resident_growth() as growth:
            logits = call()
        made = None if start is None else time.perf_counter() - start
        error = changed = None
        if self.expected is not None and is_ours:
            size = tuple(self.batches[0].shape[-2:])
            error, changed = compare_logits(logits, self.expected, self.model.config.align_corners, size)
        memory = growth.bytes if is_program else measuring.peak_memory(call, self.device)
        self.calls[name] = call
        self.rows.append(Speed(name, [], [], memory, error, changed, made))


def _is_program(runtime: Runtime) -> bool:
    """Whether a runtime allocates by itself, unseen by PyTorch."""
    return isinstance(runtime, ProgramRuntime | Int8Runtime)


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
