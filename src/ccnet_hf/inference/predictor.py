"""From images to label maps by the definitions of mmsegmentation's test pipelines, augmentation included."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BaseImageProcessor

from ccnet_hf.data import benchmarks
from ccnet_hf.data.images import InputImage, upright_image
from ccnet_hf.errors import InputError
from ccnet_hf.inference.attention import PixelAttention, attend
from ccnet_hf.inference.logits import Size, positive, resize, slide_logits, sliding_window
from ccnet_hf.inference.runtime import Runtime, as_runtime, class_logits
from ccnet_hf.limits import MAX_PIXELS
from ccnet_hf.models.configuration_ccnet import AVERAGES
from ccnet_hf.models.image_transforms_ccnet import image_size, output_size, rescale_output_size
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits, resize_logits


class Predictor:
    """Segments images with a model and its image processor.

    With the default `scales=(1.0,)` and no flip this is the plain protocol: the processor resizes the image by its
    own `size` rule (such as 2048x1024 for Cityscapes), the logits are resized to the network input and from there to
    the image's size, or brought out of the letterbox of human parsing. Any other choice is test-time augmentation: the
    image *as loaded* is resized by each ratio, without regard to the processor's `size`, and seen as it is and, with
    `flip`, mirrored too. The logits of a view are mirrored back and resized to the image's size; their softmax is
    averaged over the views. With `average="logits"` it is PaddleSeg's: what the processor made of the image, padding
    included, is resized by each ratio, the logits of a view are resized to it and from there to the size of ratio 1,
    where they are averaged, without a softmax. Human parsing is tested as SCHP does it: the letterboxed image is
    resized by each ratio, and the logits themselves are averaged, at its size, before they are brought out of the
    letterbox.

    A processor with `do_pad` and a `pad_size` pads here, too, but for images that are larger than that.

    Args:
        model: a `CCNetForSemanticSegmentation` or `CCNetForHumanParsing` in eval mode, or another runtime
            (`ccnet_hf.inference.runtime`).
        image_processor: its `CCNetImageProcessor`.
        mode, crop_size, stride, crop_batch_size: as in `predict_logits`.
        scales: ratios of the views, in order.
        flip: whether every scale is also seen mirrored.
        average: what is averaged over the views, `"probabilities"` or `"logits"`; `None` takes what the model's
            configuration says in `inference`, probabilities if nothing. Of human parsing it is always logits.
        flip_label_pairs: pairs of labels that mirroring exchanges, such as left and right arm; `None` takes those of
            the benchmark whose classes the model has, if there is one.

    Raises:
        InputError: no model and image processor of these kinds, no scale, a scale that is no positive number,
            impossible windows, average, `flip` or label pairs; and from a prediction, what is no image, an image that
            a scale or the processor would enlarge beyond what `ccnet_hf.limits` allows, or NaN in the model's logits.
    """

    def __init__(
        self,
        model: nn.Module | Runtime,
        image_processor: BaseImageProcessor,
        mode: str | None = None,
        crop_size: Size | None = None,
        stride: Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crop_batch_size: int = 4,
        flip_label_pairs: Sequence[tuple[int, int]] | None = None,
        average: str | None = None,
    ):
        self.model = model  # as given; only its owner asks more of it than of a runtime
        if getattr(model, "main_input_name", "pixel_values") == "pixel_values_videos":
            raise InputError("the model is for video, which a CCNetVideoSession takes frame by frame")
        self.runtime = as_runtime(model)
        self.config = self.runtime.config
        self.image_processor = image_processor
        self.crop_size, self.stride = sliding_window(self.config, mode, crop_size, stride)
        self.crop_batch_size = positive("crop_batch_size", crop_batch_size)
        if not isinstance(scales, Sequence | np.ndarray) or not len(scales) or not all(map(_is_scale, scales)):
            raise InputError(f"scales must be positive numbers, at least one, got {scales!r}")
        self.scales = tuple(float(scale) for scale in scales)
        if not isinstance(flip, bool | np.bool_):
            raise InputError(f"flip must be True or False, got {flip!r}")
        self.flip = bool(flip)
        if average not in (None, *AVERAGES):
            raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
        self._average = average or self.config.inference.get("average", "probabilities")
        if flip_label_pairs is None:
            flip_label_pairs = benchmarks.flip_label_pairs(self.config.id2label)
        self._flipped_labels = _exchange(self.config.num_labels, flip_label_pairs)
        if not hasattr(image_processor, "active_letterbox_inverse"):
            raise InputError(
                f"`image_processor` must be the model's CCNetImageProcessor, got {type(image_processor).__name__}"
            )

    @property
    def is_augmented(self) -> bool:
        """Whether predictions are averaged over augmented views (the plain protocol otherwise)."""
        return self.flip or self.scales != (1.0,)

    @property
    def average(self) -> str:
        """What augmented views are averaged by: `"probabilities"` or `"logits"`."""
        return self._average if self.image_processor.active_letterbox_inverse is None else "logits"

    @property
    def _averages_probabilities(self) -> bool:
        return self.is_augmented and self.average == "probabilities"

    def scores(self, image: InputImage) -> torch.Tensor:
        """Class scores of one image at its own size.

        Args:
            image: a PIL image, which is turned upright as its EXIF orientation says, an array or tensor as the image
                processor takes it, or an image file.

        Returns:
            (num_labels, H, W) float32: logits by the plain protocol and where logits are averaged, mean softmax
            probabilities with augmentation otherwise.
        """
        image = upright_image(image)
        if self._averages_probabilities:
            return self._mean_probabilities([image])[0]
        ((logits, input_size),) = self._logits(self._inputs([image]))
        return resize_logits(logits, **self._way_back(input_size, image))

    def label_map(self, image: InputImage) -> torch.Tensor:
        """The most likely class of every pixel of one image: (H, W) int64 at the upright image's own size."""
        return self.label_maps([image])[0]

    def label_maps(self, images: Sequence[InputImage]) -> list[torch.Tensor]:
        """As `label_map` for several images; those of equal network input size share one forward pass."""
        is_batch = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
        if not is_batch and not isinstance(images, list | tuple):
            raise InputError(f"label_maps takes a list of images, label_map one; got {type(images).__name__}")
        images = [upright_image(image) for image in images]
        if self._averages_probabilities:
            return [probabilities.argmax(dim=0) for probabilities in self._mean_probabilities(images)]
        return [
            argmax_of_resized_logits(logits, **self._way_back(input_size, image))
            for image, (logits, input_size) in zip(images, self._logits(self._inputs(images)), strict=True)
        ]

    def steps(self, image: InputImage) -> Callable[[], Callable[[], torch.Tensor]]:
        """`label_map` in three steps for those who overlap them, each in any thread: the image processor now, the
        network when the result is called, and when the result of that is called, the label map. Between the steps only
        what is small is kept: scores as large as the image are made a label map at once."""
        image = upright_image(image)
        at_once = self.is_augmented or self.crop_size is not None
        inputs = [] if at_once else self._inputs([image])

        def compute() -> Callable[[], torch.Tensor]:
            if at_once:
                label_map = self.label_map(image)
                return lambda: label_map
            ((logits, input_size),) = self._predict(inputs)
            return partial(argmax_of_resized_logits, logits, **self._way_back(input_size, image))

        return compute

    def attention(self, image: InputImage, point: tuple[float, float]) -> PixelAttention:
        """What one pixel attends to, the whole image being seen at once as the processor resizes it.

        Args:
            image: as for `scores`.
            point: (x, y) on the upright image, in pixels from its upper left corner.

        Raises:
            InputError: what predicts is no model with criss-cross attention, or the point is not on the image.
        """
        if not isinstance(self.model, nn.Module):
            raise InputError("only a PyTorch model tells what it attends to")
        image = upright_image(image)
        (pixel_values,) = self._inputs([image], pads=False)  # what is drawn covers the image
        weight = next(self.model.parameters())
        pixel_values = pixel_values[None].to(weight.device, weight.dtype)
        letterbox = self.image_processor.active_letterbox_inverse is not None
        return attend(self.model, pixel_values, point, image_size(image), letterbox)

    def _logits(self, inputs: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Logits per image, averaged over the views of what the processor made of it, and its size."""
        if not self.is_augmented:
            return self._predict(inputs)
        sizes = [tuple(pixel_values.shape[-2:]) for pixel_values in inputs]
        totals: list[torch.Tensor | float] = [0.0] * len(inputs)
        for scale in self.scales:
            for flipped in (False, True) if self.flip else (False,):
                views = [self._view(pixel_values, scale, flipped) for pixel_values in inputs]
                for index, (logits, view_size) in enumerate(self._predict(views)):
                    logits = logits.flip(-1)[self._flipped_labels] if flipped else logits
                    # SCHP's logits come as the network gives them, PaddleSeg's at the size of the view.
                    first = view_size if self.image_processor.active_letterbox_inverse is None else None
                    totals[index] += resize_logits(logits, self.config.align_corners, first, sizes[index])
        number = len(self.scales) * (2 if self.flip else 1)
        return [(total / number, size) for total, size in zip(totals, sizes, strict=True)]

    def _view(self, pixel_values: torch.Tensor, scale: float, flipped: bool) -> torch.Tensor:
        """Network input (3, h, w) resized by a ratio and perhaps mirrored."""
        if scale != 1:
            height, width = pixel_values.shape[-2:]
            _check_enlarged((height, width), scale * height * scale * width, f"scale {scale:g}")
            # SCHP cuts off, PaddleSeg rounds.
            half = 0.5 if self.image_processor.active_letterbox_inverse is None else 0
            size = [max(1, int(side * scale + half)) for side in (height, width)]
            pixel_values = resize(pixel_values[None], size, self.config.align_corners)[0]
        return pixel_values.flip(-1) if flipped else pixel_values

    def _way_back(self, input_size: tuple[int, int], image: InputImage) -> dict[str, Any]:
        """How logits get from the network's input to the image that the processor made it of."""
        resized = self._size_before_padding(image)
        padding = {} if self._pad_size(resized) is None else {"padded_size": input_size}
        return padding | {
            "align_corners": self.config.align_corners,
            "input_size": resized if padding else input_size,
            "target_size": image_size(image),
            "letterbox": self.image_processor.active_letterbox_inverse,
        }

    def _mean_probabilities(self, images: Sequence[InputImage]) -> list[torch.Tensor]:
        align_corners = self.config.align_corners
        flips = (False, True) if self.flip else (False,)
        totals: list[torch.Tensor | float] = [0.0] * len(images)
        for scale in self.scales:
            inputs = self._inputs(images, scale)
            for flipped in flips:
                views = [pixel_values.flip(-1) for pixel_values in inputs] if flipped else inputs
                for index, (logits, input_size) in enumerate(self._predict(views)):
                    logits = resize_logits(logits, align_corners, input_size)
                    if flipped:
                        logits = logits.flip(-1)[self._flipped_labels]
                    logits = resize_logits(logits, align_corners, target_size=image_size(images[index]))
                    totals[index] += logits.softmax(dim=0)
        return [total / (len(self.scales) * len(flips)) for total in totals]

    def _size_before_padding(self, image: InputImage) -> tuple[int, int]:
        """The size that the processor resizes an image to."""
        size = image_size(image)
        return output_size(*size, self.image_processor.size) if self.image_processor.do_resize else size

    def _pad_size(self, resized: tuple[int, int]) -> tuple[int, int] | None:
        """What the processor pads an image of that size to; `None` if it does not, or the image is larger."""
        processor = self.image_processor
        if not (processor.do_pad and processor.pad_size):
            return None
        padded = processor.pad_size["height"], processor.pad_size["width"]
        return padded if resized[0] <= padded[0] and resized[1] <= padded[1] else None

    def _inputs(
        self, images: Sequence[InputImage], scale: float | None = None, pads: bool = True
    ) -> list[torch.Tensor]:
        """Network input (3, h, w) per image, resized and padded by the processor's rule, or resized by `scale` from
        the loaded size."""
        inputs = []
        for image in images:
            options = {"do_pad": False}
            size = image_size(image)
            if scale is not None:
                _check_enlarged(size, scale * size[0] * scale * size[1], f"scale {scale:g}")
                height, width = rescale_output_size(*size, scale)
                options |= {"do_resize": True, "size": {"height": height, "width": width}}
            else:
                resized = self._size_before_padding(image)
                _check_enlarged(size, math.prod(resized), "the size of the image processor")
                options["do_pad"] = pads and self._pad_size(resized) is not None
            inputs.append(self.image_processor(image, return_tensors="pt", **options)["pixel_values"][0])
        return inputs

    @torch.no_grad()
    def _predict(self, inputs: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Logits per input, as the network gives them (whole) or at the size of the input (slide), and that size."""
        indices_by_shape: dict[torch.Size, list[int]] = {}
        for index, pixel_values in enumerate(inputs):
            indices_by_shape.setdefault(pixel_values.shape, []).append(index)
        predictions = {}
        for shape, indices in indices_by_shape.items():
            batch = torch.stack([inputs[index] for index in indices])
            if self.crop_size is None:
                logits = class_logits(self.runtime, batch)
            else:
                align_corners = self.config.align_corners
                logits = slide_logits(
                    self.runtime, batch, self.crop_size, self.stride, self.crop_batch_size, align_corners
                )
            for index, image_logits in zip(indices, logits, strict=True):
                predictions[index] = image_logits, tuple(shape[-2:])
        return [predictions[index] for index in range(len(inputs))]


def _exchange(num_labels: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For every label the one that mirroring turns it into."""
    exchanged = list(range(num_labels))
    is_list = isinstance(pairs, Sequence) and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs)
    if not is_list or not all(isinstance(label, Integral) for pair in pairs for label in pair):
        raise InputError(f"flip_label_pairs must be pairs of labels, such as [(14, 15)], got {pairs!r}")
    for first, second in pairs:
        if not (0 <= first < num_labels and 0 <= second < num_labels):
            raise InputError(f"flip_label_pairs has ({first}, {second}), labels are 0..{num_labels - 1}")
        if exchanged[first] != first or exchanged[second] != second:
            raise InputError(f"flip_label_pairs names label {first} or {second} twice: {tuple(pairs)}")
        exchanged[first], exchanged[second] = second, first
    return exchanged


def _is_scale(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < float("inf")


def _check_enlarged(size: tuple[int, int], pixels: float, by: str) -> None:
    """Refuse what would take memory until there is no more."""
    if pixels > max(MAX_PIXELS, math.prod(size)):
        raise InputError(
            f"{by} makes {pixels / 1e6:.4g} megapixels of an image of {size[0]}x{size[1]} (height x width); "
            f"{MAX_PIXELS / 1e6:.4g} are allowed"
        )
