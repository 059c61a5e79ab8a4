"""Other ways to compute what the operator computes, or what the paper compares it with: the yardsticks."""

from collections.abc import Callable

import torch
from torch import nn


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Query, key, value (lines, n, channels) and whether a position leaves out itself: output and log-sum-exp (lines, n).
LineAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, bool],
    tuple[torch.Tensor, torch.Tensor],
]


def einsum_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two-dimensional criss-cross attention as published PyTorch code writes it, on NCHW tensors.

    Scores of columns and rows by einsum, a pixel's own entry of its column masked with -inf, one softmax over both,
    two einsum products.

    Args:
        query: (B, D, H, W).
        key: (B, D, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    height = query.shape[2]
    own_place = query.new_full((height,), float("-inf")).diag()
    column = torch.einsum("bdhw,bdiw->bhwi", query, key) + own_place[:, None]
    row = torch.einsum("bdhw,bdhj->bhwj", query, key)
    weights = torch.cat([column, row], dim=-1).softmax(dim=-1)
    column, row = weights[..., :height], weights[..., height:]
    output = torch.einsum("bciw,bhwi->bchw", value, column)
    output += torch.einsum("bchj,bhwj->bchw", value, row)
    return output


def merged_attention(
    attend: LineAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Two attentions that know nothing of each other, over columns and over rows, merged by their log-sum-exp.

    Args:
        attend: attention over batches of lines.
        query: (B, D, H, W).
        key: (B, D, H, W).
        value: (B, C, H, W), with H > 1.

    Returns:
        (B, C, H, W).
    """
    parts = []
    for permutation, masked in (((0, 3, 2, 1), True), ((0, 2, 3, 1), False)):
        lines = [tensor.permute(permutation) for tensor in (query, key, value)]
        output, logsumexp = attend(*(line.flatten(0, 1) for line in lines), masked)
        output, logsumexp = (part.unflatten(0, lines[0].shape[:2]) for part in (output, logsumexp))
        parts.append((output.transpose(1, 2), logsumexp.transpose(1, 2)) if masked else (output, logsumexp))
    (column, column_sum), (row, row_sum) = parts
    total = torch.logaddexp(column_sum, row_sum)
    shares = ((part - total).exp().unsqueeze(-1).to(value.dtype) for part in (column_sum, row_sum))
    return (column * next(shares) + row * next(shares)).permute(0, 3, 1, 2)


def dense_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grad_output: torch.Tensor | None = None
) -> Callable[[], None]:
    """The matrix products that criss-cross attention cannot do without, and nothing else: of rows and of columns.

    Args:
        query: (B, D, H, W).
        key: (B, D, H, W).
        value: (B, C, H, W).
        grad_output: (B, C, H, W), for the products of the backward pass as well.

    Returns:
        A function that computes the scores and the weighted sums along both axes, four products, and with
        `grad_output` the ten of the backward pass, from dense copies made beforehand into results that exist.
    """
    products = []
    for permutation in ((0, 2, 3, 1), (0, 3, 2, 1)):
        tensors = (query, key, value) if grad_output is None else (query, key, value, grad_output)
        lines = [tensor.permute(permutation).flatten(0, 1).contiguous() for tensor in tensors]
        line_query, line_key, line_value = lines[:3]
        weights = torch.bmm(line_query, line_key.transpose(1, 2)).softmax(-1)
        operands = [(line_query, line_key.transpose(1, 2)), (weights, line_value)]
        if grad_output is not None:
            # The scores again, their gradient, and the gradients of query, key and value.
            operands += [(line_query, line_key.transpose(1, 2)), (lines[3], line_value.transpose(1, 2))]
            operands += [(weights, line_key)]
            operands += [(weights.transpose(1, 2), line) for line in (line_query, lines[3])]
        products += [(left, right, torch.bmm(left, right)) for left, right in operands]

    def multiply() -> None:
        for left, right, result in products:
            torch.bmm(left, right, out=result)

    return multiply


def efficient_line_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, masked: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's memory-efficient scaled dot product attention on CUDA, the one that takes values of another width."""
    length = query.shape[1]
    bias = None
    if masked:
        # The kernel wants rows of the bias at multiples of 16 elements.
        bias = query.new_zeros((length, -(-length // 16) * 16))[:, :length]
        bias.fill_diagonal_(float("-inf"))
        bias = bias.expand(query.shape[0], 1, length, length)
    output, logsumexp, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        *(tensor.unsqueeze(1) for tensor in (query, key, value)), bias, True, scale=1.0
    )
    return output.squeeze(1), logsumexp[:, 0, :length]


def sdpa_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two calls of PyTorch's attention, merged; on CUDA, forward only (its log-sum-exp has no gradient)."""
    return merged_attention(efficient_line_attention, query, key, value)


def non_local_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of every position to every position, the non-local block's (Wang et al., CVPR 2018).

    Args:
        query: (B, D, H, W).
        key: (B, D, H, W).
        value: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    query, key, flat = (tensor.flatten(2) for tensor in (query, key, value))
    weights = (query.transpose(1, 2) @ key).softmax(dim=-1)
    return (flat @ weights.transpose(1, 2)).view_as(value)


class NonLocalBlock(nn.Module):
    """The block the paper compares with: `CrissCrossAttention` with attention to all positions.

    Args:
        hidden_size: channels of input, value and output.
        query_key_size: channels of query and key.
    """

    def __init__(self, hidden_size: int, query_key_size: int):
        super().__init__()
        self.query = nn.Conv2d(hidden_size, query_key_size, kernel_size=1)
        self.key = nn.Conv2d(hidden_size, query_key_size, kernel_size=1)
        self.value = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_state: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """(B, hidden_size, H, W) -> (B, hidden_size, H, W), and `None` in place of the layer's attention weights."""
        context = non_local_attention(self.query(hidden_state), self.key(hidden_state), self.value(hidden_state))
        return self.gamma * context + hidden_state, None
