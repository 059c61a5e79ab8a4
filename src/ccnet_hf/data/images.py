"""The one reader of images and label maps: upright, decoded as a whole, checked, and refused in one sentence."""

import io
import os
import warnings
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ccnet_hf.errors import InputError, describe
from ccnet_hf.models import image_transforms_ccnet as transforms


# What is segmented: an image of Pillow's, an array or tensor as the image processors take it, or an image file.
InputImage = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike

_NO_IMAGE = f"it is not an image in {', '.join(transforms.FORMATS[:-1])} or {transforms.FORMATS[-1]}"

# How images above the limit of pixels are read: by commands, and by those who give an image's path in Python.
_OPTION = "--max_image_pixels allows larger images, 0 any"
_ARGUMENT = "ccnet_hf.data.images.read_image(path, max_image_pixels) gives larger images, 0 any"


class CorruptExample(InputError):
    """An image or label map that is missing, cannot be decoded, is too large, or does not have the other's size."""


def check_max_pixels(max_image_pixels: int | None) -> None:
    """Raise `InputError` for a limit of pixels that is no number of at least 0; 0 stands for none, `None` for
    Pillow's."""
    is_number = isinstance(max_image_pixels, Real) and not isinstance(max_image_pixels, bool)
    if max_image_pixels is not None and not (is_number and max_image_pixels >= 0):
        raise InputError(f"max_image_pixels must be a number of pixels, or 0 for no limit, got {max_image_pixels!r}")


def open_image(
    source: str | os.PathLike | bytes, max_image_pixels: int | None = None, advice: str = _OPTION
) -> PIL.Image.Image:
    """Decode an image of any mode and turn it upright as its EXIF orientation says.

    Args:
        source: a file, or its bytes.
        max_image_pixels: the largest number of pixels that is decoded, 0 for any; by default Pillow's 178,956,970.
        advice: a clause on how larger images are read.

    Raises:
        CorruptExample: it is missing, damaged, no image of a known format, or too large; the message says which, and
            does not name it.
    """
    try:
        return transforms.open_image(io.BytesIO(source) if isinstance(source, bytes) else source, max_image_pixels)
    except PIL.Image.DecompressionBombError as error:
        reason = str(error).rstrip(".")
        raise CorruptExample(f"cannot be read ({reason}); {advice}") from error
    except Exception as error:  # Pillow's decoders meet broken files with a dozen kinds of exception
        reason = _NO_IMAGE if isinstance(error, PIL.UnidentifiedImageError) else describe(error)
        raise CorruptExample(f"cannot be read ({reason})") from error


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as upright 8-bit RGB.

    Raises:
        InputError: for modes whose range is not known (floating point, 32-bit integers above 65535).
    """
    if image.mode == "F":
        raise InputError("floating point pixels have no known range; save the image with 8 or 16 bits per channel")
    try:
        return transforms.convert_to_rgb(transforms.upright(image))
    except ValueError as error:
        raise InputError(str(error)) from error


def read_image(path: str | os.PathLike, max_image_pixels: int | None = None, advice: str = _OPTION) -> PIL.Image.Image:
    """Read an image of any kind (palette, grey, 16-bit, RGBA, CMYK, rotated by EXIF) as upright 8-bit RGB.

    Args:
        path: of the file.
        max_image_pixels, advice: as in `open_image`.

    Raises:
        InputError: as `open_image` and `to_rgb`, and the message names the file; or `max_image_pixels` is no number of
            pixels.
    """
    check_max_pixels(max_image_pixels)
    if not Path(path).exists():
        raise CorruptExample(f"no such image: {path}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large images below the limit and odd metadata are no concern here
        try:
            return to_rgb(open_image(path, max_image_pixels, advice))
        except InputError as error:
            raise CorruptExample(f"{path}: {error}") from error


def upright_image(image: InputImage) -> PIL.Image.Image | np.ndarray | torch.Tensor:
    """An image as the results of it lie: of a file what `read_image` gives, Pillow's turned upright as its EXIF
    orientation says, arrays and tensors as they are.

    Raises:
        InputError: it is none of these; and as `read_image`.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, advice=_ARGUMENT)
    if isinstance(image, PIL.Image.Image):
        return transforms.upright(image)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise InputError(
            f"`image` must be a PIL image, an array, a tensor or the path of a file, got {type(image).__name__}"
        )
    return image


def label_ids(image: PIL.Image.Image) -> np.ndarray:
    """The class ids of a label map of one channel, (H, W) int64, upright by its own EXIF orientation.

    Raises:
        InputError: it has colours, or values that are not whole: fractions, NaN; the message does not name it.
    """
    if len(image.getbands()) != 1:
        raise InputError(f"a label map has one channel of ids, this one has mode {image.mode}")
    try:
        return transforms.segmentation_map_to_array(image)
    except ValueError as error:
        raise InputError(str(error)) from error


def turned_note(names: Sequence[str]) -> str:
    """What is said, once, about examples whose label maps `fit_labels` has turned."""
    shown, more = ", ".join(names[:3]), len(names) - 3
    return (
        "label maps that fit only the stored pixels of an image are turned with it as its EXIF orientation says: "
        + shown
        + (f" and {more:,} more" if more > 0 else "")
    )
