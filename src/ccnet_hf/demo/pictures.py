"""What the page does with a picture and keeps of it; nothing here knows of the page itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ccnet_hf.data.images import read_image
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.inference.attend import draw_views
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.inference.segment_video import segment_video
from ccnet_hf.inference.video import CCNetVideoSession, video_info
from ccnet_hf.visualization import Color, blend, class_shares, colorize, complete_palette


LONGEST_SIDE = 2048  # pixels of what is shown and kept of a larger picture
_ATTENTION_SIDE = 640  # pixels of a view of the attention, of which there are seven


@dataclass(frozen=True)
class ClassEntry:
    """A class that occurs in a picture: its number, name and RGB colour, and the fraction of the pixels it has."""

    label: int
    name: str
    color: Color
    share: float


@dataclass(frozen=True)
class SegmentedPicture:
    """What is kept of a picture while its user looks at it.

    Attributes:
        image: the upright picture, reduced where its longer side has more than `LONGEST_SIDE` pixels.
        label_map: (h, w) of the size of `image`, the class of every pixel.
        classes: those that occur, most pixels first.
        size: (height, width) of the whole picture.
        seconds: that the checkpoint took, from the picture to the label map.
    """

    image: Image.Image
    label_map: np.ndarray
    classes: tuple[ClassEntry, ...]
    size: tuple[int, int]
    seconds: float

    def overlay(self, labels: Sequence[int], alpha: float) -> Image.Image:
        """The picture tinted by the classes of these numbers; the others leave it as it is.

        Args:
            labels: of `classes`.
            alpha: strength of the colour, 0 to 1.
        """
        palette = [(0, 0, 0)] * (1 + max((entry.label for entry in self.classes), default=0))
        for entry in self.classes:
            palette[entry.label] = entry.color
        untinted = len(palette)
        return blend(self.image, np.where(np.isin(self.label_map, labels), self.label_map, untinted), palette, alpha)


def read_picture(path: str, max_image_pixels: int) -> Image.Image:
    """An uploaded picture as upright 8-bit RGB.

    Raises:
        InputError: it is missing, damaged, no picture, or has more pixels; the message names it without its folder.
    """
    name = Path(path).name
    try:
        return read_image(path, max_image_pixels)
    except InputError as error:
        if isinstance(getattr(error.__cause__, "__cause__", None), Image.DecompressionBombError):
            raise InputError(f"{name} has more than {max_image_pixels / 1e6:g} megapixels") from error
        raise InputError(str(error).replace(path, name)) from error


def segment_picture(
    predictor: Predictor | CCNetVideoSession, image: Image.Image
) -> tuple[SegmentedPicture, Image.Image]:
    """Segment a picture.

    Args:
        predictor: of the checkpoint.
        image: upright RGB.

    Returns:
        What is kept of it, and the whole label map as a palette image (pixel value = class).

    Raises:
        InputError: the picture needs more memory than there is, or the checkpoint has more than 256 classes.
    """
    with enough_memory(f"a picture of {image.width}x{image.height} pixels"):
        start = time.perf_counter()
        label_map = predictor.label_map(image).cpu().numpy()
        seconds = time.perf_counter() - start
    palette = _palette(predictor)
    labels = colorize(label_map, palette)
    shown = image.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    kept = SegmentedPicture(
        image=shown,
        label_map=np.asarray(labels.resize(shown.size, Image.Resampling.NEAREST)),
        classes=_classes(predictor, palette, class_shares(label_map, predictor.config.num_labels)),
        size=label_map.shape,
        seconds=seconds,
    )
    return kept, labels


def attend_to_picture(
    predictor: Predictor, image: Image.Image, point: tuple[int, int]
) -> tuple[dict[str, Image.Image], dict[str, Image.Image], list[float]]:
    """What a pixel attends to.

    Args:
        predictor: of a PyTorch model.
        image: upright RGB.
        point: (x, y) of the pixel.

    Returns:
        The two rows of views of `draw_views`, and gamma of every round.

    Raises:
        InputError: the checkpoint has no attention that can be looked at, or the picture needs more memory.
    """
    if not isinstance(predictor, Predictor):
        raise InputError("a video checkpoint attends to a whole clip, which this view does not show")
    with enough_memory(f"the attention of a picture of {image.width}x{image.height} pixels"):
        attention = predictor.attention(image, point)
        shown = image.copy()
        shown.thumbnail((_ATTENTION_SIDE, _ATTENTION_SIDE), Image.Resampling.LANCZOS)
        return *draw_views(shown, point, attention), attention.gammas


def segment_clip(
    segmenter: Predictor | CCNetVideoSession,
    path: str,
    output: Path,
    max_frames: int,
    progress: Callable[[int, int | None], None],
) -> tuple[int, float, tuple[ClassEntry, ...]]:
    """Write a video tinted by its classes.

    Args:
        segmenter: of every frame; no one else's while this runs.
        path: the video file.
        output: the MP4 file to write.
        max_frames: that it may have.
        progress: called after every frame with the number of frames so far and of all, `None` where it is not known.

    Returns:
        How many frames there are, how many seconds they took, and their classes.

    Raises:
        InputError: the file is no video, damaged, or too long; the message names it without its folder.
        ModuleNotFoundError: av is not installed.
    """
    num_labels, palette = segmenter.config.num_labels, _palette(segmenter)
    weights, number = np.zeros(num_labels), 0

    def too_long() -> InputError:
        return InputError(f"{Path(path).name} has more than {max_frames} frames; a shorter part can be segmented")

    try:
        _, total = video_info(Path(path))
        if total is not None and total > max_frames:
            raise too_long()

        def seen(label_map: np.ndarray) -> None:
            nonlocal weights, number
            number += 1
            if number > max_frames:  # which the file did not say
                raise too_long()
            weights += class_shares(label_map, num_labels)
            progress(number, total)

        start = time.perf_counter()
        with enough_memory(Path(path).name):
            segment_video(segmenter, Path(path), output, palette, seen)
        return number, time.perf_counter() - start, _classes(segmenter, palette, weights / number)
    except InputError as error:
        raise InputError(str(error).replace(path, Path(path).name)) from error


def _palette(predictor: Predictor | CCNetVideoSession) -> list[Color]:
    return complete_palette(predictor.image_processor.palette, predictor.config.num_labels)


def _classes(
    predictor: Predictor | CCNetVideoSession, palette: Sequence[Color], shares: np.ndarray
) -> tuple[ClassEntry, ...]:
    present = [label for label in np.argsort(-shares, kind="stable").tolist() if shares[label] > 0]
    names = predictor.config.id2label
    return tuple(ClassEntry(label, names[label], tuple(palette[label]), float(shares[label])) for label in present)
