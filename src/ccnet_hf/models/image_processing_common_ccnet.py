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
"""What the two CCNet image processors share: everything but the backend, with the way from logits to segmentation
maps."""

import base64
import copy
import io
import math
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np
import PIL.Image
import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import get_session
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
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

from .image_arguments_ccnet import (
    check_arguments,
    check_enlargement,
    check_form,
    check_palette,
    image_list,
    segmentation_map_list,
)
from .image_letterbox_ccnet import letterbox, letterbox_labels
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
from .mistaken_names_ccnet import mistaken_names, refuse, warn
from .post_processing_ccnet import Size
from .post_processing_semantic_ccnet import SemanticPostProcessingMixin


logger = logging.get_logger(__name__)

IGNORE_INDEX = 255

IMAGE_PROCESSORS = ("image_processing_pil_ccnet.CCNetImageProcessorPil", "image_processing_ccnet.CCNetImageProcessor")


class CCNetImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether label 0 is no class, as in ADE20K: 0 becomes 255 (ignored), k becomes k - 1, 255 stays 255.
    do_letterbox (`bool`, *optional*, defaults to `self.do_letterbox`):
        Whether resizing fits the image into the middle of `size`, with black around it.
    letterbox_inverse (`str`, *optional*, defaults to `self.letterbox_inverse`):
        How post-processing undoes that, by the processor's own value; no effect in a call.
    align_corners (`bool`, *optional*, defaults to `self.align_corners`):
        Of the resizes of logits in post-processing, by the processor's own value; no effect in a call. Images are
        resized as OpenCV does in any case.
    palette (`list[list[int]]`, *optional*, defaults to `self.palette`):
        One RGB colour per class, for those who draw segmentation maps; no effect in a call.
    """

    do_reduce_labels: bool | None
    do_letterbox: bool | None
    letterbox_inverse: str | None
    align_corners: bool | None
    palette: list[list[int]] | None


class CCNetProcessorMixin:
    """What CCNet's processors of images and of video share beyond transformers' own: names that look like an
    argument's but are not are refused in Python and kept, with a warning, from a file; and the names of the code that
    a saved folder holds."""

    # Where transformers finds the classes of such a folder, if the package is not installed.
    remote_classes: ClassVar[dict[str, str | list[str]]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # else transformers would copy a user's own module into the folders it saves

    def __init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The processor as its file holds it, with the classes that can be loaded from the code beside it. Of a
        subclass of a user's, no code is there but what transformers saves where the subclass is registered."""
        output = super().to_dict()
        values = self.remote_classes.values()
        names = [name for value in values for name in ([value] if isinstance(value, str) else value)]
        if type(self).__name__ in {name.rpartition(".")[2] for name in names}:
            output["auto_map"] = copy.deepcopy(self.remote_classes)
        elif output.get("auto_map") == self.remote_classes:
            del output["auto_map"]
        return output

    @classmethod
    def _mistaken_names(cls, names: Iterable[str]) -> dict[str, str]:
        """Name -> what was probably meant."""
        return mistaken_names(names, cls.valid_kwargs.__annotations__)

    @classmethod
    def from_dict(cls, processor_dict: dict[str, Any], **kwargs):
        """As every processor's; what in a file looks like an argument but is none is kept, with a warning."""
        refuse(cls, cls._mistaken_names(kwargs))
        mistaken = cls._mistaken_names(processor_dict)
        warn(cls, mistaken)
        known = {name: value for name, value in processor_dict.items() if name not in mistaken}
        loaded = super().from_dict(known, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in mistaken:
            setattr(processor, name, processor_dict[name])
        return loaded

    def preprocess(self, *args, **kwargs) -> BatchFeature:
        """As every processor's; an argument of another type is refused in one line.

        Raises:
            ValueError: If an argument has another type, or a name that only looks like an argument's.
        """
        refuse(type(self), self._mistaken_names(kwargs))
        try:
            return super().preprocess(*args, **kwargs)
        except StrictDataclassError as error:  # how transformers refuses an argument of another type
            raise ValueError(" ".join(str(error).split())) from error

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        for name in ("size", "pad_size"):
            check_form(name, kwargs.get(name))
        kwargs = super()._standardize_kwargs(**kwargs)
        check_arguments(kwargs)
        if kwargs.get("palette") is not None:
            kwargs["palette"] = check_palette(kwargs["palette"])
        return kwargs


class CCNetImageProcessorMixin(CCNetProcessorMixin, SemanticPostProcessingMixin):
    """All of a CCNet image processor but its backend. See [`CCNetImageProcessor`]."""

    # transformers takes the second where torchvision is installed.
    remote_classes: ClassVar[dict[str, list[str]]] = {"AutoImageProcessor": list(IMAGE_PROCESSORS)}
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
    do_letterbox = False
    letterbox_inverse = "logits"
    align_corners = False
    palette = None

    @property
    def padding_value(self) -> float:
        """What padding is filled with, after normalization. transformers' pipelines ask for it before they make
        batches, which only network inputs of one size can share; how to have them is said here, once."""
        if not self.pad_size and not (self.do_resize and self.size and self.size.height):
            logger.warning_once(
                "`pipeline(..., batch_size=...)` needs network inputs of one size. Where your images differ, set "
                '`do_pad=True, pad_size={"height": ..., "width": ...}` on the image processor, or a `size` of fixed '
                "height and width."
            )
        return 0.0

    def fetch_images(self, images: Any) -> Any:
        """Images for the paths, addresses and base64 texts among `images`, by Pillow in both backends. Files come in
        as they are, upright, where transformers would make 8-bit RGB of 16-bit images and of segmentation maps.

        Raises:
            ValueError: If a file is no image, damaged, larger than Pillow allows, or not to be had.
        """
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if not isinstance(images, (str, os.PathLike)):
            return ImageProcessingMixin.fetch_images(self, images)
        name = str(images) if len(str(images)) <= 100 or os.path.exists(images) else f"{str(images)[:100]}..."
        try:
            return open_image(_file_of(images))
        except PIL.Image.DecompressionBombError as error:
            raise ValueError(f"{name}: {error} Set `PIL.Image.MAX_IMAGE_PIXELS` to allow it.") from error
        except PIL.UnidentifiedImageError as error:
            raise ValueError(f"{name} cannot be read: it is no image of a format that is read.") from error
        except Exception as error:  # Pillow's decoders raise whatever the broken bytes led to
            raise ValueError(f"{name} cannot be read: {error}") from error

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

    @property
    def active_letterbox_inverse(self) -> str | None:
        """`letterbox_inverse` if a call without keywords makes a letterbox, `None` otherwise."""
        return self.letterbox_inverse if self.do_resize and self.do_letterbox else None

    def resize(self, image: Array, size: SizeDict, do_letterbox: bool | None = False, **kwargs) -> Array:
        """Resizes images of shape `(..., height, width)` to `size` as OpenCV does, see [`resize_bilinear`], or fits
        them into it, see [`letterbox`].

        Raises:
            ValueError: If that would enlarge them beyond 268 megapixels.
        """
        new_size = _output_size(image, size)
        return letterbox(image, new_size) if do_letterbox else resize_bilinear(image, *new_size)

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
        images = image_list(images, self.fetch_images)
        if kwargs["do_rescale"]:
            warn_of_fractions(images)
        orientations = [stored_orientation(image) for image in images]
        images = [self.process_image(image, do_convert_rgb, input_data_format, device) for image in images]
        if not images:
            raise ValueError("No images given.")
        for image in images:
            for name in ("image_mean", "image_std"):
                values = kwargs[name]
                if kwargs["do_normalize"] and isinstance(values, (list, tuple)) and len(values) != image.shape[0]:
                    raise ValueError(f"An image has {image.shape[0]} channels, but `{name}` has {len(values)} values.")
        labels = None
        if segmentation_maps is not None:
            labels = self._prepare_labels(segmentation_maps, images, orientations, device, **kwargs)

        images = self._preprocess(images, **kwargs)
        images = [image.float() if isinstance(image, torch.Tensor) else image.astype(np.float32) for image in images]
        sizes = [tuple(image.shape[-2:]) for image in images]
        if do_pad:
            height, width = (pad_size.height, pad_size.width) if pad_size else np.max(sizes, axis=0).tolist()
            pad_size = SizeDict(height=height, width=width)
            check_enlargement("pad_size", pad_size, (height, width), max(sizes, key=math.prod))
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
        do_letterbox: bool | None = False,
        **kwargs,
    ) -> list[Array]:
        """The segmentation maps of `images` (not yet resized), which were stored in `orientations`, as int64 arrays
        `(height, width)`, reduced and resized."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        segmentation_maps = segmentation_map_list(segmentation_maps, sizes, self.fetch_images)
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
            if label.min() < 0:
                raise ValueError(f"Segmentation map {index} has the id {int(label.min())}; ids begin at 0.")
            if do_reduce_labels:
                label = _reduced(label, index)
            if do_resize and do_letterbox:
                label = letterbox_labels(label, _output_size(label, size), fill=IGNORE_INDEX)
            elif do_resize:
                label = resize_nearest(label, *_output_size(label, size))
            labels.append(label)
        return labels


def _file_of(source: str | os.PathLike) -> str | os.PathLike | BinaryIO:
    """The file that a path, an address or a base64 text stands for, which may begin with `data:image/...;base64,`."""
    if os.path.exists(source):
        return source
    text = str(source)
    if text.startswith(("http://", "https://")):
        return io.BytesIO(get_session().get(text, follow_redirects=True).raise_for_status().content)
    try:
        encoded = text.partition(",")[2] if text.startswith("data:image/") else text
        return io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
    except ValueError as error:
        raise FileNotFoundError("there is no such file, and it is neither an address nor base64") from error


def _output_size(image: Array, size: SizeDict) -> Size:
    new_size = output_size(*image.shape[-2:], size)
    check_enlargement("size", size, new_size, tuple(image.shape[-2:]))
    return new_size


def warn_of_fractions(images: list[PIL.Image.Image | Array]) -> None:
    """Say once that images which are to be rescaled lie in 0..1."""
    if any(map(_lies_in_0_to_1, images)):
        logger.warning_once(
            "Floating point images are taken to lie in 0..255 and are multiplied by `rescale_factor`; this one "
            "lies in 0..1 and becomes nearly black. Pass `do_rescale=False`, or multiply it by 255."
        )


def _lies_in_0_to_1(image: PIL.Image.Image | Array) -> bool:
    """Whether an image holds fractions from 0 to 1, which no image of 0..255 does, however dark it is, unless it has
    been computed."""
    if isinstance(image, PIL.Image.Image):
        if image.mode != "F":
            return False
        image = np.asarray(image)
    is_floating = image.is_floating_point() if isinstance(image, torch.Tensor) else image.dtype.kind == "f"
    if not is_floating or 0 in image.shape or not (image.min() >= 0 and image.max() <= 1):
        return False
    return bool((image % 1 != 0).any())


def _reduced(label: Array, index: int) -> Array:
    """The ids without the one of no class: 0 becomes 255, k becomes k - 1, 255 stays."""
    if (label == IGNORE_INDEX + 1).any():
        raise ValueError(
            f"Segmentation map {index} has the id {IGNORE_INDEX + 1}, which `do_reduce_labels` would make "
            f"{IGNORE_INDEX}, the id of ignored pixels."
        )
    label = label - 1
    label[(label == -1) | (label == IGNORE_INDEX - 1)] = IGNORE_INDEX
    return label
