# Copyright 2026 The ccnet_hf authors. All rights reserved.
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

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations import use_kernel_forward_from_hub
from transformers.modeling_layers import GradientCheckpointingLayer

from .criss_cross_attention import criss_cross_attention_round, criss_cross_attention_with_weights


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


class CrissCrossAttention(nn.Module):
    """
    Criss-cross attention (paper section 3.2, equations 1 and 2): every pixel gathers values from its row and its
    column, and adds gamma times the result to itself.

    gamma starts at 0, as in the paper: an untrained layer returns its input unchanged.

    Args:
        hidden_size: channels of input, value and output.
        query_key_size: channels of query and key; an eighth of `hidden_size` if `None`.

    Raises:
        ValueError: one of them is no integer of at least 1.
    """

    def __init__(self, hidden_size: int, query_key_size: int | None = None):
        super().__init__()
        _check_positive("hidden_size", hidden_size)
        if query_key_size is None:
            query_key_size = max(1, hidden_size // 8)
        _check_positive("query_key_size", query_key_size)
        self.query = nn.Conv2d(hidden_size, query_key_size, kernel_size=1)
        self.key = nn.Conv2d(hidden_size, query_key_size, kernel_size=1)
        self.value = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)
        # One element rather than a scalar, which FSDP could not shard.
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_state: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Args:
            hidden_state: (B, hidden_size, H, W).
            output_attentions: whether to return the attention weights, by way of the explicit form.

        Returns:
            (B, hidden_size, H, W), and a tuple with the weights (B, H, W, H + W) of the round, or `None`.
        """
        query, key, value = self.query(hidden_state), self.key(hidden_state), self.value(hidden_state)
        if output_attentions:
            context, weights = criss_cross_attention_with_weights(query, key, value)
            return self.gamma * context + hidden_state, (weights,)
        return criss_cross_attention_round(query, key, value, self.gamma, hidden_state), None


@use_kernel_forward_from_hub("RecurrentCrissCrossAttention")
class RecurrentCrissCrossAttention(CrissCrossAttention):
    """
    Criss-cross attention applied `recurrence` times with the same weights (paper section 3.3). Two rounds let every
    pixel reach every other.

    Args:
        hidden_size: channels of input, value and output.
        query_key_size: channels of query and key; an eighth of `hidden_size` if `None`.
        recurrence: number of rounds, R in the paper, at least 1.

    Raises:
        ValueError: one of them is no integer of at least 1.
    """

    def __init__(self, hidden_size: int, query_key_size: int | None = None, recurrence: int = 2):
        super().__init__(hidden_size, query_key_size)
        _check_positive("recurrence", recurrence)
        self.recurrence = recurrence

    def forward(
        self, hidden_state: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """As [`CrissCrossAttention.forward`], with one tensor of weights for each round."""
        attentions = ()
        for _ in range(self.recurrence):
            hidden_state, weights = super().forward(hidden_state, output_attentions)
            attentions += weights or ()
        return hidden_state, attentions if output_attentions else None


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
    """Give an attention layer the weights it starts with: its projections PyTorch's, gamma 0. Weights that have been
    loaded stay."""
    for projection in (attention.query, attention.key, attention.value):
        bound = projection.in_channels**-0.5
        init.uniform_(projection.weight, -bound, bound)
        init.uniform_(projection.bias, -bound, bound)
    init.zeros_(attention.gamma)


__all__ = ["CrissCrossAttention", "FeatureMapAttention", "RecurrentCrissCrossAttention", "init_attention"]
