# Copyright 2026 The authors of CCNet for Hugging Face. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Images and segmentation maps before the network: how they come in, to which size they are resized, and how, by the
rules of mmsegmentation.

Everything here works on NumPy arrays and on torch tensors alike, so that both image processors give the same pixels.
"""

import os
import threading
from typing import BinaryIO

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, SizeDict


Array = np.ndarray | torch.Tensor

# Those of Pillow's formats that photographs, masks and benchmarks come in, so far as the Pillow at hand has them. Of
# these a file is opened without being decoded, and so measured before it takes memory (an ICO or ICNS is not), and
# none is given to another program (an EPS is, to Ghostscript). A JPEG may be a camera's MPO.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# What turns an image upright, by the orientation that its EXIF block states.
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# Where Pillow keeps what states an orientation, and where `upright` keeps the one that it has acted on.
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_STORED_ORIENTATION = "stored_orientation"
_STRIP_PIXELS = 2**17  # resized at a time, measured
_PILLOW_LIMIT = threading.Lock()  # Pillow's limit holds for the whole process, and is lifted by one thread at a time


def resize_output_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """The keep-ratio rule of mmsegmentation's `Resize`: the largest size of the image's shape whose longer side is
    at most `longest` and whose shorter side is at most `shortest` pixels, rounded per side (at least one pixel).

    Returns:
        `(height, width)` after resizing.

    Raises:
        ValueError: If the image has no pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"An image of {height}x{width} pixels (height x width) cannot be resized.")
    factor = min(longest / max(height, width), shortest / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def rescale_output_size(height: int, width: int, ratio: float) -> tuple[int, int]:
    """The rule of mmsegmentation's `Resize(scale_factor=ratio)`, used by multi-scale inference: both sides are scaled
    and rounded, and the keep-ratio rule is applied to the result. A side can differ by a pixel from plain rounding.

    Returns:
        `(height, width)` after resizing.
    """
    scale = (max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5)))
    return resize_output_size(height, width, longest=max(scale), shortest=min(scale))


def output_size(height: int, width: int, size: dict[str, int] | SizeDict) -> tuple[int, int]:
    """`(height, width)` of an image after resizing by a processor's `size`, which holds either `"height"` and
    `"width"` (taken as they are) or `"shortest_edge"` and `"longest_edge"` ([`resize_output_size`])."""
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    return resize_output_size(height, width, longest=size["longest_edge"], shortest=size["shortest_edge"])


def resize_bilinear(image: Array, height: int, width: int) -> Array:
    """Resizes bilinearly between pixel centres and without antialiasing, as OpenCV's `INTER_LINEAR` does.

    A uint8 image comes out equal to OpenCV's, bit for bit: like OpenCV, it is resized in integers with weights of 11
    bits, first along the rows and then along the columns.

    Args:
        image (`np.ndarray` or `torch.Tensor` of shape `(..., height, width)`): uint8 or floating.
        height (`int`), width (`int`): The new size.

    Returns:
        An array of the same kind and dtype, of shape `(..., height, width)`.

    Raises:
        ValueError: If the image or the new size has no pixels.
    """
    if tuple(image.shape[-2:]) == (height, width):
        return image
    _check_resize(image, height, width)
    left, right, x = _bilinear_taps(image.shape[-1], width)
    top, bottom, y = _bilinear_taps(image.shape[-2], height)
    if image.dtype not in (np.uint8, torch.uint8):
        left, right, x, top, bottom, y = (
            in_kind_of(taps, image) for taps in (left, right, x, top, bottom, y[:, None])
        )
        image = image[..., left] * (1 - x) + image[..., right] * x
        return image[..., top, :] * (1 - y) + image[..., bottom, :] * y

    # OpenCV drops the weight of columns beyond the border, where both taps are the same pixel, but not that of rows.
    x = np.where(left == right, np.float32(0), x)
    columns, rows = (left, right, *_bit_weights(x)), (top, bottom, *_bit_weights(y[:, None]))
    if not isinstance(image, torch.Tensor):
        return _resize_strips(image, columns, rows)
    if image.device.type == "cpu":  # by NumPy, whose arithmetic with integers is faster
        return torch.from_numpy(_resize_strips(image.numpy(), columns, rows))
    return _resize_bytes(image, columns, rows)


def _bit_weights(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the pixels before and behind, in 11 bits."""
    return tuple(np.rint(share * 2048).astype(np.int32) for share in (1 - weight, weight))


def _resize_strips(image: np.ndarray, columns: tuple[np.ndarray, ...], rows: tuple[np.ndarray, ...]) -> np.ndarray:
    """As [`_resize_bytes`], some rows of one channel at a time, which stay in the cache."""
    height, width = len(rows[0]), len(columns[0])
    resized = np.empty((*image.shape[:-2], height, width), np.uint8)
    strip = max(1, _STRIP_PIXELS // width)
    for index in np.ndindex(image.shape[:-2]):
        for start in range(0, height, strip):
            top, bottom, *weights = (values[start : start + strip] for values in rows)
            first = top[0]
            shown = image[index][first : bottom[-1] + 1]
            resized[index][start : start + strip] = _resize_bytes(
                shown, columns, (top - first, bottom - first, *weights)
            )
    return resized


def _resize_bytes(image: Array, columns: tuple[np.ndarray, ...], rows: tuple[np.ndarray, ...]) -> Array:
    """A uint8 image resized in 32-bit integers, by its taps and their weights along both axes."""
    left, right, left_weight, right_weight = (in_kind_of(values, image) for values in columns)
    top, bottom, top_weight, bottom_weight = (in_kind_of(values, image) for values in rows)
    lines = cast(image[..., left], "int32")
    lines *= left_weight
    lines += cast(image[..., right], "int32") * right_weight
    lines >>= 4
    resized, below = lines[..., top, :], lines[..., bottom, :]
    resized *= top_weight
    resized >>= 16
    below *= bottom_weight
    below >>= 16
    resized += below
    resized += 2
    resized >>= 2
    return cast(resized, "uint8")


def resize_nearest(labels: Array, height: int, width: int) -> Array:
    """Resizes label maps of shape `(..., height, width)` as OpenCV's `INTER_NEAREST` does: the pixel `i` of the result
    comes from pixel `floor(i * old size / new size)`. Raises as [`resize_bilinear`]."""
    _check_resize(labels, height, width)
    old_height, old_width = labels.shape[-2:]
    rows = np.minimum(np.floor(np.arange(height) * (1.0 / (height / old_height))).astype(np.int64), old_height - 1)
    columns = np.minimum(np.floor(np.arange(width) * (1.0 / (width / old_width))).astype(np.int64), old_width - 1)
    return labels[..., in_kind_of(rows[:, None], labels), in_kind_of(columns, labels)]


def _check_resize(image: Array, height: int, width: int) -> None:
    if min(*image.shape[-2:], height, width) < 1:
        raise ValueError(
            f"An image of {image.shape[-2]}x{image.shape[-1]} pixels (height x width) cannot be resized to "
            f"{height}x{width}."
        )


def _bilinear_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new_size` positions along an axis of `size` pixels: the pixels before and behind its centre, and
    the weight of the latter, in the precision of OpenCV (positions in double, weights in single)."""
    positions = ((np.arange(new_size) + 0.5) * (1.0 / (new_size / size)) - 0.5).astype(np.float32)
    before = np.floor(positions)
    weight = positions - before
    before = before.astype(np.int64)
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), weight


def in_kind_of(values: np.ndarray, array: Array) -> Array:
    """The values as an array of the kind of `array` and on its device."""
    return torch.from_numpy(values).to(array.device) if isinstance(array, torch.Tensor) else values


def cast(array: Array, dtype: str) -> Array:
    """The array in the dtype of this name."""
    return array.to(getattr(torch, dtype)) if isinstance(array, torch.Tensor) else array.astype(dtype)


def _is_floating(array: Array) -> bool:
    return array.is_floating_point() if isinstance(array, torch.Tensor) else np.issubdtype(array.dtype, np.floating)


def open_image(source: str | os.PathLike | BinaryIO, max_pixels: int | None = None) -> PIL.Image.Image:
    """Decodes an image file of any mode, the whole of it, so that damage anywhere shows, and turns it upright.

    Args:
        source (`str`, `os.PathLike` or a binary file): The file, in one of `FORMATS`.
        max_pixels (`int`, *optional*):
            The largest number of pixels that is decoded, 0 for any. By default Pillow's own limit holds, twice its
            `PIL.Image.MAX_IMAGE_PIXELS`: 178,956,970.

    Raises:
        PIL.UnidentifiedImageError: If it is no image, or in another format.
        PIL.Image.DecompressionBombError: If it has more pixels. A damaged file can raise any other exception.
    """
    try:
        return _decode(source, max_pixels)
    except PIL.Image.DecompressionBombError:
        if max_pixels is None:
            raise
    with _PILLOW_LIMIT:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            if not isinstance(source, (str, os.PathLike)):
                source.seek(0)
            return _decode(source, max_pixels)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _decode(source: str | os.PathLike | BinaryIO, max_pixels: int | None) -> PIL.Image.Image:
    PIL.Image.init()
    with PIL.Image.open(source, formats=[name for name in FORMATS if name in PIL.Image.OPEN]) as image:
        if max_pixels and image.width * image.height > max_pixels:
            raise PIL.Image.DecompressionBombError(
                f"Image size ({image.width * image.height} pixels) exceeds limit of {max_pixels} pixels"
            )
        if image.format == "TIFF":  # which is turned by Pillow while it is loaded, and forgets how it was stored
            image.info[_STORED_ORIENTATION] = _exif_orientation(image)
        return upright(image)


def _exif_orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation of an image's pixels, from 1, upright, to 8; 1 where it has none or none that is valid."""
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block, which raises whatever its bytes lead to; the pixels are none the worse
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image turned as its EXIF orientation says; the very image where there is nothing to turn."""
    image.load()  # Pillow turns a TIFF file upright meanwhile
    orientation = _exif_orientation(image)
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in _ORIENTATION_KEYS:
        turned.info.pop(key, None)
    turned.info[_STORED_ORIENTATION] = orientation
    return turned


def stored_orientation(image: PIL.Image.Image | Array) -> int:
    """The EXIF orientation, 1 to 8, in which an image was stored, [`upright`] by now or not; 1 for an array."""
    if not isinstance(image, PIL.Image.Image):
        return 1
    return image.info.get(_STORED_ORIENTATION) or _exif_orientation(image)


def fit_labels(labels: Array, height: int, width: int, orientation: int, own_orientation: int = 1) -> Array:
    """A label map that belongs to an image's stored pixels, turned as the image was.

    Args:
        labels (`np.ndarray` or `torch.Tensor` of shape `(height, width)`): The label map.
        height (`int`), width (`int`): The size of the upright image.
        orientation (`int`): The image's [`stored_orientation`].
        own_orientation (`int`, *optional*, defaults to 1): The label map's own, by which it is upright by now.

    Returns:
        The turned label map if only that has the size of the image and none turned it before, and the very label map
        otherwise: one that fits as it is belongs to the upright image.
    """
    shape = tuple(labels.shape)
    if orientation < 5 or own_orientation != 1 or shape == (height, width) or shape != (width, height):
        return labels
    axes = {5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]  # to be flipped after rows and columns were exchanged
    return labels.T.flip(axes) if isinstance(labels, torch.Tensor) else np.ascontiguousarray(np.flip(labels.T, axes))


def convert_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as 8-bit RGB, as OpenCV reads it: of 16-bit images the upper byte, without transparency.
    Floating point and 32-bit integers are taken to lie in 0..255, the latter in 16 bits if they do not.

    Raises:
        ValueError: If floating point or 32-bit values lie elsewhere, NaN among them.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        largest = values.max(initial=0)
        if image.mode == "I" and not 0 <= values.min(initial=0) <= largest < 2**16:
            raise ValueError(
                f"An image of 32-bit integers must lie in 0..65535, got values from {values.min()} to {values.max()}."
            )
        values = values if image.mode == "I" and largest < 256 else values >> 8
        image = PIL.Image.fromarray(values.astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 255:  # neither does NaN
            raise ValueError(
                f"A floating point image must lie in 0..255, got values from {values.min()} to {values.max()}."
            )
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparent entries
    return image.convert("RGB")


def image_size(image: PIL.Image.Image | Array) -> tuple[int, int]:
    """`(height, width)` of an upright image or of an array as [`image_to_array`] takes it."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    if image.ndim not in (2, 3):
        raise ValueError(f"An image of shape {tuple(image.shape)} has {image.ndim} axes, expected 2 or 3.")
    if image.ndim == 2:
        return tuple(image.shape)
    return tuple(image.shape[:2]) if _channel_axis(image, None) == 2 else tuple(image.shape[1:])


def image_to_array(
    image: PIL.Image.Image | Array, do_convert_rgb: bool, input_data_format: str | ChannelDimension | None = None
) -> Array:
    """One image as a channels-first array.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            An image of any mode, which is turned upright if its EXIF orientation asks for that, or an array of shape
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)`, floating or with integers
            from 0 to 255.
        do_convert_rgb (`bool`): Whether to make three channels of a grey, four-channel or other image.
        input_data_format (`str`, *optional*): The layout of an array; by default found from its shape.

    Returns:
        An array of shape `(channels, height, width)`, uint8 or float32.

    Raises:
        ValueError: If the shape or the values cannot be an image's: an axis of 0, NaN, infinity, integers elsewhere.
    """
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise ValueError(f"An image of {image.height}x{image.width} pixels (height x width) has no pixels.")
        image = upright(image)
        image = np.array(convert_to_rgb(image) if do_convert_rgb else image)
        input_data_format = ChannelDimension.LAST
    if 0 in image.shape:
        raise ValueError(f"An image of shape {tuple(image.shape)} has no pixels.")
    if image.ndim == 2:
        image = image[None]
    elif _channel_axis(image, input_data_format) == 2:
        image = image.transpose(2, 0, 1) if isinstance(image, np.ndarray) else image.permute(2, 0, 1)
    if do_convert_rgb and image.shape[0] == 1:
        image = image[[0, 0, 0]]
    elif do_convert_rgb and image.shape[0] == 4:
        image = image[:3]
    return _uint8_or_float32(image)


def _channel_axis(image: Array, input_data_format: str | ChannelDimension | None) -> int:
    """The axis of the channels of a three-dimensional array: the one of length 3, else the one of length 1 or 4. Where
    both ends qualify, transformers takes the first, which loses images one pixel high."""
    if input_data_format is not None:
        return 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    for channels in ((3,), (1, 4)):
        for axis in (0, 2):
            if image.shape[axis] in channels:
                return axis
    raise ValueError(
        f"No axis of an image of shape {tuple(image.shape)} holds its channels: expected (height, width, channels) "
        "or (channels, height, width) with 1, 3 or 4 channels. Other images need `input_data_format`."
    )


def _uint8_or_float32(image: Array) -> Array:
    if image.dtype in (np.uint8, torch.uint8):
        return image
    _check_real(image, "An image")
    if _is_floating(image):
        with np.errstate(over="ignore"):  # beyond float32 lies infinity, which is refused
            converted = cast(image, "float32")
        finite = converted.isfinite() if isinstance(converted, torch.Tensor) else np.isfinite(converted)
        if not finite.all():
            place = _first(~finite)
            raise ValueError(
                f"An image must hold finite numbers of float32, got {float(image[place])} at (channel, row, column) "
                f"{place}."
            )
        return converted
    if image.dtype in (np.bool_, torch.bool):  # black and white, as in Pillow's mode "1"
        return cast(image, "uint8") * 255
    image = cast(image, "int64")
    if image.min() < 0 or image.max() > 255:
        raise ValueError(
            f"An image of integers must lie in 0..255, got values from {int(image.min())} to {int(image.max())}. "
            "Pass 16-bit images as `PIL.Image`, or scale them to 8 bits."
        )
    return cast(image, "uint8")


def _check_real(values: Array, what: str) -> None:
    is_tensor = isinstance(values, torch.Tensor)
    if values.is_complex() if is_tensor else values.dtype.kind not in "biuf":
        raise ValueError(f"{what} holds real numbers, got {values.dtype}.")


def _first(mask: Array) -> tuple[int, ...]:
    """The indices of the first true element."""
    return tuple(int(index) for index in (mask.nonzero() if isinstance(mask, torch.Tensor) else np.argwhere(mask))[0])


def segmentation_map_to_array(segmentation_map: PIL.Image.Image | Array) -> Array:
    """One segmentation map as a new int64 array of its shape.

    Args:
        segmentation_map (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            A palette or grey image, turned upright by its own EXIF orientation if it has one, or an array of shape
            `(height, width)`, of integers or of whole floats.

    Raises:
        ValueError: If an image has several channels, or a value is no whole number: a fraction, NaN, infinity.
    """
    if isinstance(segmentation_map, PIL.Image.Image):
        mode, segmentation_map = segmentation_map.mode, np.asarray(upright(segmentation_map))
        if segmentation_map.ndim != 2:
            raise ValueError(f"A segmentation map has one channel, of class ids; got an image of mode {mode}.")
    _check_real(segmentation_map, "A segmentation map")
    if _is_floating(segmentation_map):
        _check_whole(segmentation_map)
    if isinstance(segmentation_map, torch.Tensor):
        return segmentation_map.to(torch.int64, copy=True)
    return segmentation_map.astype(np.int64)


def _check_whole(labels: Array) -> None:
    if isinstance(labels, torch.Tensor) and labels.element_size() < 4:
        labels = labels.float()
    with np.errstate(invalid="ignore", over="ignore"):  # infinity leaves NaN, which differs from 0 as it should
        fractional = (labels % 1 != 0) | (abs(labels) >= 2**53)
    if fractional.any():
        place = _first(fractional)
        raise ValueError(
            f"A segmentation map holds class ids, so whole numbers; got {float(labels[place])} at (row, column) "
            f"{place}."
        )
