"""Overlays of video files: as long as they like, in the memory of a few frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ccnet_hf.errors import InputError
from ccnet_hf.files import atomic_file
from ccnet_hf.inference.loading import load_any_checkpoint
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.predictor_arguments import PredictorArguments
from ccnet_hf.inference.video import CCNetVideoSession, VideoWriter, read_frames, video_info
from ccnet_hf.models.modeling_ccnet_video import CCNetForVideoSegmentation
from ccnet_hf.visualization import Color, blend


_ENOUGH_ROUNDS = 3  # until every pixel of a clip reaches every other


def load_segmenter(arguments: PredictorArguments, num_frames: int | None) -> Predictor | CCNetVideoSession:
    """A predictor of the checkpoint that `arguments` name, or of a video checkpoint its session.

    Raises:
        InputError: what `load_checkpoint`, `Predictor` and `CCNetVideoSession` refuse, and options that a video
            checkpoint, or an image checkpoint, has nothing of.
    """
    model, processor = load_any_checkpoint(arguments.model_name_or_path, arguments.dtype, arguments.device)
    if not isinstance(model, CCNetForVideoSegmentation):
        if num_frames is not None:
            raise InputError("--num_frames is for video checkpoints; this one sees every frame for itself")
        return arguments.make_predictor(model, processor)
    if arguments.flip or list(arguments.scales) != [1.0] or arguments.mode == "slide" or arguments.crop_size:
        raise InputError("a video checkpoint sees whole frames, as they are: no --scales, --flip or --mode slide")
    session = CCNetVideoSession(model, processor, num_frames)
    recurrence = model.config.recurrence
    if 0 < recurrence < _ENOUGH_ROUNDS and session.num_frames > 1:
        print(
            f"the checkpoint has {recurrence} rounds of attention: not every pixel reaches every other of a clip, "
            f"which takes {_ENOUGH_ROUNDS}"
        )
    return session


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
