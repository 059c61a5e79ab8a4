"""What a training leaves to look at: its curves, and images beside their truth and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import ceil, floor, log10
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.evaluation.report import MEANS
from ccnet_hf.files import atomic_file
from ccnet_hf.inference import Predictor
from ccnet_hf.training.progress import LOG_FILE, read_log
from ccnet_hf.visualization import Color, class_shares, colorize, draw_legend, format_share


CURVES_FILE, PREDICTIONS_FILE = "training_curves.png", "predictions.png"

# title of a panel: {name in the log: name in the image}
_PANELS = {
    "losses": {"loss": "loss", "decode_loss": "decode", "auxiliary_loss": "auxiliary", "category_loss": "category"},
    "scores": {f"eval_{name}": short for name, short in MEANS.items()},
    "learning rate": {"lr": "learning rate"},
    "gamma": {"gamma": "gamma"},
}
_COLORS = ((37, 99, 235), (217, 119, 6), (5, 150, 105), (190, 24, 93))
_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (32, 33, 36), (128, 134, 139), (232, 234, 237)
_SCALE = 2  # drawn larger and shrunk, which smooths the lines
_NUM_IMAGES = 4
_CELL_WIDTH = 440


def save_report(
    output_dir: Path, predictor: Predictor, dataset: SegmentationDataset, palette: Sequence[Color]
) -> None:
    """Write `training_curves.png`, from the training's log, and `predictions.png` into `output_dir`.

    Args:
        output_dir: of the training.
        predictor: of the trained model.
        dataset: the first four of its examples are shown, or of a mapped one four from all over it.
        palette: RGB colour (0..255) per class.
    """
    rows = read_log(output_dir / LOG_FILE)
    if rows:
        _save(draw_curves(rows), output_dir / CURVES_FILE)
    step = 1 if dataset.streamed else max(1, len(dataset) // _NUM_IMAGES)
    examples = list(islice(dataset.examples(0, step), _NUM_IMAGES))
    if examples:
        predictions = [predictor.label_map(image).cpu().numpy() for image, *_ in examples]
        config = predictor.model.config
        class_names = [config.id2label[label] for label in range(config.num_labels)]
        _save(draw_predictions(examples, predictions, palette, class_names), output_dir / PREDICTIONS_FILE)


def _save(image: Image.Image, file: Path) -> None:
    with atomic_file(file) as unfinished:
        image.save(unfinished)


def draw_predictions(
    examples: Sequence[tuple[Image.Image, np.ndarray, str]],
    predictions: Sequence[np.ndarray],
    palette: Sequence[Color],
    class_names: Sequence[str],
) -> Image.Image:
    """Draw one row per example, image, truth and prediction, above a legend of the classes that occur.

    Args:
        examples: (image, label map (H, W), name) each; labels that are no class are black.
        predictions: label map (H, W) each.
        palette: RGB colour (0..255) per class.
        class_names: name per class.
    """
    margin, font = 16, ImageFont.load_default(size=18)
    heights = [round(_CELL_WIDTH * image.height / image.width) for image, *_ in examples]
    entries = []
    shares = np.mean([class_shares(label, len(class_names)) for _, label, _ in examples], axis=0)
    predicted = np.mean([class_shares(label, len(class_names)) for label in predictions], axis=0)
    for index in np.argsort(-shares, kind="stable"):
        if shares[index] + predicted[index] > 0:
            entries.append((tuple(palette[index]), class_names[index], format_share(shares[index])))
    width = 3 * _CELL_WIDTH + 4 * margin
    legend = draw_legend(entries, 18, width=width) if entries else Image.new("RGB", (width, 0))
    head = 40
    canvas = Image.new("RGB", (width, head + sum(heights) + margin * len(heights) + legend.height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(("image", "truth", "prediction")):
        pen.text((margin + column * (_CELL_WIDTH + margin), head / 2), title, font=font, fill=_INK, anchor="lm")
    top = head
    for (image, truth, _), prediction, height in zip(examples, predictions, heights, strict=True):
        size = (_CELL_WIDTH, height)
        cells = [image.convert("RGB").resize(size, Image.Resampling.LANCZOS)]
        cells += [
            colorize(m, palette).resize(size, Image.Resampling.NEAREST).convert("RGB") for m in (truth, prediction)
        ]
        for column, cell in enumerate(cells):
            canvas.paste(cell, (margin + column * (_CELL_WIDTH + margin), top))
        top += height + margin
    canvas.paste(legend, (0, top))
    return canvas


def draw_curves(rows: Sequence[dict[str, float]]) -> Image.Image:
    """Draw losses, scores, learning rate and gamma over the steps, as far as the log has them.

    Args:
        rows: of the log, as `read_log` gives them.
    """
    panels = []
    for title, names in _PANELS.items():
        lines = {
            text: [(row["step"], row[name]) for row in rows if name in row and np.isfinite(row[name])]
            for name, text in names.items()
        }
        if lines := {text: points for text, points in lines.items() if points}:
            panels.append(_panel(title, lines, last_step=rows[-1]["step"]))
    width, height = panels[0].size
    columns = min(2, len(panels))
    canvas = Image.new("RGB", (columns * width, ceil(len(panels) / columns) * height), _PAPER)
    for index, panel in enumerate(panels):
        canvas.paste(panel, (index % columns * width, index // columns * height))
    return canvas.resize((canvas.width // _SCALE, canvas.height // _SCALE), Image.Resampling.LANCZOS)


def _panel(title: str, lines: dict[str, list[tuple[int, float]]], last_step: int) -> Image.Image:
    """One diagram; losses of many steps are drawn pale, with their running means over them."""
    width, height = 640 * _SCALE, 400 * _SCALE
    left, top, right, bottom = 84 * _SCALE, 56 * _SCALE, width - 24 * _SCALE, height - 44 * _SCALE
    small, large = (ImageFont.load_default(size=size * _SCALE) for size in (14, 17))
    values = [value for points in lines.values() for _, value in points]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last_step, bottom - (bottom - top) * (value - low) / (high - low)

    image = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((left, 26 * _SCALE), title, font=large, fill=_INK, anchor="lm")
    for value in ticks:
        y = place(0, value)[1]
        pen.line((left, y, right, y), fill=_GRID, width=_SCALE)
        pen.text((left - 8 * _SCALE, y), f"{value:.6g}", font=small, fill=_FAINT, anchor="rm")
    for step in _ticks(0, last_step):
        if step == int(step) and step <= last_step:
            x = place(step, low)[0]
            pen.text((x, bottom + 16 * _SCALE), f"{int(step)}", font=small, fill=_FAINT, anchor="mm")
    legend_end = right
    for (text, points), color in reversed(list(zip(lines.items(), _COLORS, strict=False))):
        steps, heights = np.array(points, dtype=float).T
        spots = [place(*point) for point in points]
        if title == "losses" and len(points) > 200:
            pale = tuple(round(0.25 * part + 0.75 * 255) for part in color)
            pen.line(spots, fill=pale, width=_SCALE, joint="curve")
            window = len(points) // 50
            means = np.convolve(heights, np.ones(window) / window, mode="valid")
            centres = np.convolve(steps, np.ones(window) / window, mode="valid")
            spots = [place(*point) for point in zip(centres, means, strict=True)]
        pen.line(spots, fill=color, width=2 * _SCALE, joint="curve")
        if len(spots) <= 20:
            for x, y in spots:
                pen.ellipse((x - 3 * _SCALE, y - 3 * _SCALE, x + 3 * _SCALE, y + 3 * _SCALE), fill=color)
        if len(lines) > 1:
            pen.text((legend_end, 26 * _SCALE), text, font=small, fill=_INK, anchor="rm")
            legend_end -= small.getlength(text) + 6 * _SCALE
            pen.line((legend_end - 18 * _SCALE, 26 * _SCALE, legend_end, 26 * _SCALE), fill=color, width=3 * _SCALE)
            legend_end -= 36 * _SCALE
    return image


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers, evenly spaced, that enclose a range."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / 5
    power = 10 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
