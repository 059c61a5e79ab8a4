"""Criss-cross attention in Triton: a yardstick for `benchmark.py op --against triton`, not a part of the package.

One kernel does one axis, as the compiled operator does: columns first, a position leaving itself out; then rows,
merged with the columns' result by the two log-sum-exps. Forward only.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _attend_along_axis(
    query,
    key,
    value,
    earlier,
    earlier_logsumexp,
    output,
    logsumexp,
    lines,
    length,
    query_strides,
    value_strides,
    sum_strides,
    QUERY_SIZE: tl.constexpr,
    IS_FIRST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One block of queries of one line, one block of value channels; strides are (batch, line, place)."""
    batch, line = tl.program_id(1) // lines, tl.program_id(1) % lines
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    sizes = tl.arange(0, QUERY_SIZE)
    inside = queries < length
    query_line = batch * query_strides[0] + line * query_strides[1]
    value_line = batch * value_strides[0] + line * value_strides[1]

    rows = tl.load(
        query + query_line + queries[:, None] * query_strides[2] + sizes[None, :], mask=inside[:, None], other=0.0
    )
    total = tl.zeros((QUERIES, CHANNELS), tl.float32)
    # Finite, so that a line whose only position is left out gives no NaN.
    maximum = tl.full((QUERIES,), -1e30, tl.float32)
    denominator = tl.zeros((QUERIES,), tl.float32)
    for start in range(0, length, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = keys < length
        columns = tl.load(
            key + query_line + keys[:, None] * query_strides[2] + sizes[None, :], mask=there[:, None], other=0.0
        )
        scores = tl.dot(rows, tl.trans(columns), input_precision="ieee")
        seen = there[None, :]
        if IS_FIRST:
            seen = seen & (keys[None, :] != queries[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        weights = tl.exp(scores - new_maximum[:, None])
        shrink = tl.exp(maximum - new_maximum)
        denominator = denominator * shrink + tl.sum(weights, 1)
        maximum = new_maximum
        values = tl.load(
            value + value_line + keys[:, None] * value_strides[2] + channels[None, :], mask=there[:, None], other=0.0
        )
        gathered = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink[:, None] + gathered

    found = tl.where(denominator > 0, maximum + tl.log(tl.maximum(denominator, 1e-30)), -float("inf"))
    total = total / tl.maximum(denominator, 1e-30)[:, None]
    place = batch * sum_strides[0] + line * sum_strides[1] + queries * sum_strides[2]
    places = value_line + queries[:, None] * value_strides[2] + channels[None, :]
    if not IS_FIRST:
        other = tl.load(earlier_logsumexp + place, mask=inside, other=0.0)
        larger = tl.maximum(found, other)
        merged = larger + tl.log(tl.exp(found - larger) + tl.exp(other - larger))
        columns_output = tl.load(earlier + places, mask=inside[:, None], other=0.0).to(tl.float32)
        total = total * tl.exp(found - merged)[:, None] + columns_output * tl.exp(other - merged)[:, None]
        found = merged
    tl.store(output + places, total.to(output.dtype.element_ty), mask=inside[:, None])
    tl.store(logsumexp + place, found, mask=inside)


def triton_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: int = 64,
    keys: int = 32,
    channels: int = 128,
) -> torch.Tensor:
    """Criss-cross attention of channels_last tensors.

    Args:
        query: (B, D, H, W), D a power of two of at least 16.
        key: (B, D, H, W).
        value: (B, C, H, W), C a multiple of `channels`.
        queries, keys, channels: sizes of the kernel's blocks.

    Returns:
        (B, C, H, W) in the dtype of `value`.

    Raises:
        ValueError: `channels` does not divide C.
    """
    if value.shape[1] % channels:
        raise ValueError(f"the Triton form takes multiples of {channels} value channels, got {value.shape[1]}")
    query, key, value = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (query, key, value))
    batch, height, width, query_size = query.shape
    outputs = torch.empty_like(value), torch.empty_like(value)
    sums = [value.new_empty((batch, height, width), dtype=torch.float32) for _ in outputs]
    for is_first in (True, False):
        line, place = (2, 1) if is_first else (1, 2)
        lines, length = value.shape[line], value.shape[place]
        _attend_along_axis[(triton.cdiv(length, queries), batch * lines, value.shape[-1] // channels)](
            *(query, key, value, outputs[0], sums[0], outputs[not is_first], sums[not is_first], lines, length),
            *((tensor.stride(0), tensor.stride(line), tensor.stride(place)) for tensor in (query, value, sums[0])),
            QUERY_SIZE=query_size,
            IS_FIRST=is_first,
            QUERIES=queries,
            KEYS=keys,
            CHANNELS=channels,
        )
    return outputs[1].permute(0, 3, 1, 2)
