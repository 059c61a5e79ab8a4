"""From pictures to label maps by mmsegmentation's definitions: whole, sliding window, several scales and flips."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ccnet_hf.image_processing_common_ccnet import argmax_of_resized_logits
from ccnet_hf.image_transforms_ccnet import picture_to_array, rescale_output_size


Size = Sequence[int]
Window = tuple[int, int, int, int]


def window_positions(height: int, width: int, crop_size: Size, stride: Size) -> list[Window]:
    """The windows of sliding inference, row by row, all of one size (mmsegmentation's `slide_inference`).

    Per axis there are `max(side - crop + stride - 1, 0) // stride + 1` windows, a stride apart; one that would reach
    over the end is moved back to end there. A crop larger than the image gives one window of the image's size.

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


def predict_logits(
    model: nn.Module,
    pixel_values: torch.Tensor,
    mode: str | None = None,
    crop_size: Size | None = None,
    stride: Size | None = None,
    crop_batch_size: int = 4,
    align_corners: bool | None = None,
) -> torch.Tensor:
    """Class logits at the size of the network input.

    In mode `"whole"` the model sees the input at once and its logits are resized bilinearly. In mode `"slide"` it sees
    overlapping windows (`window_positions`); the logits of each are resized to the window, summed, and divided by the
    number of windows that cover a pixel. There is no softmax in either.

    Args:
        model: a `CCNetForSemanticSegmentation` in eval mode, of any dtype, on any device.
        pixel_values: (B, 3, H, W) normalised pictures; moved to the model's device and dtype.
        mode: `"whole"` or `"slide"`; `None` takes the mode of `model.config.inference`.
        crop_size: (height, width) of a window; with mode `"slide"`, `None` takes the configured one.
        stride: (vertical, horizontal) distance of windows, at most `crop_size`; `None` as above.
        crop_batch_size: windows in one forward pass.
        align_corners: of the bilinear resizing; `None` takes `model.config.align_corners`.

    Returns:
        (B, num_labels, H, W) logits, float32 also where the model computes in half precision.

    Raises:
        ValueError: unknown mode, missing or impossible crop size or stride, wrong shape of `pixel_values`.
    """
    crop_size, stride = _resolve_protocol(model.config, mode, crop_size, stride)
    if align_corners is None:
        align_corners = model.config.align_corners
    logits = _forward(model, pixel_values, crop_size, stride, crop_batch_size, align_corners)
    return _resize(logits, pixel_values.shape[-2:], align_corners)


class Predictor:
    """Segments pictures with a model and its image processor, by the definitions of mmsegmentation's test pipelines.

    With the default `scales=(1.0,)` and no flip this is the plain protocol: the processor resizes the picture by its
    own `size` rule (such as 2048x1024 for Cityscapes), the logits are resized to the network input and from there to
    the picture's size. Any other choice is test-time augmentation: the picture *as loaded* is resized by each ratio,
    without regard to the processor's `size`, and seen as it is and, with `flip`, mirrored too. The logits of a view
    are mirrored back and resized to the picture's size; their softmax is averaged over the views.

    Args:
        model: a `CCNetForSemanticSegmentation` in eval mode.
        image_processor: its `CCNetImageProcessor`.
        mode, crop_size, stride, crop_batch_size: as in `predict_logits`.
        scales: ratios of the views, in order.
        flip: whether every scale is also seen mirrored.
        flip_label_pairs: pairs of labels that mirroring exchanges, such as left and right arm.

    Raises:
        ValueError: no scale, a scale that is not positive, impossible windows or label pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor,
        mode: str | None = None,
        crop_size: Size | None = None,
        stride: Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_batch_size: int = 4,
        flip_label_pairs: Sequence[tuple[int, int]] = (),
    ):
        self.model = model
        self.image_processor = image_processor
        self.crop_size, self.stride = _resolve_protocol(model.config, mode, crop_size, stride)
        self.crop_batch_size = _positive("crop_batch_size", crop_batch_size)
        self.scales = tuple(scales)
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales must be positive numbers, at least one, got {self.scales}")
        self.flip = flip
        self._flipped_labels = _exchange(model.config.num_labels, flip_label_pairs)

    @property
    def is_augmented(self) -> bool:
        """Whether predictions are averaged over augmented views (the plain protocol otherwise)."""
        return self.flip or self.scales != (1.0,)

    def scores(self, image) -> torch.Tensor:
        """Class scores of one picture at its own size.

        Args:
            image: a PIL image, or an array or tensor as the image processor takes it.

        Returns:
            (num_labels, H, W) float32: logits by the plain protocol, mean softmax probabilities with augmentation.
        """
        return self._scores([image])[0]

    def label_map(self, image) -> torch.Tensor:
        """The most likely class of every pixel of one picture: (H, W) int64 at the picture's own size."""
        return self.label_maps([image])[0]

    def label_maps(self, images: Sequence) -> list[torch.Tensor]:
        """As `label_map` for several pictures; those of equal network input size share one forward pass."""
        if self.is_augmented:
            return [scores.argmax(dim=0) for scores in self._scores(images)]
        inputs = self._inputs(images)
        return [
            argmax_of_resized_logits(
                logits,
                self.model.config.align_corners,
                input_size=tuple(pixel_values.shape[-2:]),
                target_size=_image_size(image),
            )
            for image, pixel_values, logits in zip(images, inputs, self._predict(inputs), strict=True)
        ]

    def _scores(self, images: Sequence) -> list[torch.Tensor]:
        sizes = [_image_size(image) for image in images]
        if not self.is_augmented:
            inputs = self._inputs(images)
            return self._to_sizes(self._predict(inputs), inputs, sizes)
        totals: list[torch.Tensor | None] = [None] * len(images)
        flips = (False, True) if self.flip else (False,)
        for scale in self.scales:
            inputs = self._inputs(images, scale)
            for flipped in flips:
                views = [pixel_values.flip(-1) for pixel_values in inputs] if flipped else inputs
                for index, logits in enumerate(self._to_sizes(self._predict(views), views, sizes, flipped)):
                    probabilities = logits.softmax(dim=0)
                    totals[index] = probabilities if totals[index] is None else totals[index].add_(probabilities)
        return [total.div_(len(self.scales) * len(flips)) for total in totals]

    def _inputs(self, images: Sequence, scale: float | None = None) -> list[torch.Tensor]:
        """Network input (3, h, w) per picture, resized by the processor's rule, or by `scale` from the loaded size."""
        inputs = []
        for image in images:
            options = {"do_pad": False}
            if scale is not None:
                height, width = rescale_output_size(*_image_size(image), scale)
                options |= {"do_resize": True, "size": {"height": height, "width": width}}
            inputs.append(self.image_processor(image, return_tensors="pt", **options)["pixel_values"][0])
        return inputs

    def _predict(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits per input: as the network gives them (whole), or at the size of the input (slide)."""
        indices_by_size: dict[torch.Size, list[int]] = {}
        for index, pixel_values in enumerate(inputs):
            indices_by_size.setdefault(pixel_values.shape, []).append(index)
        logits: list[torch.Tensor] = [torch.empty(0)] * len(inputs)
        for indices in indices_by_size.values():
            batch = torch.stack([inputs[index] for index in indices])
            predicted = _forward(
                self.model, batch, self.crop_size, self.stride, self.crop_batch_size, self.model.config.align_corners
            )
            for index, one in zip(indices, predicted, strict=True):
                logits[index] = one
        return logits

    def _to_sizes(
        self,
        logits: list[torch.Tensor],
        inputs: list[torch.Tensor],
        sizes: list[tuple[int, int]],
        flipped: bool = False,
    ) -> list[torch.Tensor]:
        """Logits resized to their network input, mirrored back if that was mirrored, resized to the picture."""
        align_corners = self.model.config.align_corners
        resized = []
        for one, pixel_values, size in zip(logits, inputs, sizes, strict=True):
            one = _resize(one[None], pixel_values.shape[-2:], align_corners)
            if flipped:
                one = one.flip(-1)[:, self._flipped_labels]
            resized.append(_resize(one, size, align_corners)[0])
        return resized


@torch.inference_mode()
def _forward(
    model: nn.Module,
    pixel_values: torch.Tensor,
    crop_size: Size | None,
    stride: Size | None,
    crop_batch_size: int,
    align_corners: bool,
) -> torch.Tensor:
    """Logits at output stride where `crop_size` is None, else those of sliding windows at the input's size."""
    if pixel_values.dim() != 4:
        raise ValueError(
            f"pixel_values must be (batch, channels, height, width), got shape {tuple(pixel_values.shape)}"
        )
    _positive("crop_batch_size", crop_batch_size)
    parameter = next(model.parameters())
    pixel_values = pixel_values.to(parameter.device, parameter.dtype)
    if crop_size is None:
        return model(pixel_values=pixel_values).logits

    batch_size, _, height, width = pixel_values.shape
    windows = window_positions(height, width, crop_size, stride)
    crops = [(index, window) for index in range(batch_size) for window in windows]
    total, counts = None, torch.zeros(height, width, device=pixel_values.device)
    for top, left, bottom, right in windows:
        counts[top:bottom, left:right] += 1
    for start in range(0, len(crops), crop_batch_size):
        chunk = crops[start : start + crop_batch_size]
        batch = torch.cat([pixel_values[i : i + 1, :, t:b, le:r] for i, (t, le, b, r) in chunk])
        logits = _resize(model(pixel_values=batch).logits, batch.shape[-2:], align_corners)
        if total is None:
            total = logits.new_zeros(batch_size, logits.shape[1], height, width)
        for (index, (top, left, bottom, right)), crop_logits in zip(chunk, logits, strict=True):
            total[index, :, top:bottom, left:right] += crop_logits
    return total.div_(counts)


def _resize(logits: torch.Tensor, size: Size, align_corners: bool) -> torch.Tensor:
    """Bilinear, in float32 at least: half precision would move the borders between classes."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


def _resolve_protocol(
    config, mode: str | None, crop_size: Size | None, stride: Size | None
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Checked (crop_size, stride) of sliding inference, (None, None) for whole-image inference."""
    configured = config.inference
    mode = configured["mode"] if mode is None else mode
    if mode not in ("whole", "slide"):
        raise ValueError(f"mode must be 'whole' or 'slide', got {mode!r}")
    if mode == "whole":
        if crop_size is not None or stride is not None:
            raise ValueError(f"crop_size {crop_size} and stride {stride} belong to mode 'slide', the mode is 'whole'")
        return None, None
    crop_size = configured.get("crop_size") if crop_size is None else crop_size
    stride = configured.get("stride") if stride is None else stride
    if crop_size is None or stride is None:
        raise ValueError(f"mode 'slide' needs crop_size and stride, got {crop_size} and {stride}")
    crop_size, stride = tuple(crop_size), tuple(stride)
    if len(crop_size) != 2 or len(stride) != 2 or min(*crop_size, *stride) < 1:
        raise ValueError(f"crop_size and stride must be two positive numbers each, got {crop_size} and {stride}")
    if stride[0] > crop_size[0] or stride[1] > crop_size[1]:
        raise ValueError(
            f"stride {stride} is larger than crop_size {crop_size}: pixels between windows would be missed"
        )
    return crop_size, stride


def _exchange(num_labels: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For every label the one that mirroring turns it into."""
    exchanged = list(range(num_labels))
    for first, second in pairs:
        if not (0 <= first < num_labels and 0 <= second < num_labels):
            raise ValueError(f"flip_label_pairs has ({first}, {second}), labels are 0..{num_labels - 1}")
        if exchanged[first] != first or exchanged[second] != second:
            raise ValueError(f"flip_label_pairs names label {first} or {second} twice: {tuple(pairs)}")
        exchanged[first], exchanged[second] = second, first
    return exchanged


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _image_size(image) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    return tuple(picture_to_array(image, do_convert_rgb=False).shape[-2:])
