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
"""Configuration of the dilated ResNet-V1c that CCNet is built on."""

import copy
import math
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .mistaken_names_ccnet import mistaken_names, refuse, warn


# Beyond these a mistyped number would eat the memory of the machine before anything fails.
MAX_CHANNELS = 8192
MAX_BLOCKS = 1000
MAX_WEIGHTS = 2 * 10**9
MAX_RECURRENCE = 100

# What transformers' own models write into their files where they have no such backbone.
_OFF_BY_DEFAULT = ("use_pretrained_backbone", "use_timm_backbone")


def own_fields(kind: type[PreTrainedConfig]) -> set[str]:
    """The fields of a class of configurations that not all configurations have."""
    return {field.name for field in fields(kind)} - {field.name for field in fields(PreTrainedConfig)}


class CCNetConfigMixin:
    """
    What CCNet's configurations share beyond transformers' own: names that look like a field's but are not are refused
    in Python and kept, with a warning, from a file; what is given while a file is loaded is checked like the rest.
    """

    # Names that are taken beside the fields, and what users of other libraries or of another configuration mean by
    # some of theirs. Those that stand for a field count where there is that field.
    more_names: ClassVar[tuple[str, ...]] = ("num_labels", "id2label", "label2id")
    foreign_names: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As every configuration's."""
        refuse(cls, cls._mistaken_names(kwargs))
        mistaken = cls._mistaken_names(config_dict)
        warn(cls, mistaken)
        loaded = super().from_dict({name: config_dict[name] for name in config_dict if name not in mistaken}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in mistaken:
            setattr(config, name, config_dict[name])
        config._check_values()
        return loaded

    def check(self) -> None:
        """Raise ValueError for a value outside what is allowed: fields can be set at any time, and so every model asks
        this before it is built."""
        self._check_values()

    @classmethod
    def _mistaken_names(cls, values: dict[str, Any]) -> dict[str, str]:
        """Name -> what was probably meant, of values that ask for something, which `None` does not."""
        known = own_fields(cls) | set(cls.more_names)
        foreign = {
            name: meant
            for name, meant in cls.foreign_names.items()
            if name not in known and (meant in known or not meant.isidentifier())
        }
        names = [
            name
            for name, value in values.items()
            if value is not None
            and not (value is False and name in _OFF_BY_DEFAULT)
            and not hasattr(PreTrainedConfig, name)
        ]
        return mistaken_names(names, known, foreign)


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise ValueError if the value of the field `name` is outside `least..most`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}, got {value}")


@strict
class CCNetResNetConfig(CCNetConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a [`CCNetResNetBackbone`]: a bottleneck ResNet-V1c (three 3x3 convolutions as the stem) whose last
    stages trade stride for dilation. The defaults are mmsegmentation's `ResNetV1c` of depth 101 at output stride 8.
    With a stem of one convolution and at output stride 32 it is torchvision's ResNet, the trunk of Mask R-CNN, and
    recurrent criss-cross attention may stand among its blocks.

    Args:
        num_channels (`int`, defaults to 3):
            Channels of the input image.
        stem_type (`str`, defaults to `"deep"`):
            `"deep"`, three 3x3 convolutions, or `"conv7"`, the one 7x7 convolution of torchvision's networks.
        stem_size (`int`, defaults to 64):
            Channels of the stem: 64 in mmsegmentation (32, 32, 64), 128 in the authors' network (64, 64, 128).
        hidden_sizes (`list[int]`, defaults to `[256, 512, 1024, 2048]`):
            Channels of each stage, multiples of 4.
        depths (`list[int]`, defaults to `[3, 4, 23, 3]`):
            Bottleneck blocks of each stage; `[3, 4, 6, 3]` is ResNet-50.
        output_stride (`int`, defaults to 8):
            Input pixels per pixel of the fourth stage's feature map, along each side: 8, 16 or 32.
        contract_dilation (`bool`, defaults to `True`):
            Whether the first block of a dilated stage uses half its dilation, as mmsegmentation's and timm's networks
            do. The authors' network does not.
        pool_ceil_mode (`bool`, defaults to `False`):
            Whether the max pooling of the stem rounds its output size up, as the authors' network does.
        pooled_shortcut (`bool`, defaults to `False`):
            Whether a shortcut that halves the resolution takes the mean of 2x2 pixels before its convolution, instead
            of every other pixel: ResNet-V1d, as PaddleSeg's network.
        frozen_batch_norm (`bool`, defaults to `False`):
            Whether the batch norms keep their statistics, scales and shifts in training too, as with few images a
            device they must.
        batch_norm_eps (`float`, defaults to 1e-5):
            Added to the variance in every batch norm; 0 in torchvision's published Mask R-CNN.
        attention_stage (`str`, *optional*):
            Stage that holds recurrent criss-cross attention, such as `"stage3"` in the paper's Mask R-CNN (section
            4.5). Its weight gamma starts at 0, so that the network starts as it is without.
        attention_position (`str`, defaults to `"before_last_block"`):
            Where in that stage: `"before_last_block"` (between the fifth and sixth of six blocks) or `"after"` them.
        attention_recurrence (`int`, defaults to 2):
            Rounds of that attention, with the same weights.
        attention_query_key_size (`int`, *optional*, defaults to an eighth of the stage's channels):
            Channels of its query and key.
        out_features (`list[str]`, *optional*):
            Names of the feature maps to return, among `"stem"`, `"stage1"`, ... The last stage if unset.
        out_indices (`list[int]`, *optional*):
            The same by index.

    Raises:
        ValueError: for a value outside what is allowed; the message names the field.
    """

    model_type = "ccnet_resnet"
    more_names: ClassVar[tuple[str, ...]] = (
        *CCNetConfigMixin.more_names,
        "out_features",
        "out_indices",
        "stage_names",
    )
    foreign_names: ClassVar[dict[str, str]] = {
        "layers": "depths",
        "in_channels": "num_channels",
        "in_chans": "num_channels",
        "recurrence": "attention_recurrence",
        "query_key_size": "attention_query_key_size",
    }

    num_channels: int = 3
    stem_type: str = "deep"
    stem_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    output_stride: int = 8
    contract_dilation: bool = True
    pool_ceil_mode: bool = False
    pooled_shortcut: bool = False
    frozen_batch_norm: bool = False
    batch_norm_eps: float | int = 1e-5
    attention_stage: str | None = None
    attention_position: str = "before_last_block"
    attention_recurrence: int = 2
    attention_query_key_size: int | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        refuse(type(self), self._mistaken_names(kwargs))
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        self._check_values()
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _check_values(self) -> None:
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {self.output_stride}")
        check_range("num_channels", self.num_channels, 1, MAX_CHANNELS)
        check_range("stem_size", self.stem_size, 2, MAX_CHANNELS)
        if self.stem_size % 2:
            raise ValueError(f"stem_size must be even, got {self.stem_size}")
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                "depths and hidden_sizes must be of one length, at least 1, "
                f"got depths={self.depths} and hidden_sizes={self.hidden_sizes}"
            )
        if min(self.depths) < 1 or sum(self.depths) > MAX_BLOCKS:
            raise ValueError(f"depths must be positive and together at most {MAX_BLOCKS}, got {self.depths}")
        if min(self.hidden_sizes) < 4 or any(size % 4 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be positive multiples of 4, got {self.hidden_sizes}")
        # Of a block: 1x1, 3x3 and 1x1 convolution with a quarter of the channels inside.
        weights = sum(depth * size**2 * 17 // 16 for depth, size in zip(self.depths, self.hidden_sizes, strict=True))
        if weights > MAX_WEIGHTS:
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes} make about {weights:.1e} weights, "
                f"at most {MAX_WEIGHTS:.0e} are allowed"
            )
        if self.stem_type not in ("deep", "conv7"):
            raise ValueError(f"stem_type must be 'deep' or 'conv7', got {self.stem_type!r}")
        if not (math.isfinite(self.batch_norm_eps) and self.batch_norm_eps >= 0):
            raise ValueError(f"batch_norm_eps must be a finite number, at least 0, got {self.batch_norm_eps}")
        self._check_attention()

    def _check_attention(self) -> None:
        if self.attention_position not in ("before_last_block", "after"):
            raise ValueError(
                f"attention_position must be 'before_last_block' or 'after', got {self.attention_position!r}"
            )
        check_range("attention_recurrence", self.attention_recurrence, 1, MAX_RECURRENCE)
        if self.attention_query_key_size is not None:
            check_range("attention_query_key_size", self.attention_query_key_size, 1, MAX_CHANNELS)
        if self.attention_stage is None:
            return
        stages = [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        if self.attention_stage not in stages:
            allowed = ", ".join(stages)
            raise ValueError(f"attention_stage must be one of {allowed} or None, got {self.attention_stage!r}")
        depth = self.depths[stages.index(self.attention_stage)]
        if self.attention_position == "before_last_block" and depth < 2:
            raise ValueError(
                f"attention_position 'before_last_block' needs two blocks, and {self.attention_stage} has {depth}: "
                "'after' works there"
            )


_BACKBONE = "the configuration of a backbone, such as TimmBackboneConfig(backbone='resnet50')"

# Of whoever has a `backbone_config`: names that belong there.
NAMES_OF_BACKBONES = {
    **dict.fromkeys(
        (*sorted(own_fields(CCNetResNetConfig)), *CCNetResNetConfig.foreign_names, "out_features", "out_indices"),
        "backbone_config",
    ),
    **dict.fromkeys(("backbone", "pretrained", "backbone_kwargs", *_OFF_BY_DEFAULT), f"backbone_config, {_BACKBONE}"),
}


def read_backbone_config(config: dict | PreTrainedConfig, *further: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration of a backbone from what a model's configuration was given or has read.

    Args:
        config: a configuration, or its content with a `model_type`.
        further: configurations of this package besides `CCNetResNetConfig` that are taken by their class and not by
            their registration: as remote code, the classes exist twice.

    Raises:
        ValueError: transformers does not know its model type, or it is not a backbone's.
    """
    if isinstance(config, PreTrainedConfig):
        check_backbone_config(config)
        return config
    if not isinstance(config, dict):
        raise ValueError(f"backbone_config must be {_BACKBONE}, got {config!r}")
    model_type = config.get("model_type")
    ours = {kind.model_type: kind for kind in (CCNetResNetConfig, *further)}
    if isinstance(model_type, str) and model_type in ours:
        return ours[model_type].from_dict(config)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config must name a model_type that transformers knows, or {' or '.join(map(repr, ours))}, "
            f"got {model_type!r}"
        )
    config = CONFIG_MAPPING[model_type].from_dict(config)
    check_backbone_config(config)
    return config


def check_backbone_config(config: PreTrainedConfig) -> None:
    """Raise ValueError for the configuration of what is no backbone."""
    if not isinstance(config, BackboneConfigMixin):
        raise ValueError(
            "backbone_config must be a backbone's configuration, which names its out_features; "
            f"{type(config).__name__} is none"
        )


def with_last_feature_maps(config: PreTrainedConfig, number: int) -> PreTrainedConfig:
    """The configuration of a backbone itself, or, where it names no feature map and so has the last alone, a copy with
    the last `number`."""
    indices, stages = config.out_indices, getattr(config, "stage_names", None)
    if indices is None or len(indices) != 1:
        return config
    # timm's stages are known once there is a model: until then the one that is named counts as the last.
    last = indices[0] if stages is None else len(stages) - 1
    if stages is not None and indices[0] % len(stages) != last:
        return config
    first = last - max(number, 1) + 1
    wanted = list(range(first if last < 0 else max(first, 0), last + 1))
    if len(wanted) == 1:
        return config
    config = copy.deepcopy(config)
    config.out_indices = wanted
    return config


# A checkpoint names its backbone by model type only, so whoever can read this file must be able to look it up.
AutoConfig.register(CCNetResNetConfig.model_type, CCNetResNetConfig, exist_ok=True)
CCNetResNetConfig.register_for_auto_class()

__all__ = ["CCNetResNetConfig"]
