"""How time and memory grow, as a picture. Needs matplotlib, of the extra `train`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ccnet_hf.benchmark.growth_points import Point, exponent, median_seconds, memory


_INCHES, _PIXELS_PER_INCH = (12.0, 4.8), 100


def draw_growth(blocks: Mapping[str, Sequence[Point]], time: str) -> Image.Image:
    """Draw time and memory over the pixels of the image, both axes logarithmic, so that a power is a straight line.

    Args:
        blocks: name -> its measurements, by size; at least one.
        time: what kind of time it is.

    Returns:
        RGB image, 1200x480 pixels.
    """
    figure = Figure(_INCHES, dpi=_PIXELS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for ax, title, value, unit in zip(
        axes, (f"{time}, s", "peak memory, MiB"), (median_seconds, memory), (1, 2**20), strict=True
    ):
        for name, points in blocks.items():
            power = exponent(points, value)
            label = name if power is None else f"{name}: pixels to the power of {power:.2f}"
            ax.plot(
                [point.pixels for point in points],
                [value(point) / unit for point in points],
                marker="o",
                markersize=5,
                label=label,
            )
        _finish(ax, title, next(iter(blocks.values())))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _finish(ax: Axes, title: str, points: Sequence[Point]) -> None:
    ax.set_title(title, loc="left")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks([point.pixels for point in points], [f"{point.height}x{point.width}" for point in points])
    ax.minorticks_off()
    ax.tick_params(axis="x", rotation=30)
    ax.set_xlabel("image, pixels")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
