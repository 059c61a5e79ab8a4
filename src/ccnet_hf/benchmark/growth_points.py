"""One measurement of how something grows, and the power that several of them follow."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Point:
    """One measurement: a block at a size of the image."""

    block: str
    height: int
    width: int
    seconds: list[float]  # one entry per repeat: processor time on a CPU, by the clock on CUDA
    bytes: int  # peak of what is allocated during the call

    @property
    def pixels(self) -> int:
        return self.height * self.width


def exponent(points: Sequence[Point], value: Callable[[Point], float]) -> float | None:
    """The power of the number of pixels that a value grows with: the slope of the straight line that fits the
    logarithms best; `None` of fewer than two sizes."""
    known = [(math.log(point.pixels), math.log(value(point))) for point in points if value(point) > 0]
    if len({pixels for pixels, _ in known}) < 2:
        return None
    return statistics.linear_regression(*zip(*known, strict=True)).slope


def median_seconds(point: Point) -> float:
    return statistics.median(point.seconds)


def memory(point: Point) -> float:
    return point.bytes
