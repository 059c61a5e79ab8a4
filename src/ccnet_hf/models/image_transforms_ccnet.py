"""Images and segmentation maps before the network: how they come in, to which size they are resized, and how, by the
rules of mmsegmentation.

Everything here works on NumPy arrays and on torch tensors alike, so that both image processors give the same pixels.
"""

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, SizeDict


Array = np.ndarray | torch.Tensor


def resize_output_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """The keep-ratio rule of mmsegmentation's `Resize`: the largest size of the image's shape whose longer side is
    at most `longest` and whose shorter side is at most `shortest` pixels, rounded per side (at least one pixel).

    Returns:
        `(height, width)` after resizing.
    """
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
    """
    if tuple(image.shape[-2:]) == (height, width):
        return image
    left, right, x = _bilinear_taps(image.shape[-1], width)
    top, bottom, y = _bilinear_taps(image.shape[-2], height)
    if image.dtype not in (np.uint8, torch.uint8):
        left, right, x, top, bottom, y = (_like(taps, image) for taps in (left, right, x, top, bottom, y[:, None]))
        image = image[..., left] * (1 - x) + image[..., right] * x
        return image[..., top, :] * (1 - y) + image[..., bottom, :] * y

    # OpenCV drops the weight of columns beyond the border, where both taps are the same pixel, but not that of rows.
    x = np.where(left == right, np.float32(0), x)
    weights = (1 - x, x, 1 - y[:, None], y[:, None])
    weights = (np.rint(weight * 2048).astype(np.int32) for weight in weights)
    left, right, top, bottom, *weights = (_like(taps, image) for taps in (left, right, top, bottom, *weights))
    left_weight, right_weight, top_weight, bottom_weight = weights
    lines = _cast(image[..., left], "int32") * left_weight + _cast(image[..., right], "int32") * right_weight >> 4
    image = (lines[..., top, :] * top_weight >> 16) + (lines[..., bottom, :] * bottom_weight >> 16)
    return _cast((image + 2) >> 2, "uint8")


def resize_nearest(labels: Array, height: int, width: int) -> Array:
    """Resizes label maps of shape `(..., height, width)` as OpenCV's `INTER_NEAREST` does: the pixel `i` of the result
    comes from pixel `floor(i * old size / new size)`."""
    old_height, old_width = labels.shape[-2:]
    rows = np.minimum(np.floor(np.arange(height) * (1.0 / (height / old_height))).astype(np.int64), old_height - 1)
    columns = np.minimum(np.floor(np.arange(width) * (1.0 / (width / old_width))).astype(np.int64), old_width - 1)
    return labels[..., _like(rows[:, None], labels), _like(columns, labels)]


def _bilinear_taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new_size` positions along an axis of `size` pixels: the pixels before and behind its centre, and
    the weight of the latter, in the precision of OpenCV (positions in double, weights in single)."""
    positions = ((np.arange(new_size) + 0.5) * (1.0 / (new_size / size)) - 0.5).astype(np.float32)
    before = np.floor(positions)
    weight = positions - before
    before = before.astype(np.int64)
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), weight


def _like(values: np.ndarray, array: Array) -> Array:
    return torch.from_numpy(values).to(array.device) if isinstance(array, torch.Tensor) else values


def _cast(array: Array, dtype: str) -> Array:
    return array.to(getattr(torch, dtype)) if isinstance(array, torch.Tensor) else array.astype(dtype)


def _is_floating(array: Array) -> bool:
    return array.is_floating_point() if isinstance(array, torch.Tensor) else np.issubdtype(array.dtype, np.floating)


def convert_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as 8-bit RGB, as OpenCV reads it: of 16-bit images the upper byte, without transparency.
    Floating point and 32-bit integers are taken to lie in 0..255, the latter in 16 bits if they do not."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        values = values if image.mode == "I" and values.max(initial=0) < 256 else values >> 8
        image = PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about palettes with transparent entries
    return image.convert("RGB")


def image_to_array(
    image: PIL.Image.Image | Array, do_convert_rgb: bool, input_data_format: str | ChannelDimension | None = None
) -> Array:
    """One image as a channels-first array.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            An image of any mode, or an array of shape `(height, width)`, `(height, width, channels)` or `(channels,
            height, width)`, floating or with integers from 0 to 255.
        do_convert_rgb (`bool`): Whether to make three channels of a grey, four-channel or other image.
        input_data_format (`str`, *optional*): The layout of an array; by default found from its shape.

    Returns:
        An array of shape `(channels, height, width)`, uint8 or float32.

    Raises:
        ValueError: If the shape or the values cannot be an image's.
    """
    if isinstance(image, PIL.Image.Image):
        image = np.array(convert_to_rgb(image) if do_convert_rgb else image)
        input_data_format = ChannelDimension.LAST
    if image.ndim == 2:
        image = image[None]
    elif _channel_axis(image, input_data_format) == 2:
        image = image.transpose(2, 0, 1) if isinstance(image, np.ndarray) else image.permute(2, 0, 1)
    if 0 in image.shape:
        raise ValueError(f"An image of shape {tuple(image.shape)} (channels, height, width) has no pixels.")
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
    if _is_floating(image):
        return _cast(image, "float32")
    image = _cast(image, "int64")
    if image.min() < 0 or image.max() > 255:
        raise ValueError(
            f"An image of integers must lie in 0..255, got values from {int(image.min())} to {int(image.max())}. "
            "Pass 16-bit images as `PIL.Image`, or scale them to 8 bits."
        )
    return _cast(image, "uint8")


def segmentation_map_to_array(segmentation_map: PIL.Image.Image | Array) -> Array:
    """One segmentation map, a palette or grey image or an integer array of shape `(height, width)`, as a new int64
    array of that shape."""
    if isinstance(segmentation_map, PIL.Image.Image):
        mode, segmentation_map = segmentation_map.mode, np.array(segmentation_map)
        if segmentation_map.ndim != 2:
            raise ValueError(f"A segmentation map has one channel, of class ids; got an image of mode {mode}.")
    is_tensor = isinstance(segmentation_map, torch.Tensor)
    if _is_floating(segmentation_map):
        raise ValueError(f"A segmentation map holds class ids, so integers; got {segmentation_map.dtype}.")
    return segmentation_map.to(torch.int64, copy=True) if is_tensor else segmentation_map.astype(np.int64)
