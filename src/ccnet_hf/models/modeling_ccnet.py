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
"""CCNet: a backbone, recurrent criss-cross attention on its last feature map, and a classifier."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet import CCNetConfig
from .layers_ccnet import CrissCrossAttention, RecurrentCrissCrossAttention, init_attention
from .loss_ccnet import ccnet_loss
from .modeling_ccnet_resnet import CCNetResNetBackbone, PresentModulesMixin, build_backbone, in_dtype_of_weights


@dataclass
class CCNetModelOutput(BaseModelOutput):
    """
    Output of [`CCNetModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, hidden_size, height / stride, width / stride)`):
            What the classifier sees, before dropout; stride is the backbone's output stride.
        hidden_states (`tuple[torch.Tensor]`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states: its stem or embedding, then every stage; of timm's, its feature maps.
        attentions (`tuple[torch.Tensor]`, *optional*, returned when `output_attentions=True`):
            The weights of every round, as in [`CCNetSemanticSegmenterOutput`].
        feature_maps (`tuple[torch.Tensor]`):
            The backbone's feature maps; the last has fed the head, the one before it is for the auxiliary head.
        attended_hidden_state (`torch.Tensor`, *optional*, returned with a `category_consistent_loss_weight`):
            `(batch_size, hidden_size, height / stride, width / stride)`, the output of the last round of attention.
    """

    feature_maps: tuple[torch.FloatTensor, ...] | None = None
    attended_hidden_state: torch.FloatTensor | None = None


@dataclass
class CCNetDenseOutput(SemanticSegmenterOutput):
    """
    Scores of every pixel of images, and how large these were.

    `input_size`, the `(height, width)` of the images as the model got them, is an attribute and no field: it is
    neither in the tuple nor in what is exported. Post-processing tells by it whether it was given what the call of
    the processor was.
    """

    input_size = None

    def of_images(self, pixel_values: torch.Tensor) -> "CCNetDenseOutput":
        """This output, which knows from now on the size of its images `(..., height, width)`; while a program is
        traced, it learns nothing."""
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self.input_size = tuple(pixel_values.shape[-2:])
        return self


@dataclass
class CCNetSemanticSegmenterOutput(CCNetDenseOutput):
    """
    Output of [`CCNetForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` is given):
            Cross entropy of the logits (of the hard ones with OHEM) plus the weighted cross entropy of the auxiliary
            logits and the weighted category-consistent loss, as configured.
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height / stride, width / stride)`):
            Scores at the backbone's output stride.
        hidden_states (`tuple[torch.Tensor]`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states: its stem or embedding, then every stage; of timm's, its feature maps.
        attentions (`tuple[torch.Tensor]`, *optional*, returned when `output_attentions=True`):
            For each round of attention a `(batch_size, h, w, h + w)` tensor, `h` and `w` the height and width of the
            logits: every pixel's weights over its column, then over its row. They sum to 1; the pixel's own weight
            stands in the row, in the column it is 0.
        auxiliary_logits (`torch.Tensor`, *optional*, returned when `labels` is given or in training):
            `(batch_size, num_labels, h, w)` scores of the auxiliary head, of the second to last feature map's size.
        category_embeddings (`torch.Tensor`, *optional*, returned when `labels` is given or in training):
            `(batch_size, category_consistent_channels, height / stride, width / stride)`, what the category-consistent
            loss looks at.
    """

    auxiliary_logits: torch.FloatTensor | None = None
    category_embeddings: torch.FloatTensor | None = None


class CCNetConvLayer(nn.Module):
    """Convolution without bias, batch norm, activation."""

    def __init__(self, in_channels: int, out_channels: int, activation: str = "relu", kernel_size: int = 3):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = nn.LeakyReLU(0.01) if activation == "leaky_relu" else nn.ReLU()

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(hidden_state)))


class CCNetHead(GradientCheckpointingLayer):
    """Reduce the feature map, attend, and join the result with the feature map again (paper section 3.1)."""

    attention_class = RecurrentCrissCrossAttention

    def __init__(self, config: PreTrainedConfig, in_channels: int):
        super().__init__()
        size, activation = config.hidden_size, config.head_activation
        # CODEPATH: PaddleSeg's checkpoint; all others have one activation. Human parsers have no such field.
        around = getattr(config, "attention_activation", None) or activation
        self.input_projection = CCNetConvLayer(in_channels, size, around)
        self.attention = None
        # CODEPATH: every published CCNet attends; 0 is the plain FCN head, the control of every experiment.
        if config.recurrence > 0:
            self.attention = self.attention_class(size, config.query_key_size, config.recurrence)
        self.output_projection = CCNetConvLayer(size, size, around)
        # CODEPATH: all published checkpoints; False is mmsegmentation's option of that name.
        self.fusion = CCNetConvLayer(in_channels + size, size, activation) if config.concat_input else None

    def forward(
        self, feature_map: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Returns the joined map, the attended one it is made of, and the attention's weights or `None`."""
        attended = self.input_projection(feature_map)
        attentions = () if output_attentions else None
        if self.attention is not None:
            attended, attentions = self.attention(attended, output_attentions)
        return self.join(feature_map, attended), attended, attentions

    def join(self, feature_map: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What the classifier sees, of the feature map and what the attention made of it."""
        hidden_state = self.output_projection(attended)
        if self.fusion is not None:
            hidden_state = self.fusion(torch.cat([feature_map, hidden_state], dim=1))
        return hidden_state


class CCNetAuxiliaryHead(nn.Module):
    """FCN head on the second to last feature map, for its loss only."""

    def __init__(self, config: CCNetConfig, in_channels: int):
        super().__init__()
        self.projection = CCNetConvLayer(in_channels, config.auxiliary_channels, config.head_activation)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.auxiliary_channels, config.num_labels, kernel_size=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.projection(feature_map)))


class CCNetCategoryHead(nn.Conv2d):
    """1x1 convolution to the embeddings that the category-consistent loss looks at (paper, TPAMI version)."""

    def __init__(self, config: CCNetConfig):
        super().__init__(config.hidden_size, config.category_consistent_channels, kernel_size=1)


def run_backbone(
    backbone: nn.Module, pixel_values: torch.Tensor, output_hidden_states: bool
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
    """The feature maps of images (B, num_channels, H, W) of any floating dtype and, if asked for, the hidden states.

    A network of patches sees images in whole patches, see [`in_whole_patches`]. Of transformers' wrapper of timm the
    hidden states are the feature maps: it has them at best like these, and at worst an error.
    """
    pixel_values = in_whole_patches(in_dtype_of_weights(pixel_values, backbone), backbone.config)
    # Convolutions hand the layout on, and the attention reads it without a copy.
    pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    is_timm = backbone.config.model_type == "timm_backbone"
    features = backbone.forward_with_filtered_kwargs(
        pixel_values, output_hidden_states=output_hidden_states and not is_timm, return_dict=True
    )
    feature_maps = tuple(features.feature_maps)
    if not output_hidden_states:
        return feature_maps, None
    return feature_maps, feature_maps if is_timm else features.hidden_states


def in_whole_patches(pixel_values: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Enlarge images (B, C, H, W), bilinearly, to the next multiples of what a pixel of the last feature map stands
    for, so that the map covers the whole image and nothing else.

    Otherwise ConvNeXt and ViTs would leave out what is behind the last whole patch, up to 31 pixels, Swin would add as
    many, and the map would lie askew on the image. Images of such sizes, and those for networks without patches, stay
    as they are.

    Args:
        pixel_values: of a floating dtype.
        config: of the backbone.
    """
    patch = getattr(config, "patch_stride", getattr(config, "patch_size", None))
    if patch is None:
        return pixel_values
    patch = (patch, patch) if isinstance(patch, int) else patch
    halvings = len(getattr(config, "depths", [1])) - 1  # a ViT has blocks, and no stages
    units = [side * 2**halvings for side in patch]
    size = [-(-side // unit) * unit for side, unit in zip(pixel_values.shape[-2:], units, strict=True)]
    return nn.functional.interpolate(pixel_values, size, mode="bilinear", align_corners=False)


class CCNetPreTrainedModel(PresentModulesMixin, PreTrainedModel):
    """
    What all CCNet models share: configuration, initialisation, and how they are split and checkpointed.

    Gradient checkpointing runs layers twice, and so their batch norms update the running statistics twice a step.
    """

    config: CCNetConfig
    config_class = CCNetConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The loss normalises itself; the Trainer must go on dividing by its accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = [*CCNetResNetBackbone._no_split_modules, "CCNetHead", "CCNetAuxiliaryHead"]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # else transformers would copy a user's own module into the folders it saves

    def get_input_embeddings(self) -> None:
        """`None`: images come without a table of embeddings. Accelerate asks every model that FSDP2 shards."""
        return None

    def asked_for(self, output_attentions: bool | None, output_hidden_states: bool | None) -> tuple[bool, bool]:
        """Two arguments of `forward`; what is `None` is as the configuration says."""
        return (
            self.config.output_attentions if output_attentions is None else output_attentions,
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )

    def loss_of(
        self, logits: torch.Tensor, labels: torch.Tensor | None, outputs: dict[str, torch.Tensor | None], **kwargs
    ) -> torch.Tensor | None:
        """What `loss_function` makes of the logits and of the further `outputs` by name; `None` without labels."""
        if labels is None:
            return None
        if not isinstance(labels, torch.Tensor):
            raise ValueError(f"labels must be a tensor (batch, height, width), got {type(labels).__name__}")
        # With a device map the parts may lie on several devices.
        outputs = {name: None if output is None else output.to(logits.device) for name, output in outputs.items()}
        return self.loss_function(
            logits=logits,
            labels=labels.to(logits.device),
            config=self.config,
            ignore_index=self.config.semantic_loss_ignore_index,
            **outputs,
            **kwargs,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Classifiers keep what the base class gives them: normal with `initializer_range`, bias 0.
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d) and module.bias is None:
            # Batch norm follows it. Modules without parameters of their own are never asked, so ask the convolution.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, CrissCrossAttention):
            init_attention(module)


class CCNetModel(CCNetPreTrainedModel):
    """
    Backbone and recurrent criss-cross attention, without a classifier.

    `last_hidden_state` is what the classifier of [`CCNetForSemanticSegmentation`] sees, before dropout.
    """

    head_class = CCNetHead
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^auxiliary_head\.", r"^category_projection\."]

    def __init__(self, config: CCNetConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        self.head = self.head_class(config, self.backbone.channels[-1])
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CCNetModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as the image processor gives them, of any floating dtype.
            output_attentions (`bool`, *optional*):
                Whether to return the weights of every round of attention.
            output_hidden_states (`bool`, *optional*):
                Whether to return the backbone's hidden states.

        Returns:
            [`CCNetModelOutput`], or a tuple with `return_dict=False`.
        """
        return self.encode(pixel_values, output_attentions, output_hidden_states)

    def encode(
        self, pixel_values: torch.Tensor, output_attentions: bool | None, output_hidden_states: bool | None, *of_head
    ) -> CCNetModelOutput:
        """Backbone and head on images (B, num_channels, H, W); `of_head` are further arguments of the head."""
        output_attentions, output_hidden_states = self.asked_for(output_attentions, output_hidden_states)
        feature_maps, hidden_states = run_backbone(self.backbone, pixel_values, output_hidden_states)
        last_hidden_state, attended, attentions = self.head(feature_maps[-1], output_attentions, *of_head)
        return CCNetModelOutput(
            last_hidden_state=last_hidden_state,
            hidden_states=hidden_states,
            attentions=attentions,
            feature_maps=feature_maps,
            # CODEPATH: as `category_projection`, which alone looks at it.
            attended_hidden_state=attended if self.config.category_consistent_loss_weight > 0 else None,
        )


class CCNetForSemanticSegmentation(CCNetPreTrainedModel):
    """
    CCNet (Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019 / TPAMI 2020) with a
    classifier and, for training, an auxiliary head.

    Args:
        config: of the whole model, the backbone included.

    Raises:
        ValueError: the configuration asks for an auxiliary head, and the backbone gives a single feature map.
    """

    model_class = CCNetModel

    def __init__(self, config: CCNetConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)
        self.auxiliary_head = None
        # CODEPATH: all published checkpoints but our small one of CamVid, which leaves its head out.
        if config.use_auxiliary_head:
            channels = self.model.backbone.channels
            if len(channels) < 2:
                raise ValueError(
                    "the auxiliary head needs a second feature map: give the backbone two out_features or "
                    "out_indices, or set use_auxiliary_head=False; its out_features are "
                    f"{self.model.backbone.out_features}"
                )
            self.auxiliary_head = CCNetAuxiliaryHead(config, channels[-2])
        self.category_projection = None
        # CODEPATH: the TPAMI paper's training; no published checkpoint has the projection.
        if config.category_consistent_loss_weight > 0:
            self.category_projection = CCNetCategoryHead(config)
        # What `loss` is; another can be set, and gets the arguments that `forward` gives here.
        self.loss_function = ccnet_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CCNetSemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, as the image processor gives them, of any floating dtype.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Class of every pixel, or `config.semantic_loss_ignore_index`, of any integer dtype. With them the
                output has `loss`, in train and eval mode alike.
            output_attentions (`bool`, *optional*):
                Whether to return the weights of every round of attention.
            output_hidden_states (`bool`, *optional*):
                Whether to return the backbone's hidden states.

        Returns:
            [`CCNetSemanticSegmenterOutput`], or a tuple with `return_dict=False`.

        Example:

        ```python
        >>> import torch
        >>> from PIL import Image
        >>> from ccnet_hf import CCNetForSemanticSegmentation, CCNetImageProcessor

        >>> name = "checkpoints/ccnet-mobilenetv2-camvid"
        >>> model = CCNetForSemanticSegmentation.from_pretrained(name)
        >>> processor = CCNetImageProcessor.from_pretrained(name)
        >>> image = Image.open("examples/street.jpg")
        >>> inputs = processor(image, return_tensors="pt")
        >>> with torch.inference_mode():
        ...     outputs = model(**inputs)
        >>> label_map = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0]
        ```
        """
        outputs = self.model(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        return self.classify(outputs, labels, **kwargs).of_images(pixel_values)

    def classify(
        self, outputs: CCNetModelOutput, labels: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> CCNetSemanticSegmenterOutput:
        """Scores, and with labels the loss, of what the model without a classifier gives."""
        logits = self.classifier(self.dropout(outputs.last_hidden_state))

        of_loss = {"auxiliary_logits": None, "category_embeddings": None}
        if self.training or labels is not None:
            if self.auxiliary_head is not None:
                of_loss["auxiliary_logits"] = self.auxiliary_head(outputs.feature_maps[-2])
            if self.category_projection is not None and outputs.attended_hidden_state is not None:
                of_loss["category_embeddings"] = self.category_projection(outputs.attended_hidden_state)
        kwargs = {"auxiliary_loss_weight": self.config.auxiliary_loss_weight} | kwargs
        return CCNetSemanticSegmenterOutput(
            loss=self.loss_of(logits, labels, of_loss, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **of_loss,
        )


# So that `save_pretrained` writes this code beside the weights.
CCNetModel.register_for_auto_class("AutoModel")
CCNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

# The pipeline and transformers' shared tests compare class names with these plain dictionaries, not with the
# registered classes.
MODEL_MAPPING_NAMES[CCNetConfig.model_type] = CCNetModel.__name__
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[CCNetConfig.model_type] = CCNetForSemanticSegmentation.__name__

__all__ = [
    "CCNetForSemanticSegmentation",
    "CCNetModel",
    "CCNetModelOutput",
    "CCNetPreTrainedModel",
    "CCNetSemanticSegmenterOutput",
    "CrissCrossAttention",
    "RecurrentCrissCrossAttention",
]
