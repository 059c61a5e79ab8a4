"""`benchmark.py data`: how many training examples a worker makes in a second."""

import math
from dataclasses import dataclass, field

from ccnet_hf.benchmark import measuring
from ccnet_hf.benchmark.images import SMALLEST_SIZE
from ccnet_hf.limits import MAX_PIXELS, check_range
from ccnet_hf.recipes import get_recipe


@dataclass
class DataArguments:
    variant: str = field(default="ccnet-r50-cityscapes", metadata={"help": "recipe whose augmentation is measured"})
    size: str = field(default="1024x2048", metadata={"metavar": "HxW", "help": "height and width of the images"})
    num_examples: int = field(default=64, metadata={"help": "examples to take the mean of"})
    num_workers: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "processes of the loader, one number after the other"}
    )
    json: str | None = field(default=None, metadata={"metavar": "FILE", "help": "write all figures there as well"})


def benchmark_data(arguments: DataArguments) -> None:
    """Measure the data loader alone, on synthetic images, and name its slowest stage."""
    # Here, for the other measurements need no `datasets`.
    from ccnet_hf.benchmark.throughput import measure_loading

    measuring.check_results(arguments.json)
    measuring.check_counts(num_examples=arguments.num_examples)
    for workers in arguments.num_workers:
        measuring.check_counts(num_workers=workers)
    size = measuring.parse_size(arguments.size, "size")
    for side, name, least in zip(size, ("height", "width"), SMALLEST_SIZE, strict=True):
        check_range(f"the {name} of --size", side, least, MAX_PIXELS)
    check_range("the pixels of --size", math.prod(size), 1, MAX_PIXELS)
    environment = measuring.environment(measuring.find_device("cpu"))
    measuring.print_environment(environment)
    measured = measure_loading(get_recipe(arguments.variant), size, arguments.num_examples, arguments.num_workers)
    print(f"{measured['variant']}: {measured['images_per_cpu_second']:.1f} images per processor second of a worker")
    for workers, rate in measured["images_per_second"].items():
        print(f"{workers} worker{'s' if workers > 1 else ''}: {rate:.1f} images/s by the clock")
    lines = [("stage", "ms", "share")]
    total = sum(measured["stages"].values())
    for stage, seconds in sorted(measured["stages"].items(), key=lambda item: -item[1]):
        lines.append((stage, f"{1e3 * seconds:.1f}", f"{seconds / total:.0%}"))
    print(measuring.aligned(lines, left=1))
    measuring.write_results(arguments.json, {"environment": environment, **measured})
