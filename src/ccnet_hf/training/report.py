"""What a training leaves to look at: its curves, and images beside their truth and what the model makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import BaseImageProcessor, PreTrainedModel

from ccnet_hf.data.clips import ClipDataset
from ccnet_hf.data.loading import SegmentationDataset
from ccnet_hf.evaluation.report import MEANS
from ccnet_hf.files import atomic_file
from ccnet_hf.inference import Predictor
from ccnet_hf.inference.video import CCNetVideoSession
from ccnet_hf.models.video_processing_ccnet import CCNetVideoProcessor
from ccnet_hf.training.progress import LOG_FILE, read_log
from ccnet_hf.visualization import Color, class_shares, colorize, complete_palette, draw_legend, format_share
from ccnet_hf.visualization.curves import Points, draw_curves
from ccnet_hf.visualization.segmentation import INK, PAPER


CURVES_FILE, PREDICTIONS_FILE = "training_curves.png", "predictions.png"

# title of a panel: (which names of the log are in it, what it calls one of them)
_PANELS = {
    "losses": (re.compile(r"(.+_)?loss"), lambda name: name.removesuffix("_loss")),
    "scores": (re.compile(r"eval_.+"), lambda name: MEANS.get(name[5:], name[5:].replace("_", " "))),
    "learning rate": (re.compile(r"lr"), lambda name: "learning rate"),
    "gamma": (re.compile(r"gamma(_\d+)?"), lambda name: name.replace("_", " ")),
}
_NUM_IMAGES = 4
_CELL_WIDTH = 440


def save_report(output_dir: Path, draw_examples: Callable[[], Image.Image | None]) -> None:
    """Write `training_curves.png`, from the training's log, and `predictions.png` into `output_dir`.

    Args:
        output_dir: of the training.
        draw_examples: what draws examples beside the predictions of the trained model, if there are any.
    """
    if panels := training_curves(read_log(output_dir / LOG_FILE)):
        _save(draw_curves(panels, smoothed=("losses",)), output_dir / CURVES_FILE)
    if (examples := draw_examples()) is not None:
        _save(examples, output_dir / PREDICTIONS_FILE)


def _save(image: Image.Image, file: Path) -> None:
    with atomic_file(file) as unfinished:
        image.save(unfinished)


def draw_label_maps(
    model: PreTrainedModel, image_processor: BaseImageProcessor, dataset: SegmentationDataset
) -> Image.Image | None:
    """Draw examples of a dataset beside the label maps that a model gives them.

    Args:
        model: in eval mode.
        image_processor: of the model.
        dataset: its first four examples are shown, or of a mapped one four from all over it; `None` without any.
    """
    step = 1 if dataset.streamed else max(1, len(dataset) // _NUM_IMAGES)
    examples = list(islice(dataset.examples(0, step), _NUM_IMAGES))
    if not examples:
        return None
    predictor, config = Predictor(model, image_processor), model.config
    predictions = [predictor.label_map(image).cpu().numpy() for image, *_ in examples]
    palette = complete_palette(image_processor.palette, config.num_labels)
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    return draw_predictions(examples, predictions, palette, class_names)


def draw_clips(
    model: PreTrainedModel, video_processor: CCNetVideoProcessor, dataset: ClipDataset
) -> Image.Image | None:
    """Draw frames from all over a dataset beside the label maps that a model gives them, as the last ones of clips."""
    step = max(1, len(dataset) // _NUM_IMAGES)
    indices = list(islice(range(0, len(dataset), step), _NUM_IMAGES))
    if not indices:
        return None
    session, config = CCNetVideoSession(model, video_processor), model.config
    examples, predictions = [], []
    for index in indices:
        session.reset()
        for frame in dict.fromkeys(dataset.clip(index)):
            image, label, name, _ = dataset.frame(frame)
            label_map = session.step(image)
        examples.append((image, label, name))
        predictions.append(label_map.cpu().numpy())
    palette = complete_palette(video_processor.palette, config.num_labels)
    class_names = [config.id2label[label] for label in range(config.num_labels)]
    return draw_predictions(examples, predictions, palette, class_names)


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
    canvas = Image.new("RGB", (width, head + sum(heights) + margin * len(heights) + legend.height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(("image", "truth", "prediction")):
        pen.text((margin + column * (_CELL_WIDTH + margin), head / 2), title, font=font, fill=INK, anchor="lm")
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


def training_curves(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, Points]]:
    """The finite numbers of a log as curves: title of a diagram -> name of a line -> its points, where there are any.

    Args:
        rows: of the log, as `read_log` gives them.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = {}
    for title, (is_in_it, text_of) in _PANELS.items():
        lines = {
            text_of(name): [(row["step"], row[name]) for row in rows if name in row and np.isfinite(row[name])]
            for name in names
            if is_in_it.fullmatch(name)
        }
        if lines := {text: points for text, points in lines.items() if points}:
            panels[title] = lines
    return panels
