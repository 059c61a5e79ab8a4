"""Criss-cross attention (CCNet, TPAMI 2020) with CUDA kernels, on every device through PyTorch."""

from . import layers
from ._ops import ops
from .criss_cross_attention import (
    criss_cross_attention,
    criss_cross_attention_residual,
    criss_cross_attention_with_weights,
)
from .fallback import keep_pytorch_form


keep_pytorch_form(
    ops.name, ["criss_cross_attention", "criss_cross_attention_residual", "criss_cross_attention_backward"]
)

__all__ = [
    "criss_cross_attention",
    "criss_cross_attention_residual",
    "criss_cross_attention_with_weights",
    "layers",
]
