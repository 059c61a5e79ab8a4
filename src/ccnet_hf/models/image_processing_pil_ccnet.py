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
"""Image processor of CCNet, PIL backend: the same pixels by NumPy alone, without torchvision."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from .image_processing_common_ccnet import CCNetImageProcessorKwargs, CCNetImageProcessorMixin


if TYPE_CHECKING:  # read by transformers, which saves and loads a module with what it says it imports of its siblings
    from .image_processing_ccnet import CCNetImageProcessor  # noqa: F401


class CCNetImageProcessorPil(CCNetImageProcessorMixin, PilBackend):
    """[`CCNetImageProcessor`] without torchvision: same arguments, same results."""

    valid_kwargs = CCNetImageProcessorKwargs

    def _to_backend(self, array: np.ndarray | torch.Tensor, device: str | torch.device | None) -> np.ndarray:
        return array.cpu().numpy() if isinstance(array, torch.Tensor) else array

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float],
        image_std: float | list[float],
        do_letterbox: bool | None = False,
        **kwargs,
    ) -> list[np.ndarray]:
        processed = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, do_letterbox)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image)
        return processed


CCNetImageProcessorPil.register_for_auto_class()

__all__ = ["CCNetImageProcessorPil"]
