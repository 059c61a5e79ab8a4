"""Images whose EXIF orientation says that their stored pixels are to be turned."""

import io

import numpy as np
from PIL import Image


def turn(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels (H, W) or (H, W, 3) stored where those of `upright` are meant, by the table of the EXIF standard."""
    axes = (1, 0, *range(2, upright.ndim))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(axes),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(axes),
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def encode_turned(upright: np.ndarray, orientation: int, suffix: str = "png") -> bytes:
    """A file that shows `upright` to whoever heeds its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    kind = {"png": "PNG", "tif": "TIFF", "webp": "WEBP"}[suffix]
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(turn(upright, orientation)).save(file, kind, exif=exif, **options)
    return file.getvalue()
