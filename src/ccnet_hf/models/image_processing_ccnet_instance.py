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
"""Image processor of Mask R-CNN with criss-cross attention, by torchvision's rules."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import corners_to_center_format
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

from .annotations_ccnet import objects_of_annotations
from .image_arguments_ccnet import check_enlargement, image_list
from .image_processing_common_ccnet import (
    CCNetImageProcessorKwargs,
    CCNetImageProcessorMixin,
    CCNetProcessorMixin,
    warn_of_fractions,
)
from .image_transforms_ccnet import image_to_array
from .mistaken_names_ccnet import mistaken_names
from .post_processing_ccnet import Size
from .post_processing_instance_ccnet import InstancePostProcessingMixin


logger = logging.get_logger(__name__)

INSTANCE_IMAGE_PROCESSORS = ("image_processing_ccnet_instance.CCNetInstanceImageProcessor",) * 2


class CCNetInstanceImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        Height and width of a padded batch are multiples of it.
    """

    size_divisor: int | None


class CCNetInstanceImageProcessor(CCNetProcessorMixin, InstancePostProcessingMixin, TorchvisionBackend):
    r"""Prepares images and COCO's annotations for [`CCNetForInstanceSegmentation`], and makes masks and boxes of its
    outputs, by the rules of torchvision's Mask R-CNN.

    Images are normalised and then resized bilinearly without antialiasing, masks by nearest neighbour.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`):
            The shorter side becomes `"shortest_edge"` pixels long, or less where the longer one would exceed
            `"longest_edge"`. `{"height": ..., "width": ...}` resizes to exactly that size.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply values by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1/255`): That factor.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`.
        image_mean (`list[float]`, *optional*): One number per channel, after rescaling; ImageNet's by default.
        image_std (`list[float]`, *optional*): Likewise.
        do_pad (`bool`, *optional*, defaults to `True`):
            Whether to pad images, right and below, with zeros after normalization, to the largest height and width of
            the batch and on to multiples of `size_divisor`, or to `pad_size`.
        pad_size (`dict[str, int]`, *optional*): `{"height": ..., "width": ...}` to pad to.
        size_divisor (`int`, *optional*, defaults to 32): What sides of a padded batch are multiples of.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert images of other modes and grey or four-channel arrays to RGB.
    """

    remote_classes: ClassVar[dict[str, list[str]]] = {"AutoImageProcessor": list(INSTANCE_IMAGE_PROCESSORS)}
    valid_kwargs = CCNetInstanceImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    pad_size = None
    size_divisor = 32

    fetch_images = CCNetImageProcessorMixin.fetch_images

    @classmethod
    def _mistaken_names(cls, names: Iterable[str]) -> dict[str, str]:
        """As every processor's, with those of [`CCNetImageProcessor`] that have no effect on instances."""
        own = cls.valid_kwargs.__annotations__
        unknown = [name for name in names if name not in own]
        others = CCNetImageProcessorKwargs.__annotations__.keys() - own.keys()
        foreign = {name: name for name in unknown if name in others} | mistaken_names(unknown, others)
        named = {name: f"{meant} of CCNetImageProcessor" for name, meant in foreign.items()}
        return named | super()._mistaken_names(name for name in unknown if name not in others)

    @property
    def padding_value(self) -> float:
        """What padding is filled with, after normalization. transformers' pipelines ask for it before they make
        batches, which only network inputs of one size can share; how to have them is said here, once."""
        if not self.pad_size and not (self.do_resize and self.size and self.size.height):
            logger.warning_once(
                "`pipeline(..., batch_size=...)` needs network inputs of one size. Where your images differ, set "
                '`pad_size={"height": ..., "width": ...}` on the image processor, or a `size` of fixed height and '
                "width."
            )
        return 0.0

    def preprocess(
        self,
        images: ImageInput,
        annotations: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        return_segmentation_masks: bool = True,
        **kwargs: Unpack[CCNetInstanceImageProcessorKwargs],
    ) -> BatchFeature:
        """Makes one batch of images, and labels of their annotations if given.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a list of these):
                Images of any mode, which are turned upright as their EXIF orientation says; arrays with values in
                0..255, or in 0..1 together with `do_rescale=False`.
            annotations (`dict` or `list[dict]`, *optional*):
                One for each image: `image_id`, and `annotations` as COCO's files have them. Crowds and boxes that have
                no area inside the image are left out.
            return_segmentation_masks (`bool`, *optional*, defaults to `True`): Whether labels have masks.
            **kwargs: Override the processor's attributes for this call.

        Returns:
            [`BatchFeature`] with `pixel_values` (float32, `(batch, channels, height, width)`), with `do_pad`
            `pixel_mask` (int64, `(batch, height, width)`; 0 for padding), and with `annotations` `labels`, a list of
            dictionaries for [`CCNetForInstanceSegmentation`]: `size` and `orig_size` (height, width) of the resized
            and of the original image, `image_id`, `class_labels`, which are the category ids, `boxes` (center x,
            center y, width, height) as fractions of the image without its padding, `area` in pixels of the resized
            image, `iscrowd`, and `masks` (bool, of the size of the resized image).

        Raises:
            ValueError: If images of one batch differ in size and `do_pad` is off, or if an input is not an image or
                an annotation is malformed.
        """
        return super().preprocess(images, annotations, return_segmentation_masks, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        divisor = kwargs["size_divisor"]
        if not isinstance(divisor, int) or isinstance(divisor, bool) or divisor < 1:
            raise ValueError(f"`size_divisor` must be an integer of at least 1, got {divisor!r}.")
        return kwargs

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        annotations: dict[str, Any] | Sequence[dict[str, Any]] | None,
        return_segmentation_masks: bool,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> BatchFeature:
        images = image_list(images, self.fetch_images)
        if kwargs["do_rescale"]:
            warn_of_fractions(images)
        arrays = [
            torch.as_tensor(image_to_array(image, bool(do_convert_rgb), input_data_format), device=device)
            for image in images
        ]
        if not arrays:
            raise ValueError("No images given.")
        labels = None
        if annotations is not None:
            if isinstance(annotations, dict):
                annotations = [annotations]
            if not isinstance(annotations, Iterable):
                raise ValueError(
                    f"`annotations` must be a dictionary, or a list of one for each image, got {annotations!r}."
                )
            annotations = list(annotations)
            if len(annotations) != len(arrays):
                raise ValueError(f"Got {len(annotations)} annotations for {len(arrays)} images.")
            labels = [
                self._label(annotation, tuple(array.shape[-2:]), return_segmentation_masks, **kwargs)
                for annotation, array in zip(annotations, arrays, strict=True)
            ]
        data = self._preprocess(arrays, **kwargs)
        feature = BatchFeature(data=data, tensor_type=return_tensors)
        if labels is not None:
            feature["labels"] = labels
        return feature

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int,
        **kwargs,
    ) -> dict[str, list[torch.Tensor]]:
        prepared = []
        for image in images:
            image = self.rescale_and_normalize(
                image[None], do_rescale, rescale_factor, do_normalize, image_mean, image_std
            ).float()
            if do_resize:
                new_size = _output_size(tuple(image.shape[-2:]), size)
                image = F.interpolate(image, size=new_size, mode="bilinear", align_corners=False)
            prepared.append(image[0])
        sizes = [tuple(image.shape[-2:]) for image in prepared]
        if not do_pad:
            if len(set(sizes)) > 1:
                different = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
                raise ValueError(
                    f"Images of different sizes do not make a batch without padding: after resizing they are "
                    f"{different} (height x width). Pass `do_pad=True`, or process them one by one."
                )
            return {"pixel_values": prepared}
        padded_size = _padded_size(sizes, pad_size, size_divisor)
        return _pad_images(prepared, padded_size)

    def _label(
        self, annotation: dict[str, Any], orig_size: Size, with_masks: bool, do_resize: bool, size: SizeDict, **kwargs
    ) -> BatchFeature:
        if not isinstance(annotation, dict) or not {"image_id", "annotations"} <= annotation.keys():
            raise ValueError("Annotations of an image must be a dictionary with `image_id` and `annotations`.")
        image_id = annotation["image_id"]
        if not hasattr(image_id, "__index__") or not abs(image_id) < 2**63:
            raise ValueError(f"`image_id` of annotations must be an integer of 64 bits, got {image_id!r}.")
        objects = objects_of_annotations(annotation["annotations"], orig_size, with_masks)
        new_size = _output_size(orig_size, size) if do_resize else orig_size
        height, width = orig_size
        objects["boxes"] = corners_to_center_format(objects["boxes"]) / torch.tensor([width, height] * 2)
        objects["area"] = objects["area"] * (new_size[0] * new_size[1] / (height * width))
        if with_masks and new_size != orig_size and len(objects["masks"]):
            objects["masks"] = F.interpolate(objects["masks"][:, None].to(torch.uint8), size=new_size)[:, 0].bool()
        elif with_masks and new_size != orig_size:
            objects["masks"] = objects["masks"].new_zeros(0, *new_size)
        about = {
            "size": torch.tensor(new_size),
            "image_id": torch.tensor([image_id]),
            "orig_size": torch.tensor(orig_size),
        }
        return BatchFeature(data=about | objects)


def _pad_images(images: list[torch.Tensor], padded_size: Size) -> dict[str, list[torch.Tensor]]:
    """Images `(channels, height, width)` padded to one size, right and below, with zeros, as `pixel_values`, and what
    of it they are as `pixel_mask`.

    Raises:
        ValueError: If an image is larger.
    """
    height, width = padded_size
    pixel_values, pixel_mask = [], []
    for image in images:
        bottom, right = height - image.shape[-2], width - image.shape[-1]
        if min(bottom, right) < 0:
            raise ValueError(
                f"`pad_size` {height}x{width} (height x width) is less than an image, which is "
                f"{image.shape[-2]}x{image.shape[-1]} after resizing."
            )
        pixel_values.append(F.pad(image, (0, right, 0, bottom)))
        pixel_mask.append(F.pad(torch.ones_like(image[0], dtype=torch.int64), (0, right, 0, bottom)))
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


def padded_batch(images: list[torch.Tensor], size_divisor: int) -> dict[str, torch.Tensor]:
    """Images `(channels, height, width)` as one batch `pixel_values` with its `pixel_mask`, as the processor pads
    them."""
    padded = _pad_images(images, _padded_size([tuple(image.shape[-2:]) for image in images], None, size_divisor))
    return {name: torch.stack(tensors) for name, tensors in padded.items()}


def _output_size(size: Size, wanted: SizeDict) -> Size:
    """Size of an image after resizing, as torchvision rounds it: down, but at least a pixel.

    Raises:
        ValueError: If that would enlarge it beyond 268 megapixels.
    """
    height, width = size
    if wanted.height and wanted.width:
        new_height, new_width = wanted.height, wanted.width
    else:
        factor = min(wanted.shortest_edge / min(size), wanted.longest_edge / max(size))
        new_height, new_width = max(math.floor(height * factor), 1), max(math.floor(width * factor), 1)
    check_enlargement("size", wanted, (new_height, new_width), size)
    return new_height, new_width


def _padded_size(sizes: list[Size], pad_size: SizeDict | None, size_divisor: int) -> Size:
    if pad_size:
        name, value, padded = "pad_size", pad_size, (pad_size.height, pad_size.width)
    else:
        name, value = "size_divisor", size_divisor
        padded = tuple(math.ceil(max(sides) / size_divisor) * size_divisor for sides in zip(*sizes, strict=True))
    check_enlargement(name, value, padded, max(sizes, key=math.prod))
    return padded


CCNetInstanceImageProcessor.register_for_auto_class()

__all__ = ["INSTANCE_IMAGE_PROCESSORS", "CCNetInstanceImageProcessor", "padded_batch"]
