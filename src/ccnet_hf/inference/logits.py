"""From network input to class logits of its size: the whole input at once, or a sliding window."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ccnet_hf.errors import InputError
from ccnet_hf.inference.runtime import Runtime, as_runtime, class_logits


Size = Sequence[int]
Window = tuple[int, int, int, int]


@torch.no_grad()
def predict_logits(
    model: nn.Module | Runtime,
    pixel_values: torch.Tensor,
    mode: str | None = None,
    crop_size: Size | None = None,
    stride: Size | None = None,
    crop_batch_size: int = 4,
    align_corners: bool | None = None,
) -> torch.Tensor:
    """Class logits at the size of the network input, by mmsegmentation's `whole_inference` and `slide_inference`.

    In mode `"whole"` the model sees the input at once and its logits are resized bilinearly. In mode `"slide"` it sees
    overlapping windows (`window_positions`); the logits of each are resized to the window, summed, and divided by the
    number of windows that cover a pixel. There is no softmax in either.

    Args:
        model: a `CCNetForSemanticSegmentation` in eval mode, of any dtype, on any device, or another runtime.
        pixel_values: (B, 3, H, W) normalised images; moved to the model's device and dtype.
        mode: `"whole"` or `"slide"`; `None` takes the mode of `model.config.inference`.
        crop_size: (height, width) of a window; with mode `"slide"`, `None` takes the configured one.
        stride: (vertical, horizontal) distance of windows, at most `crop_size`; `None` as above.
        crop_batch_size: windows in one forward pass.
        align_corners: of the bilinear resizing; `None` takes `model.config.align_corners`.

    Returns:
        (B, num_labels, H, W) logits, float32 also where the model computes in half precision.

    Raises:
        InputError: no model or runtime of this kind, unknown mode, missing or impossible crop size or stride, wrong
            shape or dtype of `pixel_values`, or NaN in what the model gives.
    """
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.dim() != 4 or 0 in pixel_values.shape:
        given = f"shape {tuple(pixel_values.shape)}" if hasattr(pixel_values, "shape") else repr(pixel_values)
        raise InputError(f"pixel_values must be a tensor (batch, channels, height, width), got {given}")
    runtime = as_runtime(model)
    crop_size, stride = sliding_window(runtime.config, mode, crop_size, stride)
    positive("crop_batch_size", crop_batch_size)
    if align_corners is None:
        align_corners = runtime.config.align_corners
    if crop_size is None:
        return resize(class_logits(runtime, pixel_values), pixel_values.shape[-2:], align_corners)
    return slide_logits(runtime, pixel_values, crop_size, stride, crop_batch_size, align_corners)


def slide_logits(
    runtime: Runtime,
    pixel_values: torch.Tensor,
    crop_size: Size,
    stride: Size,
    crop_batch_size: int,
    align_corners: bool,
) -> torch.Tensor:
    """Mode `"slide"` of `predict_logits`."""
    batch_size, _, height, width = pixel_values.shape
    windows = window_positions(height, width, crop_size, stride)
    crops = [(image, window) for image in range(batch_size) for window in windows]
    logits = None
    for start in range(0, len(crops), crop_batch_size):
        chunk = crops[start : start + crop_batch_size]
        batch = torch.cat([_inside(pixel_values[image : image + 1], window) for image, window in chunk])
        batch_logits = resize(class_logits(runtime, batch), batch.shape[-2:], align_corners)
        if logits is None:
            logits = batch_logits.new_zeros(batch_size, batch_logits.shape[1], height, width)
        for (image, window), crop_logits in zip(chunk, batch_logits, strict=True):
            _inside(logits[image], window).add_(crop_logits)
    counts = logits.new_zeros(height, width)
    for window in windows:
        _inside(counts, window).add_(1)
    return logits.div_(counts)


def window_positions(height: int, width: int, crop_size: Size, stride: Size) -> list[Window]:
    """The windows of sliding inference, row by row, all of one size.

    Per axis there are `max(side - crop + stride - 1, 0) // stride + 1` windows, a stride apart; one that would reach
    over the end is moved back to end there. A crop larger than the input gives one window of the input's size.

    Returns:
        (top, left, bottom, right) per window, bottom and right exclusive.
    """

    def spans(side: int, crop: int, step: int) -> list[tuple[int, int]]:
        ends = (min(i * step + crop, side) for i in range(max(side - crop + step - 1, 0) // step + 1))
        return [(max(end - crop, 0), end) for end in ends]

    return [
        (top, left, bottom, right)
        for top, bottom in spans(height, crop_size[0], stride[0])
        for left, right in spans(width, crop_size[1], stride[1])
    ]


def sliding_window(
    config, mode: str | None, crop_size: Size | None, stride: Size | None
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Checked (crop_size, stride) of mode `"slide"`, (None, None) for mode `"whole"`; what is None comes from the
    model's `config`. Raises InputError as `predict_logits` does."""
    mode = config.inference["mode"] if mode is None else mode
    if mode not in ("whole", "slide"):
        raise InputError(f"mode must be 'whole' or 'slide', got {mode!r}")
    if mode == "whole":
        if crop_size is not None or stride is not None:
            raise InputError(f"crop_size {crop_size} and stride {stride} belong to mode 'slide', the mode is 'whole'")
        return None, None
    crop_size = config.inference.get("crop_size") if crop_size is None else crop_size
    stride = config.inference.get("stride") if stride is None else stride
    if crop_size is None or stride is None:
        raise InputError(f"mode 'slide' needs crop_size and stride, got {crop_size} and {stride}")
    crop_size, stride = _pair("crop_size", crop_size), _pair("stride", stride)
    if stride[0] > crop_size[0] or stride[1] > crop_size[1]:
        raise InputError(f"stride {stride} is larger than crop_size {crop_size}: pixels between would be missed")
    return crop_size, stride


def _pair(name: str, value: Any) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, Sequence | np.ndarray) else ()
    if len(sides) != 2 or not all(_is_integer(side) and side >= 1 for side in sides):
        raise InputError(f"{name} must be two positive numbers, height and width, got {value!r}")
    return int(sides[0]), int(sides[1])


def positive(name: str, value: int) -> int:
    """`value`, or InputError if it is no integer of at least 1."""
    if not _is_integer(value):
        raise InputError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def resize(logits: torch.Tensor, size: Size, align_corners: bool) -> torch.Tensor:
    """Bilinear, in float32 at least: half precision would move the borders between classes."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


def _inside(array: torch.Tensor, window: Window) -> torch.Tensor:
    """View of the part (..., bottom - top, right - left) of an array (..., H, W) that a window covers."""
    top, left, bottom, right = window
    return array[..., top:bottom, left:right]
