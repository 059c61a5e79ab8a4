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
"""CCNet for human parsing: CE2P's network with recurrent criss-cross attention as its context module."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet_parsing import NUM_FEATURE_MAPS, CCNetParsingConfig
from .loss_ccnet_parsing import ccnet_parsing_loss
from .modeling_ccnet import (
    CCNetCategoryHead,
    CCNetConvLayer,
    CCNetDenseOutput,
    CCNetHead,
    CCNetPreTrainedModel,
    run_backbone,
)
from .modeling_ccnet_resnet import build_backbone


_PYRAMID_SIZES = (1, 2, 3, 6)  # pixels of the pooled maps along each side, as in PSPNet


@dataclass
class CCNetHumanParsingOutput(CCNetDenseOutput):
    """
    Output of [`CCNetForHumanParsing`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` is given):
            Cross entropy of the logits, plus the weighted losses of the parsing logits, of the edge logits and of the
            category embeddings, as configured.
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height / 4, width / 4)`):
            Scores of the final classifier, which sees the features of the decoder and of the edge branch, at the size
            of the backbone's first feature map.
        hidden_states (`tuple[torch.Tensor]`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states, as in [`CCNetSemanticSegmenterOutput`].
        attentions (`tuple[torch.Tensor]`, *optional*, returned when `output_attentions=True`):
            For each round of attention a `(batch_size, h, w, h + w)` tensor, as in [`CCNetSemanticSegmenterOutput`],
            `h` and `w` the height and width of the backbone's last feature map. Empty with pyramid pooling.
        parsing_logits (`torch.Tensor`, *optional*, returned when `labels` is given or in training):
            `(batch_size, num_labels, height / 4, width / 4)` scores of the decoder's classifier.
        edge_logits (`torch.Tensor`, *optional*, returned when `labels` is given or in training):
            `(batch_size, 2, height / 4, width / 4)` scores of "no edge" and "edge".
        category_embeddings (`torch.Tensor`, *optional*, returned when `labels` is given or in training):
            `(batch_size, category_consistent_channels, h, w)`, what the category-consistent loss looks at.
    """

    parsing_logits: torch.FloatTensor | None = None
    edge_logits: torch.FloatTensor | None = None
    category_embeddings: torch.FloatTensor | None = None


class CCNetPyramidPooling(GradientCheckpointingLayer):
    """CE2P's own context module: the feature map and its means over 1, 4, 9 and 36 regions, joined."""

    def __init__(self, config: CCNetParsingConfig, in_channels: int):
        super().__init__()
        size, activation = config.hidden_size, config.head_activation
        self.align_corners = config.align_corners
        self.sizes = _PYRAMID_SIZES
        self.projections = nn.ModuleList(
            CCNetConvLayer(in_channels, size, activation, kernel_size=1) for _ in self.sizes
        )
        self.fusion = CCNetConvLayer(in_channels + size * len(self.sizes), size, activation)

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, None, tuple[()] | None]:
        """Returns the joined map, and nothing in the places of what [`CCNetHead`] returns of its attention."""
        pooled = []
        for size, projection in zip(self.sizes, self.projections, strict=True):
            means = projection(nn.functional.adaptive_avg_pool2d(feature_map, size))
            pooled.append(_resize_like(means, feature_map, self.align_corners))
        return self.fusion(torch.cat([*pooled, feature_map], dim=1)), None, () if output_attentions else None


class CCNetParsingDecoder(GradientCheckpointingLayer):
    """Bring the context to the size of the first feature map, and join the two."""

    def __init__(self, config: CCNetParsingConfig, in_channels: int):
        super().__init__()
        size, shortcut, activation = config.decoder_channels, config.shortcut_channels, config.head_activation
        self.align_corners = config.align_corners
        self.context_projection = CCNetConvLayer(config.hidden_size, size, activation, kernel_size=1)
        self.shortcut_projection = CCNetConvLayer(in_channels, shortcut, activation, kernel_size=1)
        self.fusion = nn.Sequential(
            CCNetConvLayer(size + shortcut, size, activation, kernel_size=1),
            CCNetConvLayer(size, size, activation, kernel_size=1),
        )

    def forward(self, context: torch.Tensor, first_feature_map: torch.Tensor) -> torch.Tensor:
        context = _resize_like(self.context_projection(context), first_feature_map, self.align_corners)
        return self.fusion(torch.cat([context, self.shortcut_projection(first_feature_map)], dim=1))


class CCNetEdgeBranch(GradientCheckpointingLayer):
    """Features of the borders between the parts from the first three feature maps, and their logits for the loss."""

    def __init__(self, config: CCNetParsingConfig, in_channels: list[int]):
        super().__init__()
        size = config.edge_channels
        self.align_corners = config.align_corners
        self.projections = nn.ModuleList(
            CCNetConvLayer(channels, size, config.head_activation, kernel_size=1) for channels in in_channels
        )
        self.classifier = nn.Conv2d(size, 2, kernel_size=3, padding=1)  # one for all scales
        self.fusion_classifier = nn.Conv2d(2 * len(in_channels), 2, kernel_size=1)

    def forward(
        self, feature_maps: tuple[torch.Tensor, ...], output_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the features (B, 3 * edge_channels, h, w) of the first map's size, and the logits (B, 2, h, w)."""
        first = feature_maps[0]
        features = [
            projection(feature_map) for projection, feature_map in zip(self.projections, feature_maps, strict=True)
        ]
        joined = torch.cat([_resize_like(feature, first, self.align_corners) for feature in features], dim=1)
        if not output_logits:
            return joined, None
        logits = [_resize_like(self.classifier(feature), first, self.align_corners) for feature in features]
        return joined, self.fusion_classifier(torch.cat(logits, dim=1))


class CCNetForHumanParsing(CCNetPreTrainedModel):
    """
    CE2P (Liu et al., "Devil in the Details: Towards Accurate Single and Multiple Human Parsing", AAAI 2019) with
    recurrent criss-cross attention as its context module, as the CCNet paper uses it on LIP (TPAMI 2020), or with its
    own pyramid pooling.

    Args:
        config: of the whole model, the backbone included.

    Raises:
        ValueError: the backbone gives fewer than four feature maps.
    """

    config: CCNetParsingConfig
    config_class = CCNetParsingConfig
    base_model_prefix = ""
    _no_split_modules = [
        *CCNetPreTrainedModel._no_split_modules,
        "CCNetPyramidPooling",
        "CCNetParsingDecoder",
        "CCNetEdgeBranch",
    ]

    def __init__(self, config: CCNetParsingConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        if len(self.backbone.channels) < NUM_FEATURE_MAPS:
            raise ValueError(
                f"human parsing needs {NUM_FEATURE_MAPS} feature maps: give the backbone so many out_features or "
                f"out_indices; its out_features are {self.backbone.out_features}"
            )
        first, second, third, last = self.backbone.channels[-NUM_FEATURE_MAPS:]
        # CODEPATH: the paper's network attends; the published files of CE2P and SCHP have pyramid pooling.
        context_module = CCNetHead if config.context_module == "rcca" else CCNetPyramidPooling
        self.context = context_module(config, last)
        self.decoder = CCNetParsingDecoder(config, first)
        self.parsing_classifier = nn.Conv2d(config.decoder_channels, config.num_labels, kernel_size=1)
        self.edge_branch = CCNetEdgeBranch(config, [first, second, third])
        joined = config.decoder_channels + 3 * config.edge_channels
        self.fusion = CCNetConvLayer(joined, config.decoder_channels, config.head_activation, kernel_size=1)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.decoder_channels, config.num_labels, kernel_size=1)
        self.category_projection = None
        # CODEPATH: the TPAMI paper's training; no published checkpoint has the projection.
        if config.category_consistent_loss_weight > 0:
            self.category_projection = CCNetCategoryHead(config)
        # As in [`CCNetForSemanticSegmentation`].
        self.loss_function = ccnet_parsing_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CCNetHumanParsingOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as the image processor gives them.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Class of every pixel, or `config.semantic_loss_ignore_index`, of any integer dtype; what the edge
                branch is trained on is made of them. With them the output has `loss`, in train and eval mode alike.
            output_attentions (`bool`, *optional*):
                Whether to return the weights of every round of attention.
            output_hidden_states (`bool`, *optional*):
                Whether to return the backbone's hidden states.

        Returns:
            [`CCNetHumanParsingOutput`], or a tuple with `return_dict=False`.
        """
        output_attentions, output_hidden_states = self.asked_for(output_attentions, output_hidden_states)
        feature_maps, hidden_states = run_backbone(self.backbone, pixel_values, output_hidden_states)
        first, second, third, last = feature_maps[-NUM_FEATURE_MAPS:]
        context, attended, attentions = self.context(last, output_attentions)
        parsing_features = self.decoder(context, first)
        has_loss = self.training or labels is not None
        edge_features, edge_logits = self.edge_branch((first, second, third), has_loss)
        fused = self.fusion(torch.cat([parsing_features, edge_features], dim=1))
        logits = self.classifier(self.dropout(fused))

        parsing_logits = category_embeddings = None
        if has_loss:
            parsing_logits = self.parsing_classifier(parsing_features)
            if self.category_projection is not None and self.config.category_consistent_loss_weight > 0:
                category_embeddings = self.category_projection(attended)

        of_loss = {
            "parsing_logits": parsing_logits,
            "edge_logits": edge_logits,
            "category_embeddings": category_embeddings,
        }
        output = CCNetHumanParsingOutput(
            loss=self.loss_of(logits, labels, of_loss, **kwargs),
            logits=logits,
            hidden_states=hidden_states,
            attentions=attentions,
            **of_loss,
        )
        return output.of_images(pixel_values)


def _resize_like(feature_map: torch.Tensor, other: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """A feature map at the height and width of another, bilinear."""
    return nn.functional.interpolate(feature_map, other.shape[-2:], mode="bilinear", align_corners=align_corners)


# So that `save_pretrained` writes this code beside the weights.
CCNetForHumanParsing.register_for_auto_class("AutoModelForSemanticSegmentation")

# The pipeline and transformers' shared tests compare class names with this plain dictionary, not with the registered
# classes.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[CCNetParsingConfig.model_type] = CCNetForHumanParsing.__name__

__all__ = ["CCNetForHumanParsing", "CCNetHumanParsingOutput"]
