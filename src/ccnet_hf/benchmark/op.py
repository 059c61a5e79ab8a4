"""`benchmark.py op`: the operator against other ways to compute criss-cross attention, in one run."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from tqdm import tqdm

from ccnet_hf import criss_cross_attention
from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.checks import check_operator
from ccnet_hf.benchmark.forms import Attention, dense_products, einsum_attention, non_local_attention, sdpa_attention
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.models.criss_cross_attention import _product_dtype


QUERY_KEY_SIZE, HIDDEN_SIZE = 64, 512
_OURS, _PRODUCTS = "operator", "products"


@dataclass(frozen=True)
class Form:
    """Something to compare with.

    Attributes:
        attention: the function that is measured.
        memory_format: of its inputs; NCHW is what published code uses.
        cuda_only: it does not run on a CPU.
        has_gradient: it can be measured with the backward pass.
        is_criss_cross: it computes what the operator computes.
    """

    attention: Attention
    memory_format: torch.memory_format = torch.contiguous_format
    cuda_only: bool = False
    has_gradient: bool = True
    is_criss_cross: bool = True


FORMS = {
    "einsum": Form(einsum_attention),
    "compiled": Form(torch.compile(einsum_attention, dynamic=False)),
    "sdpa": Form(sdpa_attention, torch.channels_last, cuda_only=True, has_gradient=False),
    "nonlocal": Form(non_local_attention, is_criss_cross=False),
}


@dataclass
class OpArguments:
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    against: list[str] = field(
        default_factory=lambda: ["einsum"],
        metadata={
            "metavar": "FORM",
            "help": "einsum: the plain form; compiled: the same by torch.compile; sdpa: two calls of PyTorch's "
            "attention, merged (CUDA); nonlocal: attention to all positions; triton: a Triton kernel (CUDA, scripts/)",
        },
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: as many as PyTorch takes"})
    repeats: int = field(default=9, metadata={"help": "measurements of each form, in turn"})
    batch_sizes: list[int] = field(default_factory=lambda: [1], metadata={"help": "feature maps in a batch"})
    sizes: list[str] = field(
        default_factory=lambda: ["64x64", "97x97", "64x128", "128x256"],
        metadata={"metavar": "HxW", "help": "heights and widths of the feature map"},
    )
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "bfloat16"],
        metadata={"choices": ["float32", "bfloat16", "float16"], "help": "dtypes to measure"},
    )
    check: bool = field(
        default=False, metadata={"help": "first compare every dtype and shape with float64, forward and backward"}
    )
    cuda_graphs: bool = field(default=False, metadata={"help": "measure CUDA graphs: the device's time alone"})
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


@dataclass(frozen=True)
class Case:
    """What is measured: dtype and size of a batch of feature maps, and whether with the backward pass."""

    dtype: str
    batch_size: int
    height: int
    width: int
    backward: bool


@dataclass
class Comparison:
    """One row: another form and the operator on the same values. Lists hold one entry per repeat."""

    case: Case
    form: str
    seconds: list[float]
    operator_seconds: list[float]
    cpu_seconds: list[float]
    operator_cpu_seconds: list[float]
    bytes: int  # peak of what is allocated during the call, inputs not counted, results counted
    operator_bytes: int
    products_cpu_seconds: list[float]  # of the matrix products alone, in the dtype that the operator multiplies in

    @property
    def over_products(self) -> float:
        """The operator's processor time over that of its matrix products."""
        return statistics.median(self.operator_cpu_seconds) / statistics.median(self.products_cpu_seconds)

    @property
    def speedups(self) -> list[float]:
        return [ours and theirs / ours for theirs, ours in zip(self.seconds, self.operator_seconds, strict=True)]

    @property
    def speedup(self) -> float:
        return statistics.median(self.seconds) / statistics.median(self.operator_seconds)

    @property
    def cpu_speedup(self) -> float:
        return statistics.median(self.cpu_seconds) / statistics.median(self.operator_cpu_seconds)

    @property
    def memory_share(self) -> float:
        return self.operator_bytes / self.bytes


def benchmark_op(arguments: OpArguments) -> None:
    """Measure time and memory of the operator on channels_last tensors against other forms."""
    measuring.check_results(arguments.json)
    device = measuring.find_device(arguments.device)
    measuring.check_counts(repeats=arguments.repeats, threads=arguments.threads)
    for batch_size in arguments.batch_sizes:
        measuring.check_counts(batch_sizes=batch_size)
    sizes = [measuring.parse_size(size, "sizes") for size in arguments.sizes]
    for batch_size, size in itertools.product(arguments.batch_sizes, sizes):
        measuring.check_elements("value", batch_size, HIDDEN_SIZE, *size)
    forms = _choose_forms(arguments.against, device)
    if arguments.cuda_graphs and device.type != "cuda":
        raise InputError("--cuda_graphs needs --device cuda")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    environment = measuring.environment(device)
    environment["tensors"] = f"{HIDDEN_SIZE} channels of value, {QUERY_KEY_SIZE} of query and key"
    if arguments.cuda_graphs:
        environment["calls"] = "CUDA graphs"
    measuring.print_environment(environment)
    if arguments.check:
        check_operator(device, {name: form.attention for name, form in forms.items() if form.is_criss_cross})

    cases = [
        Case(dtype, batch_size, *size, backward)
        for dtype in arguments.dtypes
        for batch_size in arguments.batch_sizes
        for size in sizes
        for backward in (False, True)
    ]
    rows: list[Comparison] = []
    for case in tqdm(cases, desc="measuring", unit="case", disable=None, leave=False):
        with enough_memory(f"{case} with {', '.join(forms)}"):
            rows += compare(forms, case, device, arguments.repeats, arguments.cuda_graphs)
        # after every case, so that a run that ends early leaves what it has
        results = {"environment": environment, "repeats": arguments.repeats, "rows": [asdict(row) for row in rows]}
        measuring.write_results(arguments.json, results)
    print(table(rows))


def _choose_forms(names: Sequence[str], device: torch.device) -> dict[str, Form]:
    for name in names:
        if name not in FORMS:
            raise InputError(f"--against takes {', '.join(FORMS)}, got {name!r}")
        if FORMS[name].cuda_only and device.type != "cuda":
            raise InputError(f"--against {name} needs --device cuda")
    return {name: FORMS[name] for name in names}


def compare(
    forms: dict[str, Form], case: Case, device: torch.device, repeats: int, cuda_graphs: bool = False
) -> list[Comparison]:
    """Measure all forms on the same random values, in turn, so that other load on the machine meets them all."""
    # After some sizes torch.compile stops compiling a function and runs it as it is.
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    channels = (QUERY_KEY_SIZE, QUERY_KEY_SIZE, HIDDEN_SIZE, HIDDEN_SIZE)
    tensors = [torch.randn(case.batch_size, size, case.height, case.width, generator=generator) for size in channels]
    # Scores of unit variance: an almost one-hot softmax would be no typical case for bfloat16.
    tensors[0] *= QUERY_KEY_SIZE**-0.5
    tensors = [tensor.to(device, getattr(torch, case.dtype)) for tensor in tensors]
    forms = {name: form for name, form in forms.items() if form.has_gradient or not case.backward}
    calls = {}
    for name, form in (*forms.items(), (_OURS, Form(criss_cross_attention, torch.channels_last))):
        arranged = [tensor.contiguous(memory_format=form.memory_format) for tensor in tensors]
        calls[name] = _call(form.attention, arranged, case.backward)
    products = [tensor.to(_product_dtype(tensor)) for tensor in tensors]
    calls[_PRODUCTS] = torch.inference_mode()(dense_products(*(products if case.backward else products[:3])))
    for call in calls.values():
        call()
    peaks = {name: measuring.peak_memory(call, device) for name, call in calls.items()}
    if cuda_graphs:
        calls = {name: measuring.captured(call) for name, call in calls.items()}
    measuring.warm_up(calls.values(), device)
    turns = [{name: measuring.call_seconds(call, device) for name, call in calls.items()} for _ in range(repeats)]
    wall, cpu = ({name: [turn[name][clock] for turn in turns] for name in calls} for clock in (0, 1))
    return [
        Comparison(
            *(case, name, wall[name], wall[_OURS], cpu[name], cpu[_OURS], peaks[name], peaks[_OURS], cpu[_PRODUCTS])
        )
        for name in forms
    ]


def _call(attention: Attention, tensors: Sequence[torch.Tensor], backward: bool) -> Callable[[], object]:
    """A function that runs `attention` once; the last of the tensors is the gradient of its result."""
    *inputs, grad_output = tensors
    if not backward:
        return torch.inference_mode()(lambda: attention(*inputs))
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    return lambda: torch.autograd.grad(attention(*inputs), inputs, grad_output)


def table(rows: Sequence[Comparison]) -> str:
    """Medians, their ratio, the least and largest ratio of a pair, the same of processor time, the operator's
    processor time in times that of its matrix products, and memory, in aligned columns."""
    header = (
        *(
            "dtype",
            "batch",
            "size",
            "passes",
            "against",
            "its ms",
            "ours ms",
            "speedup",
            "least..most",
            "CPU time",
            "products",
        ),
        *("its MiB", "ours MiB", "share"),
    )
    lines = [header]
    for row in rows:
        times = (1e3 * statistics.median(seconds) for seconds in (row.seconds, row.operator_seconds))
        lines.append(
            (
                *(row.case.dtype, str(row.case.batch_size), f"{row.case.height}x{row.case.width}"),
                *("both" if row.case.backward else "forward", row.form),
                *(f"{milliseconds:.3g}" if milliseconds < 10 else f"{milliseconds:.1f}" for milliseconds in times),
                f"{row.speedup:.2f}x",
                f"{min(row.speedups):.2f}..{max(row.speedups):.2f}",
                f"{row.cpu_speedup:.2f}x",
                f"{row.over_products:.2f}",
                *(f"{size / 2**20:.1f}" for size in (row.bytes, row.operator_bytes)),
                f"{row.memory_share:.0%}",
            )
        )
    return measuring.aligned(lines, left=5)
