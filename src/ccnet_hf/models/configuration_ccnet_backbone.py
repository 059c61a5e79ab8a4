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
"""Configuration of criss-cross attention on a feature map of any backbone."""

import copy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_ccnet_resnet import (
    MAX_CHANNELS,
    MAX_RECURRENCE,
    NAMES_OF_BACKBONES,
    CCNetConfigMixin,
    CCNetResNetConfig,
    check_backbone_config,
    check_range,
    read_backbone_config,
    with_last_feature_maps,
)
from .mistaken_names_ccnet import refuse


@strict
class CCNetBackboneConfig(CCNetConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`CCNetBackbone`]: any backbone, with recurrent criss-cross attention on one of its feature
    maps. It is a backbone's configuration itself, so that Mask2Former, MaskFormer, UperNet, DETR and all other models
    with a `backbone_config` take it.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Any backbone `AutoBackbone` knows, by default `CCNetResNetConfig(out_features=["stage1", ..., "stage4"])`.
            Its `out_features` and `out_indices` are this configuration's.
        attention_stage (`str`, defaults to `"stage4"`):
            Which of the backbone's `out_features` is attended. A backbone that names its last feature map alone, or
            none, gives those from this one on.
        attention_recurrence (`int`, defaults to 2):
            Rounds of attention with the same weights (R in the paper, section 3.3).
        query_key_size (`int`, *optional*, defaults to an eighth of the feature map's channels):
            Channels of query and key.
        out_features (`list[str]`, *optional*):
            Names of the feature maps to return, in place of those that `backbone_config` names.
        out_indices (`list[int]`, *optional*):
            The same by index.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field.

    Example:

    ```python
    >>> from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    >>> from ccnet_hf import CCNetBackboneConfig

    >>> swin = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    >>> config = Mask2FormerConfig(backbone_config=CCNetBackboneConfig(backbone_config=swin, attention_stage="stage3"))
    >>> model = Mask2FormerForUniversalSegmentation(config)
    ```
    """

    model_type = "ccnet_backbone"
    more_names: ClassVar[tuple[str, ...]] = CCNetResNetConfig.more_names
    foreign_names: ClassVar[dict[str, str]] = NAMES_OF_BACKBONES | {
        "recurrence": "attention_recurrence",
        "attention_query_key_size": "query_key_size",
    }
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig}

    backbone_config: Any = None
    attention_stage: str = "stage4"
    attention_recurrence: int = 2
    query_key_size: int | None = None

    def __post_init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        if self.backbone_config is None:
            self.backbone_config = CCNetResNetConfig(out_features=[f"stage{index}" for index in range(1, 5)])
        self.backbone_config = read_backbone_config(self.backbone_config, CCNetBackboneConfig)
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if features is not None or indices is not None:
            self.backbone_config = copy.deepcopy(self.backbone_config)
            self.set_output_features_output_indices(features, indices)
        elif self.attention_stage in (self.stage_names or ()):
            number = len(self.stage_names) - self.stage_names.index(self.attention_stage)
            self.backbone_config = with_last_feature_maps(self.backbone_config, number)
        self._check_values()
        super().__post_init__(**kwargs)

    def _check_values(self) -> None:
        check_backbone_config(self.backbone_config)
        check_range("attention_recurrence", self.attention_recurrence, 1, MAX_RECURRENCE)
        if self.query_key_size is not None:
            check_range("query_key_size", self.query_key_size, 1, MAX_CHANNELS)
        # The stages of timm's backbones have names only once there is a model.
        if self.stage_names is not None and self.attention_stage not in self.out_features:
            raise ValueError(
                f"attention_stage must be one of the backbone's out_features, {', '.join(self.out_features)}, "
                f"got {self.attention_stage!r}"
            )

    # What the feature maps are called is the business of the backbone's own configuration.

    @property
    def stage_names(self) -> list[str] | None:
        return getattr(self.backbone_config, "stage_names", None)

    @property
    def _out_features(self) -> list[str] | None:
        return getattr(self.backbone_config, "_out_features", None)

    @property
    def _out_indices(self) -> list[int] | None:
        return getattr(self.backbone_config, "_out_indices", None)

    def set_output_features_output_indices(self, out_features: list | None, out_indices: list | None) -> None:
        """Have the backbone return other feature maps; see `BackboneConfigMixin`."""
        if out_indices is not None:
            self.backbone_config.out_indices = out_indices
        else:
            self.backbone_config.out_features = out_features

    def verify_out_features_out_indices(self) -> None:
        """Raise ValueError for feature maps that the backbone does not have; see `BackboneConfigMixin`."""
        self.backbone_config.verify_out_features_out_indices()

    def to_dict(self) -> dict[str, Any]:
        """The configuration as `config.json` holds it; the feature maps stand in `backbone_config`."""
        output = super().to_dict()
        return {name: value for name, value in output.items() if name not in ("out_features", "out_indices")}


AutoConfig.register(CCNetBackboneConfig.model_type, CCNetBackboneConfig, exist_ok=True)
CCNetBackboneConfig.register_for_auto_class()

__all__ = ["CCNetBackboneConfig"]
