"""Overlays of video files: as long as they like, in the memory of a few frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ccnet_hf.files import atomic_file
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.video import CCNetVideoSession, VideoWriter, read_frames, video_info
from ccnet_hf.visualization import Color, blend


_ENOUGH_ROUNDS = 3  # until every pixel of a clip reaches every other


def rounds_note(segmenter: Predictor | CCNetVideoSession) -> str | None:
    """One line on a video checkpoint whose attention has too few rounds to reach all of a clip; `None` otherwise."""
    if not isinstance(segmenter, CCNetVideoSession) or segmenter.num_frames == 1:
        return None
    recurrence = segmenter.config.recurrence
    if not 0 < recurrence < _ENOUGH_ROUNDS:
        return None
    return (
        f"the checkpoint has {recurrence} rounds of attention: not every pixel reaches every other of a clip, which "
        f"takes {_ENOUGH_ROUNDS}"
    )


def segment_video(
    segmenter: Predictor | CCNetVideoSession,
    path: Path,
    output: Path,
    palette: list[Color],
    seen: Callable[[np.ndarray], None],
) -> int:
    """Write a video tinted by its classes.

    Args:
        segmenter: of every frame.
        path: the video file.
        output: the MP4 file to write; it appears complete or not at all.
        palette: RGB colour per class.
        seen: called with the label map (H, W) of every frame.

    Returns:
        The number of frames.

    Raises:
        InputError: the file is no video, damaged, or without a frame.
        ModuleNotFoundError: av is not installed.
    """
    rate, total = video_info(path)
    step = segmenter.label_map
    if isinstance(segmenter, CCNetVideoSession):
        segmenter.reset()
        step = segmenter.step
    number = 0
    with atomic_file(output) as unfinished, VideoWriter(unfinished, rate) as writer:
        frame: Image.Image
        for frame in tqdm(read_frames(path), desc=path.name, unit="frame", total=total, disable=None):
            label_map = step(frame).cpu().numpy()
            seen(label_map)
            writer.write(blend(frame, label_map, palette))
            number += 1
    return number
