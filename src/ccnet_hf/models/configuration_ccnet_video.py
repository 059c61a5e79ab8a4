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
"""Configuration of CCNet for video."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_ccnet import CCNetConfig
from .configuration_ccnet_resnet import check_range


MAX_FRAMES = 1000


@strict
class CCNetVideoConfig(CCNetConfig):
    r"""
    Configuration of a [`CCNetForVideoSegmentation`]: CCNet whose attention looks along time, too (paper, TPAMI
    version, 3-D criss-cross attention). All of [`CCNetConfig`], and:

    Args:
        recurrence (`int`, defaults to 3):
            How often the attention is applied. It takes three rounds until every pixel of every frame reaches every
            other. From a file of a [`CCNetConfig`] its own comes, 2 by default: those weights were trained with it.
        num_frames (`int`, defaults to 5):
            Frames of a clip in training and streaming. The model takes clips of any length.

    Example:

    ```python
    >>> from ccnet_hf import CCNetForVideoSegmentation, CCNetVideoConfig

    >>> model = CCNetForVideoSegmentation(CCNetVideoConfig(num_labels=11))
    ```
    """

    model_type = "ccnet_video"
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_ccnet_video.CCNetVideoConfig",
        "AutoModelForSemanticSegmentation": "modeling_ccnet_video.CCNetForVideoSegmentation",
        "AutoVideoProcessor": "video_processing_ccnet.CCNetVideoProcessor",
    }

    recurrence: int = 3
    num_frames: int = 5

    def _check_values(self) -> None:
        super()._check_values()
        check_range("num_frames", self.num_frames, 1, MAX_FRAMES)

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As every configuration's; that of an image model is one for clips of the same weights."""
        config, kwargs = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") == CCNetConfig.model_type:
            fields = {name: value for name, value in config.items() if name not in ("auto_map", "architectures")}
            config = {"recurrence": CCNetConfig.recurrence} | fields | {"model_type": cls.model_type}
        return config, kwargs


CCNetVideoConfig.register_for_auto_class()

__all__ = ["CCNetVideoConfig"]
