"""Images as they are drawn on."""

import os

import numpy as np
import torch
from PIL import Image

from ccnet_hf.errors import reading, using
from ccnet_hf.models.image_transforms_ccnet import convert_to_rgb, image_size, image_to_array, open_image, upright


AnyImage = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike


def drawable(image: AnyImage) -> Image.Image:
    """An image to draw on, upright as the results of it lie, as 8-bit RGB.

    Args:
        image: an image of any mode, the path of one, or an array (H, W), (H, W, C) or (C, H, W) of integers from 0 to
            255 with 1, 3 or 4 channels.

    Raises:
        InputError: it is none of these, or a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        with reading(image):
            return convert_to_rgb(open_image(image))
    with using("image"):
        if isinstance(image, Image.Image):
            return convert_to_rgb(upright(image))
        if not isinstance(image, np.ndarray | torch.Tensor):
            raise ValueError(
                f"`image` must be a PIL image, an array, a tensor or the path of a file, got {type(image).__name__}"
            )
        image_size(image)  # refuses what has not two or three axes
        pixels = image_to_array(image, do_convert_rgb=True)
        pixels = pixels.cpu().numpy() if isinstance(pixels, torch.Tensor) else pixels
        if pixels.dtype != np.uint8 or len(pixels) != 3:
            raise ValueError(
                f"what is drawn on has 1, 3 or 4 channels of integers from 0 to 255, got {pixels.dtype} of shape "
                f"{tuple(image.shape)}"
            )
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
