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
"""What Hugging Face's Inference Endpoints run: the checkpoint beside this file, as the task image-segmentation."""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from transformers import pipeline


_PARAMETERS = ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold")
# As in image_transforms_ccnet.py, which this file, loaded by itself, cannot import.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


class EndpointHandler:
    """
    Segments one image per request.

    Args:
        path (`str`): Folder of the checkpoint.
    """

    def __init__(self, path: str = "."):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = pipeline("image-segmentation", model=path, device=device, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Args:
            data (`dict`):
                `inputs`: the image, as a base64-encoded file (with or without `data:image/...;base64,` before it), as
                the bytes of a file, or opened by Pillow. Addresses are not fetched. `parameters`, *optional*: those
                of the task, `subtask`, `threshold`, `mask_threshold` and `overlap_mask_area_threshold`.

        Returns:
            One dictionary per segment: `label`, `score` (`None` for classes), and `mask`, a base64-encoded PNG of the
            image's size, 255 inside the segment and 0 outside.

        Raises:
            ValueError: No image, one that cannot be read, or other parameters.
        """
        parameters = data.get("parameters") or {}
        unknown = [name for name in parameters if name not in _PARAMETERS]
        if unknown:
            raise ValueError(f"`parameters` can have {', '.join(_PARAMETERS)}; got {', '.join(unknown)}.")
        segments = self.pipeline(_read(data.get("inputs")), **parameters)
        return [segment | {"mask": _encode(segment["mask"])} for segment in segments]


def _read(inputs: Any) -> Image.Image:
    if isinstance(inputs, Image.Image):
        return inputs
    if isinstance(inputs, str):
        try:
            inputs = base64.b64decode("".join(inputs.rpartition("base64,")[2].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("`inputs` must be an image file encoded in base64.") from error
    if not isinstance(inputs, bytes):
        raise ValueError(f"`inputs` must be an image: base64 text, bytes or Pillow's; got {type(inputs).__name__}.")
    try:
        Image.init()
        image = Image.open(io.BytesIO(inputs), formats=[name for name in _FORMATS if name in Image.OPEN])
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"`inputs` is no image of these formats: {', '.join(_FORMATS)}.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"`inputs` cannot be read as an image: {error}.") from error
    return image


def _encode(mask: Image.Image) -> str:
    file = io.BytesIO()
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
