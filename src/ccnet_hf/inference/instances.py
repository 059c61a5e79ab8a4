"""From images to instances: masks, boxes, classes and scores at the size of every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from ccnet_hf.data.images import InputImage, upright_image
from ccnet_hf.errors import InputError
from ccnet_hf.models.configuration_ccnet_instance import CCNetInstanceConfig
from ccnet_hf.models.image_transforms_ccnet import image_size
from ccnet_hf.models.post_processing_instance_ccnet import check_threshold


@dataclass(frozen=True)
class Instances:
    """What is seen in an image, by falling score.

    Attributes:
        scores: (n,) float32.
        labels: (n,) int64.
        boxes: (n, 4) float32: left, top, right, bottom in pixels.
        masks: (n, height, width) bool.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


class InstancePredictor:
    """Finds instances with a model and its image processor.

    Args:
        model: a `CCNetForInstanceSegmentation` in eval mode.
        image_processor: its `CCNetInstanceImageProcessor`.
        threshold: instances with a higher score are given.

    Raises:
        InputError: the model or the processor is for something else, or the threshold is no number; and from
            `instances`, something else than a list of images.
    """

    def __init__(self, model: PreTrainedModel, image_processor: BaseImageProcessor, threshold: float = 0.0):
        if getattr(getattr(model, "config", None), "model_type", None) != CCNetInstanceConfig.model_type:
            raise InputError(f"model must be a CCNetForInstanceSegmentation, got {type(model).__name__}")
        if not hasattr(image_processor, "post_process_instance_segmentation"):
            raise InputError(
                f"image_processor must be a CCNetInstanceImageProcessor, got {type(image_processor).__name__}"
            )
        try:
            check_threshold("threshold", threshold)
        except ValueError as error:
            raise InputError(str(error)) from error
        self.model = model
        self.config = model.config
        self.image_processor = image_processor
        self.threshold = threshold

    def instances(self, images: Sequence[InputImage]) -> Iterator[Instances]:
        """The instances of every image, which pass the network in one batch; masks are made one image at a time.

        Args:
            images: PIL images, which are turned upright as their EXIF orientation says, arrays or tensors as the image
                processor takes them, or image files.
        """
        is_batch = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
        if not is_batch and not isinstance(images, list | tuple):
            raise InputError(f"instances takes a list of images, got {type(images).__name__}")
        images = [upright_image(image) for image in images]
        inputs = self.image_processor(images, return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        for index, image in enumerate(images):
            one = type(outputs)(**{name: tensor[index : index + 1] for name, tensor in outputs.items()})
            size = [image_size(image)]
            found = self.image_processor.post_process_object_detection(one, self.threshold, size)[0]
            masks = self.image_processor.post_process_instance_segmentation(
                one, self.threshold, target_sizes=size, return_binary_maps=True
            )[0]["segmentation"]
            yield Instances(*(tensor.cpu() for tensor in (found["scores"], found["labels"], found["boxes"], masks)))
