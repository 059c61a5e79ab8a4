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
"""Criss-cross attention on a feature map of any backbone."""

import torch
from torch import nn
from transformers import AutoBackbone
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet_backbone import CCNetBackboneConfig
from .layers_ccnet import CrissCrossAttention, FeatureMapAttention, init_attention
from .modeling_ccnet_resnet import CheckedConfigMixin, build_backbone, check_images


class CCNetBackbone(CheckedConfigMixin, BackboneMixin, PreTrainedModel):
    """
    Any backbone, with recurrent criss-cross attention on one of its feature maps. It returns all feature maps of the
    backbone, that one attended. gamma starts at 0, so that they are the backbone's own until it is trained.

    Args:
        config: of the backbone and the attention.

    Raises:
        ValueError: the backbone does not return the feature map that is to be attended.

    Example:

    ```python
    >>> from transformers import Mask2FormerForUniversalSegmentation
    >>> from ccnet_hf import CCNetBackbone, CCNetBackboneConfig

    >>> model = Mask2FormerForUniversalSegmentation.from_pretrained("facebook/mask2former-swin-tiny-coco-instance")
    >>> swin = model.model.pixel_level_module.encoder
    >>> config = CCNetBackboneConfig(backbone_config=swin.config, attention_stage="stage3")
    >>> attended = CCNetBackbone(config)
    >>> attended.backbone.load_state_dict(swin.state_dict())
    >>> model.model.pixel_level_module.encoder, model.config.backbone_config = attended, config
    ```
    """

    config: CCNetBackboneConfig
    config_class = CCNetBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["FeatureMapAttention"]

    def __init__(self, config: CCNetBackboneConfig):
        backbone = build_backbone(config.backbone_config, CCNetBackbone)
        config.backbone_config = backbone.config  # which by now names the stages of a backbone of timm's, too
        super().__init__(config)
        self.num_features = [backbone.out_feature_channels[name] for name in self.stage_names]
        self.has_attentions = backbone.has_attentions
        self.backbone = backbone
        self.attention = FeatureMapAttention(
            self.out_feature_channels[config.attention_stage], config.query_key_size, config.attention_recurrence
        )
        # The backbone has hooks that capture its hidden states. A second set, which `post_init` would hang in for a
        # model around it, captures all of them twice.
        self._output_capturing_hooks_installed = True
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrissCrossAttention):
            init_attention(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> tuple | BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            output_hidden_states (`bool`, *optional*):
                Whether to return the backbone's hidden states, which the attention does not touch.
            output_attentions (`bool`, *optional*):
                Whether to return the attentions of the backbone, if it has any; those of criss-cross attention are
                not among them.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`] with `feature_maps`, one
            `(batch_size, channels, height / stride, width / stride)` tensor for every entry of the backbone's
            `out_features`; or a tuple with `return_dict=False`.

        Raises:
            ValueError: pixel values that are no batch of floating point images of the backbone's number of channels,
                or the feature map has no height and width.
        """
        check_images(pixel_values, self.backbone.config)
        outputs = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        feature_maps = list(outputs.feature_maps)
        index = self.out_features.index(self.config.attention_stage)
        if feature_maps[index].dim() != 4:
            raise ValueError(
                "criss-cross attention needs a feature map (batch, channels, height, width), and "
                f"{type(self.backbone).__name__} gives one of shape {tuple(feature_maps[index].shape)}"
            )
        feature_maps[index], _ = self.attention(feature_maps[index])
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


AutoBackbone.register(CCNetBackboneConfig, CCNetBackbone, exist_ok=True)
CCNetBackbone.register_for_auto_class("AutoBackbone")
# transformers' shared tests tell a backbone by this plain dictionary of class names, not by the registered classes.
MODEL_FOR_BACKBONE_MAPPING_NAMES[CCNetBackboneConfig.model_type] = CCNetBackbone.__name__

__all__ = ["CCNetBackbone"]
