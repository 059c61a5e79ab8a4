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
"""Configuration of Mask R-CNN with criss-cross attention."""

import reprlib
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_ccnet import NAMES_OF_SEMANTIC_MODELS, CCNetModelConfigMixin
from .configuration_ccnet_backbone import CCNetBackboneConfig
from .configuration_ccnet_resnet import (
    MAX_CHANNELS,
    CCNetResNetConfig,
    check_range,
    read_backbone_config,
    with_last_feature_maps,
)
from .mistaken_names_ccnet import refuse


MAX_CONVOLUTIONS = 100
MAX_POOL_SIZE = 256
MAX_DETECTIONS = 10_000
MAX_ANCHORS_OF_IMAGE = 10**6  # or proposals, kept or drawn
MAX_ANCHORS = 100
MAX_ANCHOR = 2**16  # side in pixels, or ratio


@strict
class CCNetInstanceConfig(CCNetModelConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`CCNetForInstanceSegmentation`]. The defaults are the paper's Mask R-CNN (section 4.5) of
    ResNet-50 with a feature pyramid: recurrent criss-cross attention before the last block of the third stage. All
    that follows the backbone is torchvision's, and the fields from `rpn_pre_nms_top_n_train` on have its names and
    defaults.

    Label 0 is the background; `num_labels` counts it. A model of COCO's categories has their ids as labels, 91 with
    those that no category has, as transformers' DETR does.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone `AutoBackbone` knows with feature maps of falling resolution. By default a `CCNetResNetConfig`
            of depth 50 with torchvision's stem, an output stride of 32 and attention. Other backbones get theirs by a
            [`CCNetBackboneConfig`]. One that names its last feature map alone, or none, gives one fewer than there are
            `anchor_sizes`.
        fpn_channels (`int`, defaults to 256):
            Channels of the feature pyramid and of the convolutions on it.
        head_batch_norm (`bool`, defaults to `False`):
            Whether the feature pyramid, the box head and the mask head have batch norms, as in torchvision's second
            version.
        anchor_sizes (`list[int]`, defaults to `[32, 64, 128, 256, 512]`):
            Side of the square anchors in pixels, one for each level of the pyramid: the backbone's feature maps and
            one more.
        anchor_aspect_ratios (`list[float]`, defaults to `[0.5, 1.0, 2.0]`):
            Height over width of the anchors.
        rpn_num_convolutions (`int`, defaults to 1):
            3x3 convolutions of the region proposal network; 2 in torchvision's second version.
        box_num_convolutions (`int`, defaults to 0):
            3x3 convolutions of the box head. 0 is two fully connected layers, any other number as many convolutions
            and one such layer; 4 in torchvision's second version.
        box_hidden_size (`int`, defaults to 1024):
            Channels of the fully connected layers.
        mask_num_convolutions (`int`, defaults to 4):
            3x3 convolutions of the mask head.
        mask_pool_size (`int`, defaults to 14):
            Side of what the mask head sees of a region; masks have twice that.
        rpn_pre_nms_top_n_train (`int`, defaults to 2000):
            Anchors of every level that may become proposals, in training, and ...
        rpn_pre_nms_top_n_test (`int`, defaults to 1000):
            ... in inference.
        rpn_post_nms_top_n_train (`int`, defaults to 2000):
            Proposals of an image, in training, and ...
        rpn_post_nms_top_n_test (`int`, defaults to 1000):
            ... in inference.
        rpn_nms_thresh (`float`, defaults to 0.7):
            Of two proposals whose intersection over union is larger, the better one stays.
        rpn_fg_iou_thresh (`float`, defaults to 0.7):
            Anchors are trained to become proposals from this intersection over union with an object on, ...
        rpn_bg_iou_thresh (`float`, defaults to 0.3):
            ... and not to below this one.
        rpn_batch_size_per_image (`int`, defaults to 256):
            Anchors of an image that are drawn for the loss.
        rpn_positive_fraction (`float`, defaults to 0.5):
            At most this fraction of them are positive.
        rpn_score_thresh (`float`, defaults to 0.0):
            Least score of a proposal.
        box_score_thresh (`float`, defaults to 0.05):
            Detections have a larger score.
        box_nms_thresh (`float`, defaults to 0.5):
            Of two detections of a class whose intersection over union is larger, the better one stays.
        box_detections_per_img (`int`, defaults to 100):
            Most detections of an image, and the length that outputs are padded to.
        box_fg_iou_thresh (`float`, defaults to 0.5):
            Proposals are trained to have an object's class from this intersection over union on, ...
        box_bg_iou_thresh (`float`, defaults to 0.5):
            ... and to be background below this one.
        box_batch_size_per_image (`int`, defaults to 512):
            Proposals of an image that are drawn for the loss.
        box_positive_fraction (`float`, defaults to 0.25):
            At most this fraction of them are positive.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field.

    Example:

    ```python
    >>> from ccnet_hf import CCNetForInstanceSegmentation, CCNetInstanceConfig

    >>> model = CCNetForInstanceSegmentation(CCNetInstanceConfig(num_labels=91))
    ```
    """

    model_type = "ccnet_instance"
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_ccnet_instance.CCNetInstanceConfig",
        "AutoModelForInstanceSegmentation": "modeling_ccnet_instance.CCNetForInstanceSegmentation",
        "AutoModelForImageSegmentation": "modeling_ccnet_instance.CCNetForInstanceSegmentation",
        "AutoModelForObjectDetection": "modeling_ccnet_instance.CCNetForInstanceSegmentation",
        "AutoImageProcessor": "image_processing_ccnet_instance.CCNetInstanceImageProcessor",
    }
    foreign_names: ClassVar[dict[str, str]] = NAMES_OF_SEMANTIC_MODELS | CCNetModelConfigMixin.foreign_names
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["loss_dict"]
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}

    backbone_config: Any = None
    fpn_channels: int = 256
    head_batch_norm: bool = False
    anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_aspect_ratios: list[float] | tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_num_convolutions: int = 1
    box_num_convolutions: int = 0
    box_hidden_size: int = 1024
    mask_num_convolutions: int = 4
    mask_pool_size: int = 14
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float | int = 0.7
    rpn_fg_iou_thresh: float | int = 0.7
    rpn_bg_iou_thresh: float | int = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float | int = 0.5
    rpn_score_thresh: float | int = 0.0
    box_score_thresh: float | int = 0.05
    box_nms_thresh: float | int = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float | int = 0.5
    box_bg_iou_thresh: float | int = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float | int = 0.25

    def __post_init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        if self.backbone_config is None:
            self.backbone_config = default_backbone_config()
        self.anchor_sizes = list(self.anchor_sizes)
        self.backbone_config = read_backbone_config(self.backbone_config, CCNetBackboneConfig)
        # The feature pyramid adds one to the backbone's.
        self.backbone_config = with_last_feature_maps(self.backbone_config, len(self.anchor_sizes) - 1)
        self.anchor_aspect_ratios = list(self.anchor_aspect_ratios)
        self._read_labels(kwargs)
        super().__post_init__(**kwargs)
        self._check_values()

    def _check_number_of_labels(self, number: Any) -> None:
        if isinstance(number, int) and number < 2:
            raise ValueError(f"num_labels must be at least 2, the background and a class, got {number}")
        super()._check_number_of_labels(number)

    def _check_values(self) -> None:
        self._check_labels()
        names = [field.name for field in fields(self) if field.name.startswith(("fpn_", "rpn_", "box_", "mask_"))]
        for name in names:
            value = getattr(self, name)
            if name.endswith(("_thresh", "_fraction")):
                if not 0 <= value <= 1:
                    raise ValueError(f"{name} must be in [0, 1], got {value}")
            else:
                check_range(name, value, int(name != "box_num_convolutions"), _largest(name))
        for name in ("anchor_sizes", "anchor_aspect_ratios"):
            values = getattr(self, name)
            if not 0 < len(values) <= MAX_ANCHORS or not all(0 < value <= MAX_ANCHOR for value in values):
                raise ValueError(
                    f"{name} must be positive numbers, at least one and at most {MAX_ANCHORS}, of at most "
                    f"{MAX_ANCHOR:,}, got {reprlib.repr(values)}"
                )
        for name in ("rpn", "box"):
            negative, positive = getattr(self, f"{name}_bg_iou_thresh"), getattr(self, f"{name}_fg_iou_thresh")
            if negative > positive:
                raise ValueError(
                    f"{name}_bg_iou_thresh must not exceed {name}_fg_iou_thresh, got {negative} and {positive}"
                )


def _largest(name: str) -> int:
    """The largest value of a field of a whole number."""
    if name.endswith("_num_convolutions"):
        return MAX_CONVOLUTIONS
    others = {
        "fpn_channels": MAX_CHANNELS,
        "box_hidden_size": MAX_CHANNELS,
        "mask_pool_size": MAX_POOL_SIZE,
        "box_detections_per_img": MAX_DETECTIONS,
    }
    return others.get(name, MAX_ANCHORS_OF_IMAGE)


def default_backbone_config() -> CCNetResNetConfig:
    """The trunk of the paper's Mask R-CNN of ResNet-50."""
    return CCNetResNetConfig(
        depths=[3, 4, 6, 3],
        stem_type="conv7",
        output_stride=32,
        attention_stage="stage3",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


AutoConfig.register(CCNetInstanceConfig.model_type, CCNetInstanceConfig, exist_ok=True)
CCNetInstanceConfig.register_for_auto_class()

__all__ = ["CCNetInstanceConfig"]
