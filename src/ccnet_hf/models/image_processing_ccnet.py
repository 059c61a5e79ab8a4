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
"""Image processor of CCNet, torchvision backend: the default, batched and able to run on a GPU."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import SizeDict

from .image_processing_common_ccnet import CCNetImageProcessorKwargs, CCNetImageProcessorMixin


if TYPE_CHECKING:  # read by transformers, which saves and loads a module with what it says it imports of its siblings
    from .image_processing_pil_ccnet import CCNetImageProcessorPil  # noqa: F401


class CCNetImageProcessor(CCNetImageProcessorMixin, TorchvisionBackend):
    r"""Prepares images for CCNet and makes segmentation maps of its outputs, by the rules of mmsegmentation.

    Images are resized as OpenCV does it (bilinear, no antialiasing, to the bit), segmentation maps by nearest
    neighbour.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 1024, "longest_edge": 2048}`):
            The longer side becomes at most `"longest_edge"` pixels and the shorter one at most `"shortest_edge"`, as
            large as the ratio of both allows. `{"height": ..., "width": ...}` resizes to exactly that size.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply values by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1/255`): That factor.
        do_normalize (`bool`, *optional*, defaults to `True`):
            Whether to subtract `image_mean` and divide by `image_std`.
        image_mean (`list[float]`, *optional*): One number per channel, after rescaling; ImageNet's by default.
        image_std (`list[float]`, *optional*): Likewise.
        do_pad (`bool`, *optional*, defaults to `False`):
            Whether to pad images of different sizes to the largest height and width of the batch (or `pad_size`),
            right and below, with the mean colour (zeros after normalization), and segmentation maps with 255. Without,
            they raise.
        pad_size (`dict[str, int]`, *optional*): `{"height": ..., "width": ...}` to pad to.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            Whether to convert images of other modes and grey or four-channel arrays to RGB.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether label 0 is no class, as in ADE20K: 0 becomes 255 (ignored), k becomes k - 1, 255 stays 255.
        do_letterbox (`bool`, *optional*, defaults to `False`):
            Whether resizing keeps the ratio and fits the image into the middle of `size` (`"height"` and `"width"`),
            with black around it before normalization and 255 in segmentation maps: CE2P's affine warp, for human
            parsing.
        letterbox_inverse (`str`, *optional*, defaults to `"logits"`):
            How post-processing undoes that: `"logits"` warps logits bilinearly and then chooses classes, `"labels"`
            chooses classes and then warps their map by nearest neighbour, as the papers' scores are computed.
        align_corners (`bool`, *optional*, defaults to `False`): Of the resizes of logits in post-processing.
        palette (`list[list[int]]`, *optional*): One RGB colour per class.
    """

    valid_kwargs = CCNetImageProcessorKwargs

    def _to_backend(self, array: np.ndarray | torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
        if isinstance(array, np.ndarray):
            array = torch.tensor(np.ascontiguousarray(array))
        return array if device is None else array.to(device)

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
        do_letterbox: bool | None = False,
        disable_grouping: bool | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, stacked in groups.items():
            if do_resize:
                stacked = self.resize(stacked, size, do_letterbox)
            groups[shape] = self.rescale_and_normalize(
                stacked, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        return reorder_images(groups, order)


CCNetImageProcessor.register_for_auto_class()

__all__ = ["CCNetImageProcessor"]
