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
"""Configuration of CCNet for human parsing."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_ccnet import (
    FURTHER_LOSS_FIELDS,
    MAX_RECURRENCE,
    NAMES_OF_SEMANTIC_MODELS,
    CCNetModelConfigMixin,
    check_inference,
)
from .configuration_ccnet_resnet import (
    MAX_CHANNELS,
    CCNetResNetConfig,
    check_range,
    read_backbone_config,
    with_last_feature_maps,
)
from .mistaken_names_ccnet import refuse


NUM_FEATURE_MAPS = 4


@strict
class CCNetParsingConfig(CCNetModelConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`CCNetForHumanParsing`]: CE2P's network (Liu et al., AAAI 2019) with recurrent criss-cross
    attention as its context module, as the paper uses it on LIP, or with CE2P's own pyramid pooling.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone `AutoBackbone` knows that gives four feature maps, by default CE2P's: a `CCNetResNetConfig`
            with a stem of 128 channels, output stride 16 and dilations that are not contracted. The first feature map
            gives the size of the logits, the last one feeds the context module, the first three the edge branch. One
            that names its last feature map alone, or none, gives the last four.
        context_module (`str`, defaults to `"rcca"`):
            `"rcca"`, recurrent criss-cross attention, or `"pyramid"`, the pyramid pooling of CE2P's and SCHP's
            checkpoints.
        hidden_size (`int`, defaults to 512):
            Channels of the context module.
        query_key_size (`int`, *optional*, defaults to `hidden_size // 8`):
            Channels of query and key in the attention. Of `"rcca"` only, as the next two.
        recurrence (`int`, defaults to 2):
            How often the criss-cross attention is applied with the same weights. 0 leaves it out.
        concat_input (`bool`, defaults to `True`):
            Whether the backbone's last feature map is concatenated to the attended one.
        head_activation (`str`, defaults to `"leaky_relu"`):
            `"leaky_relu"` (slope 0.01) as in CE2P, or `"relu"`, of everything behind the backbone.
        decoder_channels (`int`, defaults to 256):
            Channels of the decoder and of what the final classifier sees.
        shortcut_channels (`int`, defaults to 48):
            Channels of the first feature map where the decoder takes it in.
        edge_channels (`int`, defaults to 256):
            Channels of each of the edge branch's three maps.
        classifier_dropout_prob (`float`, defaults to 0.1):
            Channel dropout before the final classifier.
        parsing_loss_weight (`float`, defaults to 1.0):
            Weight of the cross entropy of the decoder's own logits. That of the final ones has weight 1.
        edge_loss_weight (`float`, defaults to 1.0):
            Weight of the edge branch's loss.
        category_consistent_loss_weight (`float`, defaults to 0.0):
            Weight of the category-consistent loss on the attention's output. 0 leaves it and its projection out; only
            `"rcca"` takes another.
        category_consistent_channels (`int`, defaults to 16):
            Channels that loss sees, a 1x1 convolution of the attention's output.
        category_consistent_per_image (`bool`, defaults to `False`):
            Whether that loss gathers the classes in every image for itself rather than over the batch.
        lovasz_loss_weight (`float`, defaults to 0.0):
            Weight of the Lovász-softmax loss, which is added to the cross entropy of both classifiers.
        dice_loss_weight (`float`, defaults to 0.0):
            Likewise of the Dice loss.
        focal_loss_weight (`float`, defaults to 0.0):
            Likewise of the focal loss.
        focal_loss_gamma (`float`, defaults to 2.0):
            How little the focal loss counts pixels that are learnt already; 0 is cross entropy.
        align_corners (`bool`, defaults to `True`):
            How feature maps and logits are resized, in the network, in the loss and in inference.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count. The image processors always write 255.
        inference (`dict`, defaults to `{"mode": "whole"}`):
            The protocol the checkpoint is scored with, as in [`CCNetConfig`].
        initializer_range (`float`, defaults to 0.01):
            Standard deviation of the classifiers' initial weights.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field.

    Example:

    ```python
    >>> from ccnet_hf import CCNetForHumanParsing, CCNetParsingConfig

    >>> model = CCNetForHumanParsing(CCNetParsingConfig(num_labels=20))
    ```
    """

    model_type = "ccnet_parsing"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["parsing_logits", "edge_logits", "category_embeddings"]
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}
    remote_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_ccnet_parsing.CCNetParsingConfig",
        "AutoModelForSemanticSegmentation": "modeling_ccnet_parsing.CCNetForHumanParsing",
    }
    foreign_names: ClassVar[dict[str, str]] = NAMES_OF_SEMANTIC_MODELS | CCNetModelConfigMixin.foreign_names

    backbone_config: Any = None
    context_module: str = "rcca"
    hidden_size: int = 512
    query_key_size: int | None = None
    recurrence: int = 2
    concat_input: bool = True
    head_activation: str = "leaky_relu"
    decoder_channels: int = 256
    shortcut_channels: int = 48
    edge_channels: int = 256
    classifier_dropout_prob: float | int = 0.1
    parsing_loss_weight: float | int = 1.0
    edge_loss_weight: float | int = 1.0
    category_consistent_loss_weight: float | int = 0.0
    category_consistent_channels: int = 16
    category_consistent_per_image: bool = False
    lovasz_loss_weight: float | int = 0.0
    dice_loss_weight: float | int = 0.0
    focal_loss_weight: float | int = 0.0
    focal_loss_gamma: float | int = 2.0
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255
    inference: dict[str, Any] | None = None
    initializer_range: float | int = 0.01

    def __post_init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        if self.backbone_config is None:
            self.backbone_config = CCNetResNetConfig(
                stem_size=128,
                output_stride=16,
                contract_dilation=False,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            )
        self.backbone_config = with_last_feature_maps(read_backbone_config(self.backbone_config), NUM_FEATURE_MAPS)
        self.inference = check_inference(self.inference)
        self._read_labels(kwargs)
        super().__post_init__(**kwargs)
        self._check_values()

    def _check_values(self) -> None:
        self._check_labels()
        self._check_ignore_index()
        check_range("recurrence", self.recurrence, 0, MAX_RECURRENCE)
        channels = ("hidden_size", "decoder_channels", "shortcut_channels", "edge_channels")
        for name in (*channels, "category_consistent_channels"):
            check_range(name, getattr(self, name), 1, MAX_CHANNELS)
        if self.query_key_size is not None:
            check_range("query_key_size", self.query_key_size, 1, MAX_CHANNELS)
        choices = {"context_module": ("rcca", "pyramid"), "head_activation": ("relu", "leaky_relu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(f"classifier_dropout_prob must be in [0, 1), got {self.classifier_dropout_prob}")
        weights = ("parsing_loss_weight", "edge_loss_weight", "category_consistent_loss_weight")
        for name in (*weights, *FURTHER_LOSS_FIELDS, "initializer_range"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {getattr(self, name)}")
        if self.category_consistent_loss_weight > 0 and self.context_module != "rcca":
            raise ValueError(
                "category_consistent_loss_weight must be 0 without attention to look at, got "
                f"{self.category_consistent_loss_weight} with context_module={self.context_module!r}"
            )


CCNetParsingConfig.register_for_auto_class()

__all__ = ["CCNetParsingConfig"]
