"""Numbers over the steps of a training as people look at them. Needs matplotlib, of the extra `train`."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image


Points = Sequence[tuple[int, float]]  # (step, value) each, in the order of the steps

_PANEL_INCHES, _PIXELS_PER_INCH = (6.4, 4.0), 100
_MANY, _FEW = 200, 20  # points: beyond the first they are smoothed, up to the second each is marked


def draw_curves(panels: Mapping[str, Mapping[str, Points]], smoothed: Collection[str] = ()) -> Image.Image:
    """Draw diagrams of lines over the steps, two in a row.

    Args:
        panels: title of a diagram -> name of a line -> its points; at least one of each.
        smoothed: titles of the diagrams whose lines are drawn pale, with their running means over them, where they
            have many points.

    Returns:
        RGB image, 640x400 pixels for each diagram.
    """
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    width, height = _PANEL_INCHES
    # Not by pyplot, which keeps figures and may look for a display.
    figure = Figure((columns * width, rows * height), dpi=_PIXELS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (title, lines), ax in zip(panels.items(), axes, strict=False):
        _draw_panel(ax, title, lines, is_smoothed=title in smoothed)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(ax: Axes, title: str, lines: Mapping[str, Points], is_smoothed: bool) -> None:
    for index, (name, points) in enumerate(lines.items()):
        steps, values = np.array(points, dtype=float).T
        color = f"C{index}"
        if is_smoothed and len(points) > _MANY:
            ax.plot(steps, values, color=color, alpha=0.25, linewidth=1)
            weights = np.ones(len(points) // 50) / (len(points) // 50)
            steps, values = (np.convolve(numbers, weights, mode="valid") for numbers in (steps, values))
        ax.plot(steps, values, color=color, label=name, marker="o" if len(points) <= _FEW else "", markersize=5)
    ax.set_title(title, loc="left")
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        ax.legend(frameon=False)
