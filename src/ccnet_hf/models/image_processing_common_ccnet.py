"""What the two CCNet image processors share: everything but the backend, with the way from logits to segmentation
maps."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .image_transforms_ccnet import (
    Array,
    fit_labels,
    image_to_array,
    open_image,
    output_size,
    resize_bilinear,
    resize_nearest,
    segmentation_map_to_array,
    stored_orientation,
)


logger = logging.get_logger(__name__)

Size = tuple[int, int]  # (height, width)

IGNORE_INDEX = 255

IMAGE_PROCESSORS = ("image_processing_pil_ccnet.CCNetImageProcessorPil", "image_processing_ccnet.CCNetImageProcessor")

# Post-processing resizes about as many classes at a time as fit in this many float32 values (64 MiB). Always a
# multiple of 8: with chunks of another length, vectorized CPU kernels round single values differently than on all.
MAX_CHUNK_ELEMENTS = 2**24
CHUNK_MULTIPLE = 8


class CCNetImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 is no class, as in ADE20K: 0 becomes 255 (ignored), k becomes k - 1, 255 stays 255.
    align_corners (`bool`, *optional*, defaults to `self.align_corners`):
        Of the resizes of logits in post-processing, by the processor's own value; no effect in a call. Images are
        resized as OpenCV does in any case.
    palette (`list[list[int]]`, *optional*, defaults to `self.palette`):
        One RGB colour per class, for those who draw segmentation maps; no effect in a call.
    """

    do_reduce_labels: bool | None
    align_corners: bool | None
    palette: list[list[int]] | None


class CCNetImageProcessorMixin:
    """All of a CCNet image processor but its backend. See [`CCNetImageProcessor`]."""

    model_input_names = ["pixel_values"]
    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 1024, "longest_edge": 2048}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = False
    do_reduce_labels = False
    align_corners = False
    palette = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # else transformers would copy a user's own module into the folders it saves

    def to_dict(self) -> dict[str, Any]:
        """The processor as `preprocessor_config.json` holds it, with the classes of the code that is saved beside it:
        transformers takes the second where torchvision is installed."""
        return super().to_dict() | {"auto_map": {"AutoImageProcessor": list(IMAGE_PROCESSORS)}}

    def fetch_images(self, images: Any) -> Any:
        """Images for the paths and addresses among `images`, by Pillow in both backends. Files come in as they are,
        upright, where transformers would make 8-bit RGB of 16-bit images and of segmentation maps.

        Raises:
            ValueError: If a file is no image, damaged, or larger than Pillow allows.
        """
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, (str, os.PathLike)) and os.path.isfile(images):
            try:
                return open_image(images)
            except PIL.Image.DecompressionBombError as error:
                raise ValueError(f"{images}: {error} Set `PIL.Image.MAX_IMAGE_PIXELS` to allow it.") from error
            except Exception as error:  # Pillow's decoders raise whatever the broken bytes led to
                raise ValueError(f"{images} cannot be read: {error}") from error
        return ImageProcessingMixin.fetch_images(self, images)

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[CCNetImageProcessorKwargs],
    ) -> BatchFeature:
        """Makes one batch of images, and of their segmentation maps if given.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a list of these):
                Images of any mode, which are turned upright as their EXIF orientation says; arrays with values in
                0..255, or in 0..1 together with `do_rescale=False`.
            segmentation_maps (the same, *optional*):
                Class ids of shape `(height, width)`, one map per upright image and of its size. They are resized along
                with it. A map that fits only the stored pixels of an image is turned with it.
            **kwargs: Override the processor's attributes for this call.

        Returns:
            [`BatchFeature`] with `pixel_values` (float32, `(batch, channels, height, width)`) and, with
            `segmentation_maps`, `labels` (int64, `(batch, height, width)`).

        Raises:
            ValueError: If images of one batch differ in size after resizing and `do_pad` is off, or if an input is
                not an image or a segmentation map.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def resize(self, image: Array, size: SizeDict, **kwargs) -> Array:
        """Resizes images of shape `(..., height, width)` to `size` as OpenCV does, see [`resize_bilinear`]."""
        return resize_bilinear(image, *output_size(*image.shape[-2:], size))

    def process_image(
        self,
        image: PIL.Image.Image | Array,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> Array:
        """One image as an array `(channels, height, width)` of the backend, see [`image_to_array`]."""
        return self._to_backend(image_to_array(image, bool(do_convert_rgb), input_data_format), device)

    def _to_backend(self, array: Array, device: str | torch.device | None) -> Array:
        raise NotImplementedError

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("size") is not None:
            _check_size(kwargs["size"])
        if kwargs.get("palette") is not None:
            kwargs["palette"] = _check_palette(kwargs["palette"])
        resample = kwargs.get("resample")
        if resample is not None and getattr(resample, "value", resample) not in (2, "bilinear"):
            raise ValueError(f"`resample` must be bilinear, the one way CCNet resizes images; got {resample}.")
        return kwargs

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | None,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> BatchFeature:
        image_mean = kwargs["image_mean"]
        # A mean of another length says that the model takes other channels than red, green and blue.
        channels = len(image_mean) if isinstance(image_mean, (list, tuple)) else None
        do_convert_rgb = do_convert_rgb and channels in (None, 3)
        images = _flatten(self.fetch_images(images), (2, 3), "image")
        orientations = [stored_orientation(image) for image in images]
        images = [self.process_image(image, do_convert_rgb, input_data_format, device) for image in images]
        if not images:
            raise ValueError("No images given.")
        for image in images:
            if kwargs["do_normalize"] and channels not in (None, image.shape[0]):
                raise ValueError(f"An image has {image.shape[0]} channels, but `image_mean` has {channels} values.")
        labels = None
        if segmentation_maps is not None:
            labels = self._prepare_labels(segmentation_maps, images, orientations, device, **kwargs)

        images = self._preprocess(images, **kwargs)
        images = [image.float() if isinstance(image, torch.Tensor) else image.astype(np.float32) for image in images]
        sizes = [tuple(image.shape[-2:]) for image in images]
        if do_pad:
            height, width = (pad_size.height, pad_size.width) if pad_size else np.max(sizes, axis=0).tolist()
            pad_size = SizeDict(height=height, width=width)
            images = self.pad(images, pad_size=pad_size)
            if labels is not None:
                labels = [label[0] for label in self.pad([label[None] for label in labels], pad_size, IGNORE_INDEX)]
        elif len(set(sizes)) > 1:
            different = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
            raise ValueError(
                f"Images of different sizes do not make a batch: after resizing they are {different} (height x "
                "width). Pass `do_pad=True`, or process them one by one."
            )
        data = {"pixel_values": images} if labels is None else {"pixel_values": images, "labels": labels}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _prepare_labels(
        self,
        segmentation_maps: ImageInput,
        images: list[Array],
        orientations: list[int],
        device: str | torch.device | None,
        do_reduce_labels: bool | None,
        do_resize: bool | None,
        size: SizeDict,
        **kwargs,
    ) -> list[Array]:
        """The segmentation maps of `images` (not yet resized), which were stored in `orientations`, as int64 arrays
        `(height, width)`, reduced and resized."""
        segmentation_maps = _flatten(self.fetch_images(segmentation_maps), (2,), "segmentation map")
        if len(segmentation_maps) != len(images):
            raise ValueError(f"Got {len(segmentation_maps)} segmentation maps for {len(images)} images.")
        labels = []
        for index, (segmentation_map, image) in enumerate(zip(segmentation_maps, images, strict=True)):
            own_orientation = stored_orientation(segmentation_map)
            stored_label = segmentation_map_to_array(segmentation_map)
            label = fit_labels(stored_label, *image.shape[-2:], orientations[index], own_orientation)
            if label is not stored_label:
                logger.warning_once(
                    "Segmentation maps that fit only the stored pixels of an image are turned with it, as its EXIF "
                    "orientation says."
                )
            label = self._to_backend(label, device)
            if label.shape != image.shape[-2:]:
                raise ValueError(
                    f"Segmentation map {index} is {label.shape[0]}x{label.shape[1]} (height x width), but its image "
                    f"is {image.shape[-2]}x{image.shape[-1]}."
                )
            if do_reduce_labels:
                label = label - 1
                label[(label == -1) | (label == IGNORE_INDEX - 1)] = IGNORE_INDEX
            labels.append(resize_nearest(label, *output_size(*label.shape, size)) if do_resize else label)
        return labels

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size] | torch.Tensor | None = None,
        input_sizes: Sequence[Size] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Makes segmentation maps of the model's outputs as mmsegmentation does: the logits are resized to the size of
        the network's input, padding is cut off, the rest is resized to the size of the image, both times bilinearly
        with the processor's `align_corners`; each pixel gets the class with the largest logit. Classes are worked
        through in chunks, so that many classes of a large image need little memory.

        Args:
            outputs ([`CCNetSemanticSegmenterOutput`]):
                Outputs of the model, with `logits` of shape `(batch, num_labels, height, width)`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                `(height, width)` of each image before preprocessing. Without it, maps have the size of the network's
                input where `input_sizes` are given, and of the logits otherwise.
            input_sizes (`list[tuple[int, int]]` or `torch.Tensor`, *optional*):
                `(height, width)` of each image after preprocessing, without padding. By default they are computed
                from `target_sizes` and the processor's `size`, so they are needed where that was overridden in the
                call. Logits are taken to cover the smallest size that holds all images of the batch (or `pad_size`),
                if the processor pads or `input_sizes` are given; otherwise each image fills its input.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the resized logits, too. All of them are held in memory at once then.

        Returns:
            A list of int64 tensors `(height, width)` with class ids, or of [`SemanticSegmentationPostProcessorOutput`]
            with these as `segmentation` and the logits `(num_labels, height, width)` as `segmentation_scores`.

        Raises:
            ValueError: If there are not as many sizes as images, or a size is not two positive integers.
        """
        logits = outputs.logits
        target_sizes = _check_sizes(target_sizes, len(logits), "target_sizes")
        input_sizes = _check_sizes(input_sizes, len(logits), "input_sizes")
        may_be_padded = self.do_pad or input_sizes is not None
        if input_sizes is None and target_sizes is not None:
            input_sizes = [output_size(*target, self.size) if self.do_resize else target for target in target_sizes]

        results = []
        for index, image_logits in enumerate(logits):
            sizes = {}
            if input_sizes is not None:
                sizes["input_size"] = input_sizes[index]
                sizes["target_size"] = target_sizes[index] if target_sizes is not None else None
                sizes["padded_size"] = self._padded_size(input_sizes) if may_be_padded else None
            if return_segmentation_scores:
                scores = resize_logits(image_logits, self.align_corners, **sizes)
                data = {"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(argmax_of_resized_logits(image_logits, self.align_corners, **sizes))
        return results

    def _padded_size(self, input_sizes: list[Size]) -> Size:
        if self.do_pad and self.pad_size is not None:
            return self.pad_size["height"], self.pad_size["width"]
        return max(height for height, _ in input_sizes), max(width for _, width in input_sizes)


def _flatten(images: ImageInput, ndims: tuple[int, ...], what: str) -> list[PIL.Image.Image | Array]:
    """Images or segmentation maps as a flat list, whether one, a list, a list of lists, or one array with a batch
    axis."""
    if isinstance(images, (list, tuple)):
        return [image for nested in images for image in _flatten(nested, ndims, what)]
    if isinstance(images, PIL.Image.Image) or images.ndim in ndims:
        return [images]
    if images.ndim == max(ndims) + 1:
        return list(images)
    raise ValueError(f"A {what} of shape {tuple(images.shape)} has {images.ndim} axes, expected {max(ndims)}.")


def _check_size(size: SizeDict) -> None:
    keys = {key for key, _ in size}
    if keys not in ({"height", "width"}, {"shortest_edge", "longest_edge"}):
        raise ValueError(
            "`size` must hold 'height' and 'width', or 'shortest_edge' and 'longest_edge', "
            f"got {', '.join(sorted(keys))}."
        )
    if any(not isinstance(value, int) or value < 1 for _, value in size):
        raise ValueError(f"`size` must hold positive integers, got {dict(size)}.")
    if size.get("longest_edge") and size["shortest_edge"] > size["longest_edge"]:
        raise ValueError(f"`size` must not have a 'shortest_edge' above its 'longest_edge', got {dict(size)}.")


def _check_palette(palette: Sequence[Sequence[int]]) -> list[list[int]]:
    colours = [list(colour) for colour in palette]
    for colour in colours:
        if len(colour) != 3 or any(not isinstance(value, int) or not 0 <= value <= 255 for value in colour):
            raise ValueError(
                f"`palette` must be a list of RGB colours, each of three integers in 0..255, got {colour}."
            )
    return colours


def _check_sizes(sizes: Sequence[Size] | torch.Tensor | None, count: int, name: str) -> list[Size] | None:
    if sizes is None:
        return None
    sizes = [tuple(int(side) for side in size) for size in sizes]
    if len(sizes) != count:
        raise ValueError(f"`{name}` must hold one size per image: got {len(sizes)} for {count} images.")
    for size in sizes:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"`{name}` must hold pairs (height, width) of positive integers, got {size}.")
    return sizes


def resize_logits(
    logits: torch.Tensor,
    align_corners: bool,
    input_size: Size | None = None,
    target_size: Size | None = None,
    padded_size: Size | None = None,
) -> torch.Tensor:
    """Resizes the logits of one image bilinearly, first to the network's input and then to the image.

    Args:
        logits (`torch.Tensor` of shape `(num_labels, height, width)`): Any floating dtype.
        align_corners (`bool`): Of both resizes.
        input_size (`tuple[int, int]`, *optional*): `(height, width)` of the network's input, without padding.
        target_size (`tuple[int, int]`, *optional*): `(height, width)` of the image.
        padded_size (`tuple[int, int]`, *optional*, defaults to `input_size`):
            `(height, width)` of the network's input with its padding at the right and below, which is cut off.

    Returns:
        float32 logits of the last size given.
    """
    logits = _interpolate(logits[None].float(), padded_size or input_size, align_corners)
    if padded_size is not None:
        logits = logits[..., : input_size[0], : input_size[1]]
    return _interpolate(logits, target_size, align_corners)[0]


def _interpolate(logits: torch.Tensor, size: Size | None, align_corners: bool) -> torch.Tensor:
    if size is None or logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits.contiguous(), size=tuple(size), mode="bilinear", align_corners=align_corners)


def argmax_of_resized_logits(
    logits: torch.Tensor,
    align_corners: bool,
    input_size: Size | None = None,
    target_size: Size | None = None,
    padded_size: Size | None = None,
) -> torch.Tensor:
    """`resize_logits(...).argmax(dim=0)`, int64 of shape `(height, width)`, with a few classes at a time in memory."""
    sizes = {"input_size": input_size, "target_size": target_size, "padded_size": padded_size}
    largest = max((height * width for height, width in filter(None, sizes.values())), default=1)
    length = max(MAX_CHUNK_ELEMENTS // largest // CHUNK_MULTIPLE, 1) * CHUNK_MULTIPLE
    starts = range(0, max(len(logits) - CHUNK_MULTIPLE, 0) + 1, length)  # a short rest belongs to the last chunk
    best, segmentation = None, None
    for start, end in pairwise([*starts, len(logits)]):
        scores, classes = resize_logits(logits[start:end], align_corners, **sizes).max(dim=0)
        if best is None:
            best, segmentation = scores, classes
        else:  # of equal logits, the first class wins, as in `argmax`
            segmentation = torch.where(scores > best, classes + start, segmentation)
            best = torch.maximum(scores, best)
    return segmentation
