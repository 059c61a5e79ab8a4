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
"""The dilated ResNet-V1c backbone of CCNet."""

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_ccnet_resnet import CCNetResNetConfig
from .layers_ccnet import CrissCrossAttention, FeatureMapAttention, init_attention


class CCNetResNetFrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and shift no training changes. Equal to torchvision's `FrozenBatchNorm2d`, of
    which the semantic models need nothing else."""

    def __init__(self, num_features: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Buffer(torch.ones(num_features))
        self.bias = nn.Buffer(torch.zeros(num_features))
        self.running_mean = nn.Buffer(torch.zeros(num_features))
        self.running_var = nn.Buffer(torch.ones(num_features))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return hidden_state * scale[:, None, None] + shift[:, None, None]


def check_images(pixel_values: torch.Tensor, config: PreTrainedConfig) -> None:
    """Raise ValueError for what is no batch of images of as many channels as the configuration of a backbone says, or
    of integers, so images that have not been normalised."""
    if not isinstance(pixel_values, torch.Tensor):
        kind = type(pixel_values).__name__
        raise ValueError(f"pixel_values must be a tensor (batch, channels, height, width), got {kind}")
    shape = tuple(pixel_values.shape)
    if pixel_values.dim() != 4 or 0 in pixel_values.shape[1:]:
        raise ValueError(f"pixel_values must be (batch, channels, height, width), with pixels, got shape {shape}")
    num_channels = getattr(config, "num_channels", None)
    if num_channels is not None and shape[1] != num_channels:
        raise ValueError(
            f"pixel_values must be (batch, channels, height, width) with num_channels={num_channels}, as the backbone "
            f"is configured, got shape {shape}"
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floating point, as the image processor gives them, got {pixel_values.dtype}"
        )


def in_dtype_of_weights(pixel_values: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Pixel values in the dtype of the model's first weights, unless autocast chooses the dtype of what follows.

    Raises:
        ValueError: as [`check_images`].
    """
    check_images(pixel_values, model.config)
    device_type = pixel_values.device.type
    # The meta device knows no autocast, and refuses the question whether it is on.
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return pixel_values
    for weight in model.parameters():
        if weight.is_floating_point():
            return pixel_values.to(weight.dtype)
    return pixel_values  # for a replica of `torch.nn.DataParallel`, which has no parameters


class CCNetResNetConvLayer(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless told otherwise."""

    def __init__(
        self,
        config: CCNetResNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
    ):
        super().__init__()
        # CODEPATH: Mask R-CNN's checkpoints keep ImageNet's statistics; all others train theirs.
        batch_norm = CCNetResNetFrozenBatchNorm if config.frozen_batch_norm else nn.BatchNorm2d
        padding = dilation * (kernel_size // 2)
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=False
        )
        self.normalization = batch_norm(out_channels, eps=config.batch_norm_eps)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(hidden_state)))


class CCNetResNetStem(nn.Module):
    """Three 3x3 convolutions, or one of 7x7, and a max pooling: a quarter of the input's size."""

    def __init__(self, config: CCNetResNetConfig):
        super().__init__()
        size, half = config.stem_size, config.stem_size // 2
        # CODEPATH: torchvision's ImageNet and COCO weights; mmsegmentation's and the authors' have the deep stem.
        if config.stem_type == "conv7":
            layers = [CCNetResNetConvLayer(config, config.num_channels, size, kernel_size=7, stride=2)]
        else:
            layers = [
                CCNetResNetConvLayer(config, config.num_channels, half, stride=2),
                CCNetResNetConvLayer(config, half, half),
                CCNetResNetConvLayer(config, half, size),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=config.pool_ceil_mode)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.convolutions(pixel_values))


class CCNetResNetBottleneck(GradientCheckpointingLayer):
    """1x1, 3x3 and 1x1 convolution around a shortcut; stride and dilation sit in the 3x3."""

    def __init__(
        self, config: CCNetResNetConfig, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1
    ):
        super().__init__()
        reduced = out_channels // 4
        self.conv1 = CCNetResNetConvLayer(config, in_channels, reduced, kernel_size=1)
        self.conv2 = CCNetResNetConvLayer(config, reduced, reduced, stride=stride, dilation=dilation)
        self.conv3 = CCNetResNetConvLayer(config, reduced, out_channels, kernel_size=1, activation=False)
        self.shortcut_pooling, shortcut_stride = nn.Identity(), stride
        # CODEPATH: PaddleSeg's checkpoint; the shortcuts of all others skip pixels.
        if config.pooled_shortcut and stride != 1:
            self.shortcut_pooling = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            shortcut_stride = 1
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = CCNetResNetConvLayer(
                config, in_channels, out_channels, kernel_size=1, stride=shortcut_stride, activation=False
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(self.shortcut_pooling(hidden_state))
        hidden_state = self.conv3(self.conv2(self.conv1(hidden_state)))
        return self.activation(hidden_state + residual)


class CCNetResNetStage(nn.Module):
    """Blocks at one resolution, the `index`-th after the stem; the first block may reduce the resolution, and may use
    another dilation than the rest."""

    def __init__(self, config: CCNetResNetConfig, index: int, stride: int, first_dilation: int, dilation: int):
        super().__init__()
        in_channels, channels = [config.stem_size, *config.hidden_sizes][index - 1 : index + 1]
        depth = config.depths[index - 1]
        self.blocks = nn.ModuleList([CCNetResNetBottleneck(config, in_channels, channels, stride, first_dilation)])
        self.blocks.extend(CCNetResNetBottleneck(config, channels, channels, 1, dilation) for _ in range(depth - 1))
        self.attention = None
        # CODEPATH: the paper's Mask R-CNN attends in the trunk; semantic checkpoints in their head.
        if config.attention_stage == f"stage{index}":
            self.attention = FeatureMapAttention(
                channels, config.attention_query_key_size, config.attention_recurrence
            )
        # The number of blocks that the attention comes after.
        # CODEPATH: the paper's Mask R-CNN attends before the last block; "after" is for experiments.
        self.attended_blocks = depth if config.attention_position == "after" else depth - 1

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.blocks, start=1):
            hidden_state = block(hidden_state)
            if self.attention is not None and number == self.attended_blocks:
                hidden_state, _ = self.attention(hidden_state)
        return hidden_state


class CheckedConfigMixin:
    """A model that refuses a configuration whose fields have been set to what they may not be."""

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        config.check()


class PresentModulesMixin(CheckedConfigMixin):
    """A model whose instances name those of `_no_split_modules` that they have: FSDP looks for every one of them, and
    refuses a model that lacks one."""

    def post_init(self):
        super().post_init()
        self._no_split_modules = self._no_split_modules & {type(module).__name__ for module in self.modules()}


class CCNetResNetBackbone(PresentModulesMixin, BackboneMixin, PreTrainedModel):
    """
    ResNet-V1c with dilated last stages, the backbone of the paper (section 4.1). With the same tensors it equals
    timm's `resnet50c` / `resnet101c` at the same output stride, and with a stem of one convolution torchvision's
    `resnet50` / `resnet101`.
    """

    config: CCNetResNetConfig
    config_class = CCNetResNetConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    has_attentions = False
    _no_split_modules = ["CCNetResNetStem", "CCNetResNetBottleneck", "FeatureMapAttention"]
    # Whether batch norms are frozen is up to who loads the weights; only those that are not count their batches.
    _keys_to_ignore_on_load_missing = [r"\.num_batches_tracked$"]
    _keys_to_ignore_on_load_unexpected = [r"\.num_batches_tracked$"]

    def __init__(self, config: CCNetResNetConfig):
        super().__init__(config)
        self.num_features = [config.stem_size, *config.hidden_sizes]
        self.stem = CCNetResNetStem(config)
        self.stages = nn.ModuleList()
        reached_stride, dilation = 4, 1
        for index in range(1, len(config.depths) + 1):
            stride, first_dilation = 1, dilation
            # CODEPATH: 8 in all published checkpoints of a ResNet; 32 under Mask R-CNN.
            if index > 1 and reached_stride < config.output_stride:
                stride, reached_stride = 2, reached_stride * 2
            elif index > 1:
                dilation *= 2
            # CODEPATH: the authors' checkpoints dilate every block alike; mmsegmentation halves the first's dilation.
            if not config.contract_dilation:
                first_dilation = dilation
            self.stages.append(CCNetResNetStage(config, index, stride, first_dilation, dilation))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, CCNetResNetFrozenBatchNorm):
            for buffer in (module.weight, module.running_var):
                init.ones_(buffer)
            for buffer in (module.bias, module.running_mean):
                init.zeros_(buffer)
        elif isinstance(module, CrissCrossAttention):
            init_attention(module)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images, of any floating dtype.
            output_hidden_states (`bool`, *optional*):
                Whether to return the outputs of the stem and of every stage as `hidden_states`.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`] with `feature_maps`, one
            `(batch_size, channels, height / stride, width / stride)` tensor for every entry of `config.out_features`;
            or a tuple with `return_dict=False`.
        """
        hidden_states = (self.stem(in_dtype_of_weights(pixel_values, self)),)
        for stage in self.stages:
            hidden_states += (stage(hidden_states[-1]),)
        feature_maps = tuple(
            hidden_state
            for name, hidden_state in zip(self.stage_names, hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states)


def build_backbone(config: PreTrainedConfig, *further: type[PreTrainedModel]) -> PreTrainedModel:
    """The backbone of a configuration, with random weights.

    Args:
        config: of any backbone.
        further: backbones of this package besides `CCNetResNetBackbone` that are taken by their model type, as in
            [`read_backbone_config`].
    """
    ours = {kind.config_class.model_type: kind for kind in (CCNetResNetBackbone, *further)}
    # CODEPATH: the zoo's checkpoints and ImageNet's have CCNet's ResNet, all others a backbone of transformers. Not
    # through AutoBackbone, which compares classes: as remote code, the configuration's module exists twice.
    if config.model_type in ours:
        return ours[config.model_type](config)
    return AutoBackbone.from_config(config)


AutoBackbone.register(CCNetResNetConfig, CCNetResNetBackbone, exist_ok=True)
CCNetResNetBackbone.register_for_auto_class("AutoBackbone")
# transformers' shared tests tell a backbone by this plain dictionary of class names, not by the registered classes.
MODEL_FOR_BACKBONE_MAPPING_NAMES[CCNetResNetConfig.model_type] = CCNetResNetBackbone.__name__

__all__ = ["CCNetResNetBackbone"]
