"""Layers that take the place of a CCNet model's own: only their `forward` is used, on the model's parameters."""

import torch
from torch import nn

from .criss_cross_attention import (
    criss_cross_attention,
    criss_cross_attention_residual,
    criss_cross_attention_with_weights,
)


class RecurrentCrissCrossAttention(nn.Module):
    """`recurrence` rounds of criss-cross attention with the same weights, each added gamma times to its input."""

    can_torch_compile = True
    has_backward = True

    query: nn.Module
    key: nn.Module
    value: nn.Module
    gamma: torch.Tensor
    recurrence: int
    num_heads: int
    rounds: nn.ModuleList | None

    def forward(self, hidden_state: torch.Tensor, output_attentions: bool = False, mask: torch.Tensor | None = None):
        if mask is not None or self.num_heads > 1 or self.rounds is not None:
            return self._all_rounds(hidden_state, output_attentions, mask)  # the model's own layer knows how
        attentions = ()
        for _ in range(self.recurrence):
            query, key, value = self._project(hidden_state)
            if output_attentions:
                context, weights = criss_cross_attention_with_weights(query, key, value)
                attentions += (weights,)
                hidden_state = self.gamma * context + hidden_state
            elif self.gamma.dtype == value.dtype == hidden_state.dtype and not torch.is_grad_enabled():
                hidden_state = criss_cross_attention_residual(query, key, value, self.gamma, hidden_state)
            else:
                hidden_state = self.gamma * criss_cross_attention(query, key, value) + hidden_state
        return hidden_state, attentions if output_attentions else None
