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
"""The layers that criss-cross attention comes in, for every model and backbone."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations import use_kernel_forward_from_hub
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ccnet_resnet import MAX_CHANNELS, MAX_RECURRENCE, check_range
from .criss_cross_attention import (
    criss_cross_attention,
    criss_cross_attention_round,
    criss_cross_attention_with_weights,
)


def _check_positive(name: str, value: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    check_range(name, value, 1, most)


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

# What other implementations call the parts of the layer, and what they are called here.
_FOREIGN_NAMES = {"query_conv.": "query.", "key_conv.": "key.", "value_conv.": "value.", "gamma.scale": "gamma"}


class CrissCrossAttention(nn.Module):
    """
    Criss-cross attention (paper section 3.2, equations 1 and 2): every pixel gathers values from its row and its
    column, and adds gamma times the result to itself. The same for signals with one axis and for volumes or clips with
    three, where a position looks along every axis through it.

    gamma starts at 0, as in the paper: an untrained layer returns its input unchanged. `load_state_dict` takes the
    names of the authors' and of mmcv's module, too (`query_conv`, `key_conv`, `value_conv`, `gamma` of any shape with
    one element), and a kernel of size 1 with another number of axes.

    Args:
        hidden_size: channels of input, value and output.
        query_key_size: channels of query and key; an eighth of `hidden_size` if `None`.
        num_axes: spatial axes of the input, 1 to 3.
        gamma_init: what gamma starts at.
        num_heads: parts that the channels are divided into, each of which attends for itself.

    Raises:
        ValueError: a size is no integer of at least 1, or beyond what a configuration takes, `num_axes` is above 3,
            the channels cannot be divided among the heads, or `gamma_init` is not finite.
    """

    def __init__(
        self,
        hidden_size: int,
        query_key_size: int | None = None,
        *,
        num_axes: int = 2,
        gamma_init: float = 0.0,
        num_heads: int = 1,
    ):
        super().__init__()
        self._set_up(hidden_size, query_key_size, num_axes, gamma_init, num_heads)
        self._add_parameters()

    def _set_up(
        self, hidden_size: int, query_key_size: int | None, num_axes: int, gamma_init: float, num_heads: int
    ) -> None:
        _check_positive("hidden_size", hidden_size, MAX_CHANNELS)
        if query_key_size is None:
            query_key_size = max(1, hidden_size // 8)
        sizes = {"query_key_size": query_key_size, "num_axes": num_axes, "num_heads": num_heads}
        for name, value in sizes.items():
            _check_positive(name, value, MAX_CHANNELS)
        if num_axes > 3:
            raise ValueError(f"num_axes must be 1, 2 or 3, got {num_axes}")
        for name, value in (("hidden_size", hidden_size), ("query_key_size", query_key_size)):
            if value % num_heads:
                raise ValueError(f"{name} must be a multiple of num_heads, got {value} for {num_heads} heads")
        if not math.isfinite(gamma_init):
            raise ValueError(f"gamma_init must be a finite number, got {gamma_init}")
        self.hidden_size, self.query_key_size, self.gamma_init = hidden_size, query_key_size, gamma_init
        self.num_axes, self.num_heads = num_axes, num_heads

    def _add_parameters(self) -> None:
        convolution = _CONVOLUTIONS[self.num_axes]
        self.query = convolution(self.hidden_size, self.query_key_size, kernel_size=1)
        self.key = convolution(self.hidden_size, self.query_key_size, kernel_size=1)
        self.value = convolution(self.hidden_size, self.hidden_size, kernel_size=1)
        # One element rather than a scalar, which FSDP could not shard.
        self.gamma = nn.Parameter(torch.full((1,), float(self.gamma_init)))
        self.register_load_state_dict_pre_hook(_rename_foreign)

    def forward(
        self, hidden_state: torch.Tensor, output_attentions: bool = False, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            hidden_state: (B, hidden_size, *spatial), such as (B, hidden_size, H, W).
            output_attentions: whether to return the attention weights, by way of the explicit form.
            mask: (B, *spatial), true where there is something and false where a smaller image, volume or clip is
                padded to its batch. Nobody looks at what is padded, and it is returned as it was.

        Returns:
            (B, hidden_size, *spatial), and a tuple with the weights of the round, or `None`: (B, H, W, H + W) of
            images, generally (B, *spatial, sum of the spatial sizes), with several heads (B, num_heads, ...).

        Raises:
            ValueError: input or mask of another shape, or an input of integers.
        """
        if hidden_state.dim() != self.num_axes + 2:
            raise ValueError(
                f"an attention with num_axes={self.num_axes} takes (batch, channels, {self.num_axes} spatial axes), "
                f"got {tuple(hidden_state.shape)}"
            )
        if hidden_state.shape[1] != self.hidden_size or not hidden_state.is_floating_point():
            raise ValueError(
                f"an attention with hidden_size={self.hidden_size} takes so many channels, of a floating point dtype, "
                f"got {tuple(hidden_state.shape)} of {hidden_state.dtype}"
            )
        return self._attend(hidden_state, output_attentions, mask)

    def _project(self, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query(hidden_state), self.key(hidden_state), self.value(hidden_state)

    def _attend(
        self, hidden_state: torch.Tensor, output_attentions: bool, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        if mask is not None or self.num_heads > 1:
            return self._attend_masked(hidden_state, output_attentions, mask)
        query, key, value = self._project(hidden_state)
        if output_attentions:
            context, weights = criss_cross_attention_with_weights(query, key, value)
            return self.gamma * context + hidden_state, (weights,)
        return criss_cross_attention_round(query, key, value, self.gamma, hidden_state), None

    def _attend_masked(
        self, hidden_state: torch.Tensor, output_attentions: bool, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """The same attention for every head, and blind to what `mask` excludes, by way of the operator itself."""
        batch, spatial, heads = len(hidden_state), hidden_state.shape[2:], self.num_heads
        excluded, source = None, hidden_state
        if mask is not None:
            if mask.shape != (batch, *spatial):
                raise ValueError(f"mask must be (batch, *spatial), here {(batch, *spatial)}, got {tuple(mask.shape)}")
            excluded = ~mask.to(hidden_state.device, torch.bool)[:, None]
            source = hidden_state.masked_fill(excluded, 0)  # else a NaN in the padding would count 0 times
        # Heads are further examples to the operator.
        query, key, value = (projected.reshape(batch * heads, -1, *spatial) for projected in self._project(source))
        if excluded is not None:
            # One more channel, whose product is 0 for what counts, and so low for what does not that its weight is 0.
            lowest = torch.finfo(query.dtype).min / 2
            penalty = excluded.to(query.dtype).repeat_interleave(heads, dim=0) * lowest
            query, key = torch.cat([query, torch.ones_like(penalty)], dim=1), torch.cat([key, penalty], dim=1)
        if output_attentions:
            context, weights = criss_cross_attention_with_weights(query, key, value)
            weights = (weights.unflatten(0, (batch, heads)) if heads > 1 else weights,)
        else:
            context, weights = criss_cross_attention(query, key, value), None
        context = context.reshape(batch, -1, *spatial)
        if excluded is not None:
            context = context.masked_fill(excluded, 0)
        return self.gamma * context + hidden_state, weights


@use_kernel_forward_from_hub("RecurrentCrissCrossAttention")
class RecurrentCrissCrossAttention(CrissCrossAttention):
    """
    Criss-cross attention applied `recurrence` times, with the same weights unless asked otherwise (paper section 3.3).
    Two rounds let every pixel reach every other; with three axes it takes three.

    Args:
        hidden_size: channels of input, value and output.
        query_key_size: channels of query and key; an eighth of `hidden_size` if `None`.
        recurrence: number of rounds, R in the paper, 1 to 100.
        num_axes: spatial axes of the input, 1 to 3.
        gamma_init: what gamma starts at.
        share_weights: whether all rounds have one set of weights, `query`, `key`, `value` and `gamma`, as in the
            paper. Otherwise each has its own in `rounds`; `load_state_dict` gives a shared set to all of them.
        num_heads: parts that the channels are divided into, each of which attends for itself.

    Raises:
        ValueError: as [`CrissCrossAttention`].
    """

    def __init__(
        self,
        hidden_size: int,
        query_key_size: int | None = None,
        recurrence: int = 2,
        *,
        num_axes: int = 2,
        gamma_init: float = 0.0,
        share_weights: bool = True,
        num_heads: int = 1,
    ):
        nn.Module.__init__(self)
        self._set_up(hidden_size, query_key_size, num_axes, gamma_init, num_heads)
        _check_positive("recurrence", recurrence, MAX_RECURRENCE)
        self.recurrence = recurrence
        self.rounds = None
        if share_weights:
            self._add_parameters()
        else:
            options = {"num_axes": num_axes, "gamma_init": gamma_init, "num_heads": num_heads}
            self.rounds = nn.ModuleList(
                CrissCrossAttention(hidden_size, query_key_size, **options) for _ in range(recurrence)
            )
            self.register_load_state_dict_pre_hook(_repeat_for_rounds)

    def forward(
        self, hidden_state: torch.Tensor, output_attentions: bool = False, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """As [`CrissCrossAttention.forward`], with one tensor of weights for each round."""
        # Apart from this method, which a kernel from the Hub replaces, and falls back from.
        return self._all_rounds(hidden_state, output_attentions, mask)

    def _all_rounds(
        self, hidden_state: torch.Tensor, output_attentions: bool, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        attentions = ()
        for number in range(self.recurrence):
            if self.rounds is None:
                hidden_state, weights = super().forward(hidden_state, output_attentions, mask)
            else:
                hidden_state, weights = self.rounds[number](hidden_state, output_attentions, mask)
            attentions += weights or ()
        return hidden_state, attentions if output_attentions else None


def _rename_foreign(module: CrissCrossAttention, state_dict: dict, prefix: str, *_) -> None:
    """Let `load_state_dict` find the entries of other implementations, and those of another number of axes."""
    for theirs, ours in _FOREIGN_NAMES.items():
        for key in [key for key in state_dict if key.startswith(prefix + theirs)]:
            state_dict[prefix + ours + key.removeprefix(prefix + theirs)] = state_dict.pop(key)
    for name, parameter in module.named_parameters():
        found = state_dict.get(prefix + name)
        same_channels = found is not None and (name == "gamma" or found.shape[:2] == parameter.shape[:2])
        if same_channels and found.numel() == parameter.numel():
            state_dict[prefix + name] = found.reshape(parameter.shape)


def _repeat_for_rounds(module: RecurrentCrissCrossAttention, state_dict: dict, prefix: str, *_) -> None:
    """Give every round the one set of weights of a file with shared ones."""
    names = ("query.", "key.", "value.", "gamma", *_FOREIGN_NAMES)
    for key in [key for key in state_dict if key.startswith(tuple(prefix + name for name in names))]:
        tensor = state_dict.pop(key)
        for number in range(module.recurrence):
            state_dict[f"{prefix}rounds.{number}.{key.removeprefix(prefix)}"] = tensor


class FeatureMapAttention(GradientCheckpointingLayer, RecurrentCrissCrossAttention):
    """
    [`RecurrentCrissCrossAttention`] between layers of a network that knows nothing of it: gradient checkpointing runs
    it twice, and its result lies in memory as its input does, so that with gamma 0 the network computes what it
    computes without it, to the bit.
    """

    def forward(
        self, hidden_state: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """As [`RecurrentCrissCrossAttention.forward`]."""
        attended, attentions = super().forward(hidden_state, output_attentions)
        return attended.contiguous() if hidden_state.is_contiguous() else attended, attentions


def init_attention(attention: CrissCrossAttention) -> None:
    """Give an attention layer the weights it starts with: its projections PyTorch's, gamma 0 or what it was told.
    Weights that have been loaded stay."""
    if not hasattr(attention, "query"):
        return  # every round has weights of its own, and is asked for itself
    for projection in (attention.query, attention.key, attention.value):
        bound = projection.in_channels**-0.5
        init.uniform_(projection.weight, -bound, bound)
        init.uniform_(projection.bias, -bound, bound)
    init.constant_(attention.gamma, attention.gamma_init)


__all__ = ["CrissCrossAttention", "FeatureMapAttention", "RecurrentCrissCrossAttention", "init_attention"]
