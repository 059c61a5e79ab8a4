"""The dilated ResNet-V1c backbone of CCNet."""

import torch
from torch import nn
from transformers import AutoBackbone
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


def in_dtype_of_weights(pixel_values: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Pixel values in the dtype of the model's first weights, unless autocast chooses the dtype of what follows.

    Raises:
        ValueError: they are no batch of images, or integers, so images that have not been normalised.
    """
    if pixel_values.dim() != 4 or 0 in pixel_values.shape[1:]:
        shape = tuple(pixel_values.shape)
        raise ValueError(f"pixel_values must be (batch, channels, height, width), with pixels, got shape {shape}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floating point, as the image processor gives them, got {pixel_values.dtype}"
        )
    if torch.is_autocast_enabled(pixel_values.device.type):
        return pixel_values
    # None of them: a replica of `torch.nn.DataParallel`.
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), pixel_values.dtype)
    return pixel_values if pixel_values.dtype == dtype else pixel_values.to(dtype)


class CCNetResNetConvLayer(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless told otherwise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
    ):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(hidden_state)))


class CCNetResNetStem(nn.Module):
    """Three 3x3 convolutions and a max pooling: a quarter of the input's size."""

    def __init__(self, config: CCNetResNetConfig):
        super().__init__()
        half = config.stem_size // 2
        self.convolutions = nn.Sequential(
            CCNetResNetConvLayer(config.num_channels, half, stride=2),
            CCNetResNetConvLayer(half, half),
            CCNetResNetConvLayer(half, config.stem_size),
        )
        self.pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=config.pool_ceil_mode)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.convolutions(pixel_values))


class CCNetResNetBottleneck(GradientCheckpointingLayer):
    """1x1, 3x3 and 1x1 convolution around a shortcut; stride and dilation sit in the 3x3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        reduced = out_channels // 4
        self.conv1 = CCNetResNetConvLayer(in_channels, reduced, kernel_size=1)
        self.conv2 = CCNetResNetConvLayer(reduced, reduced, stride=stride, dilation=dilation)
        self.conv3 = CCNetResNetConvLayer(reduced, out_channels, kernel_size=1, activation=False)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = CCNetResNetConvLayer(
                in_channels, out_channels, kernel_size=1, stride=stride, activation=False
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.conv3(self.conv2(self.conv1(hidden_state)))
        return self.activation(hidden_state + residual)


class CCNetResNetStage(nn.Module):
    """Blocks at one resolution; the first may reduce it, and may use another dilation than the rest."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, stride: int, first_dilation: int, dilation: int
    ):
        super().__init__()
        self.blocks = nn.ModuleList([CCNetResNetBottleneck(in_channels, out_channels, stride, first_dilation)])
        self.blocks.extend(CCNetResNetBottleneck(out_channels, out_channels, 1, dilation) for _ in range(depth - 1))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return hidden_state


class CCNetResNetBackbone(BackboneMixin, PreTrainedModel):
    """
    ResNet-V1c with dilated last stages, the backbone of the paper (section 4.1). With the same tensors it equals
    timm's `resnet50c` / `resnet101c` at the same output stride.
    """

    config: CCNetResNetConfig
    config_class = CCNetResNetConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    has_attentions = False
    _no_split_modules = ["CCNetResNetStem", "CCNetResNetBottleneck"]

    def __init__(self, config: CCNetResNetConfig):
        super().__init__(config)
        self.num_features = [config.stem_size, *config.hidden_sizes]
        self.stem = CCNetResNetStem(config)
        self.stages = nn.ModuleList()
        reached_stride, dilation = 4, 1
        for index, depth in enumerate(config.depths):
            stride, first_dilation = 1, dilation
            if index > 0 and reached_stride < config.output_stride:
                stride, reached_stride = 2, reached_stride * 2
            elif index > 0:
                dilation *= 2
            if not config.contract_dilation:
                first_dilation = dilation
            in_channels, out_channels = self.num_features[index : index + 2]
            self.stages.append(CCNetResNetStage(in_channels, out_channels, depth, stride, first_dilation, dilation))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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


AutoBackbone.register(CCNetResNetConfig, CCNetResNetBackbone, exist_ok=True)
CCNetResNetBackbone.register_for_auto_class("AutoBackbone")
# transformers' shared tests tell a backbone by this plain dictionary of class names, not by the registered classes.
MODEL_FOR_BACKBONE_MAPPING_NAMES[CCNetResNetConfig.model_type] = CCNetResNetBackbone.__name__

__all__ = ["CCNetResNetBackbone"]
