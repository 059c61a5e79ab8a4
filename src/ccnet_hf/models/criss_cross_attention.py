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
"""Criss-cross attention as an operator: `torch.ops.ccnet_hf.criss_cross_attention` and its functional forms.

The operator is registered here with schema, fake implementation, autograd formula, FLOP formula and an implementation
in PyTorch that runs on every device; a compiled implementation for one device may be attached to it later without this
file knowing. The layers that use it live in `layers_ccnet.py`.

Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation" (TPAMI 2020), section 3.2; the form with
three axes is the paper's 3-D criss-cross attention.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


_NAMESPACE = "ccnet_hf"
_FORWARD = "criss_cross_attention"
_RESIDUAL = "criss_cross_attention_residual"
_BACKWARD = "criss_cross_attention_backward"

# Scores computed at a time: 1 MiB of them in fp32 on a CPU, measured; elsewhere enough to fill the device.
_CPU_BLOCK_SCORES = 1 << 18
_ACCELERATOR_BLOCK_SCORES = 1 << 26
# A product on its way to a result of another dtype, and each of its operands, measured; and of a bfloat16 product on a
# processor that multiplies it, where the calls cost more than the products.
_CPU_PRODUCT_BYTES = 3 << 17
_CPU_BFLOAT16_PRODUCT_BYTES = 3 << 19

_is_torch_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def criss_cross_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Let every position attend to all positions that share an axis with it, itself counted once.

    In two dimensions position (i, j) attends to its column without itself and to its row with itself: H + W - 1
    positions under one softmax, without a 1 / sqrt(D) scaling. In three dimensions it attends to T + H + W - 2.

    Args:
        query: (B, D, *spatial) with one to three spatial axes, floating point; `channels_last` is read without a copy.
        key: (B, D, *spatial), dtype and device of `query`.
        value: (B, C, *spatial), dtype and device of `query`.

    Returns:
        (B, C, *spatial) in the dtype of `value`, with the channels innermost in memory. The softmax is computed in
        fp32 (float64 for float64 inputs), and the backward pass keeps only query, key, value, the result and one
        number per position. It can be differentiated once, in reverse mode.

    Raises:
        ValueError: shapes, dtypes or devices that do not go together; the message shows what was given.
    """
    _check_inputs(query, key, value)
    if _is_exporting():
        output, _ = _joint_attention(query, key, value)
        return output
    output, _ = torch.ops.ccnet_hf.criss_cross_attention(query, key, value)
    return output


def criss_cross_attention_residual(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gamma: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """`gamma * criss_cross_attention(query, key, value) + residual` as one operator, which writes its result once.

    Made for inference. It is differentiable, but the backward pass computes the attention a second time, because only
    the sum is kept of it: in training, the plain sum is faster.

    Args:
        query: (B, D, *spatial).
        key: (B, D, *spatial).
        value: (B, C, *spatial).
        gamma: (1,), dtype and device of `value`.
        residual: (B, C, *spatial), dtype and device of `value`.

    Returns:
        (B, C, *spatial) in the dtype of `value`.

    Raises:
        ValueError: as for `criss_cross_attention`, and for a gamma or residual that does not go with `value`.
    """
    _check_inputs(query, key, value)
    if gamma.numel() != 1 or residual.shape != value.shape:
        raise ValueError(
            "criss_cross_attention_residual needs a gamma of one element and a residual of the value's shape, got "
            f"gamma {tuple(gamma.shape)}, residual {tuple(residual.shape)} for value {tuple(value.shape)}"
        )
    for name, tensor in (("gamma", gamma), ("residual", residual)):
        if tensor.dtype != value.dtype or tensor.device != value.device:
            raise ValueError(
                f"criss_cross_attention_residual needs one dtype and device, got {name} {tensor.dtype} on "
                f"{tensor.device} for value {value.dtype} on {value.device}"
            )
    if _is_exporting():
        output, _ = _joint_attention(query, key, value)
        return gamma * output + residual
    output, _ = torch.ops.ccnet_hf.criss_cross_attention_residual(query, key, value, gamma, residual)
    return output


def criss_cross_attention_round(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gamma: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """One round of criss-cross attention, `gamma * criss_cross_attention(query, key, value) + residual` (paper
    section 3.2, equation 2), by the operator that suits: one kernel for all of it where a compiled one can be used
    and nothing is differentiated, the plain sum elsewhere.

    Args:
        query: (B, D, *spatial).
        key: (B, D, *spatial).
        value: (B, C, *spatial).
        gamma: (1,), of any floating point dtype.
        residual: (B, C, *spatial), of any floating point dtype.

    Returns:
        (B, C, *spatial) in the dtype that `value`, `gamma` and `residual` promote to.

    Raises:
        ValueError: as for `criss_cross_attention`.
    """
    # Autocast gives a value of half precision beside a gamma and a residual of float32.
    same_dtype = value.dtype == residual.dtype == gamma.dtype
    if value.is_cuda and same_dtype and not torch.is_grad_enabled():
        return criss_cross_attention_residual(query, key, value, gamma, residual)
    return gamma * criss_cross_attention(query, key, value) + residual


def criss_cross_attention_with_weights(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`criss_cross_attention` in its explicit form, which also returns the attention weights.

    Args:
        query: (B, D, *spatial).
        key: (B, D, *spatial).
        value: (B, C, *spatial).

    Returns:
        The output (B, C, *spatial) and the weights (B, *spatial, sum of the spatial sizes): for every position its
        weights along the first axis, then along the next. They sum to 1, and the position's own weight is exactly 0
        along every axis but the last. Both are differentiable.

    Raises:
        ValueError: as for `criss_cross_attention`.
    """
    _check_inputs(query, key, value)
    return _joint_attention(query, key, value)


def _is_exporting() -> bool:
    """Whether a program for another runtime is being made, by `torch.export` or by either exporter to ONNX. Runtimes
    know plain operations only; `torch.compile` keeps the operator, and so does PyTorch 2.6's `torch.export`, which
    cannot be told from it."""
    return _is_torch_exporting() or torch.onnx.is_in_onnx_export()


def _check_inputs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    if not 3 <= query.dim() <= 5:
        raise ValueError(
            f"criss_cross_attention takes (batch, channels, 1 to 3 spatial axes), got {_shapes(query, key, value)}"
        )
    if 0 in query.shape[1:] or 0 in value.shape[1:]:
        raise ValueError(f"criss_cross_attention needs channels and positions, got {_shapes(query, key, value)}")
    same_places = (
        query.dim() == value.dim() and query.shape[0] == value.shape[0] and query.shape[2:] == value.shape[2:]
    )
    if query.shape != key.shape or not same_places:
        raise ValueError(
            "criss_cross_attention needs query and key of one shape and a value of the same batch and spatial sizes, "
            f"got {_shapes(query, key, value)}"
        )
    dtypes = (query.dtype, key.dtype, value.dtype)
    if len(set(dtypes)) > 1 or not query.dtype.is_floating_point:
        raise ValueError(f"criss_cross_attention needs one floating point dtype, got {', '.join(map(str, dtypes))}")
    devices = (query.device, key.device, value.device)
    if len(set(devices)) > 1:
        raise ValueError(f"criss_cross_attention needs one device, got {', '.join(map(str, devices))}")


def _shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str:
    return f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- the explicit form ---------------------------------------------------------------------------------------------


def _joint_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax over the concatenated scores of all axes, written in plain operations."""
    rank = query.dim() - 2
    axes = range(1, rank + 1)
    statistics = _statistics_dtype(query.dtype)
    # Scores may exceed what half precision holds. Exporters want permutations without negative axes.
    channels_last = (0, *range(2, rank + 2), 1)
    query, key, value = (tensor.permute(channels_last) for tensor in (query.to(statistics), key.to(statistics), value))
    sizes = query.shape[1:-1]
    # By axis: the order (B, *other axes, axis, channels), which makes matrices of its lines, and the way back.
    orders = [(0, *(other for other in axes if other != axis), axis, rank + 1) for axis in axes]
    inverses = [tuple(order.index(axis) for axis in range(rank + 2)) for order in orders]
    scores = []
    for axis, order, inverse in zip(axes, orders, inverses, strict=True):
        lines = _multiply(query.permute(order), key.permute(order).transpose(rank, rank + 1))
        if axis != axes[-1]:
            positions = torch.arange(sizes[axis - 1], device=query.device)
            lines = lines.masked_fill(positions[:, None] == positions, -math.inf)
        scores.append(lines.permute(inverse))
    weights = torch.cat(scores, dim=-1).softmax(dim=-1).to(value.dtype)
    output = None
    # Added in one order of memory: of two, `torch.export` would have to know which stride is the larger one.
    for part, order, inverse in zip(weights.split(list(sizes), dim=-1), orders, inverses, strict=True):
        gathered = _multiply(part.permute(order), value.permute(order)).permute(inverse).contiguous()
        output = gathered if output is None else output + gathered
    return output.permute(0, rank + 1, *axes), weights


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right`. In a program exported for images of any size, a fixed number of them goes one by one: `matmul`
    would number the lines of all images along one axis, and `torch.export` cannot prove that it may."""
    fixed, *others = left.shape[:-2]
    if isinstance(fixed, int) and fixed > 1 and any(isinstance(size, torch.SymInt) for size in others):
        return torch.stack([_multiply(*one) for one in zip(left, right, strict=True)])
    return left @ right


# --- the operator's form: lines of one axis at a time, merged by their log-sum-exp ----------------------------------


def _channels_innermost(tensor: torch.Tensor) -> torch.Tensor:
    """(B, C, *spatial) -> (B, *spatial, C) with dense channels; no copy when they already are."""
    tensor = tensor.movedim(1, -1)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty_channels_innermost(like: torch.Tensor) -> torch.Tensor:
    batch, channels, *spatial = like.shape
    return like.new_empty((batch, *spatial, channels)).movedim(-1, 1)


def _attended_axes(spatial: torch.Size) -> list[int]:
    """The axes that contribute: along an axis of one position there is only oneself, who counts along the last."""
    return [axis for axis, size in enumerate(spatial) if size > 1 or axis == len(spatial) - 1]


def _line_blocks(tensors: tuple[torch.Tensor, ...], axis: int, width: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cut (*spatial, X) tensors into views (lines, n, X) of lines along `axis`, some lines at a time.

    `width` is the number of temporaries a position needs beside its n scores.
    """
    lines = [tensor.movedim(axis, -2) for tensor in tensors]
    if lines[0].dim() == 2:
        lines = [line.unsqueeze(0) for line in lines]
    # Of three axes, one is the line, one numbers the lines of a block, and one is walked through.
    *walked, count, length, _ = lines[0].shape
    block_scores = _CPU_BLOCK_SCORES if lines[0].device.type == "cpu" else _ACCELERATOR_BLOCK_SCORES
    per_block = max(1, min(count, block_scores // (length * (length + width))))
    per_block = math.ceil(count / math.ceil(count / per_block))
    for index in itertools.product(*map(range, walked)):
        for start in range(0, count, per_block):
            yield tuple(line[(*index, slice(start, start + per_block))] for line in lines)


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    # PyTorch says so from 2.10 on; before it, products are computed in fp32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Dtype of the matrix products: fp32 where a CPU would emulate the half precision ones, slowly."""
    if tensor.device.type != "cpu" or tensor.dtype in (torch.float32, torch.float64):
        return tensor.dtype
    return torch.bfloat16 if tensor.dtype == torch.bfloat16 and _cpu_multiplies_bfloat16() else torch.float32


def _operand(lines: torch.Tensor, products: torch.dtype) -> torch.Tensor:
    """One operand of a batched product: converted, and packed where the half precision product needs dense lines."""
    lines = lines.to(products)
    if lines.device.type != "cpu" or products != torch.bfloat16 or lines.transpose(1, 2).is_contiguous():
        return lines
    return lines.contiguous()


def _accumulate(
    result: torch.Tensor, left: torch.Tensor, right: torch.Tensor, first: bool, share: torch.Tensor | None = None
) -> None:
    """Write the product of two batches of matrices into `result`, or add it to what is there where it is not the
    first: to all of that, or to the `share` (lines, n, 1) of every position."""
    products = _product_dtype(result)
    in_place = result.dtype == products and (result.device.type != "cpu" or products != torch.bfloat16)
    if in_place and first:
        torch.bmm(left.to(products), right, out=result)
    elif in_place:
        kept = result if share is None else result.mul_(share)
        kept.baddbmm_(left.to(products), right)
    else:
        # Through dense operands and products that stay in the cache.
        part_bytes = _CPU_BFLOAT16_PRODUCT_BYTES if products == torch.bfloat16 else _CPU_PRODUCT_BYTES
        lines = max(1, part_bytes // (result.shape[1] * result.shape[2] * products.itemsize))
        # Multiplied in one dtype: a product of two is promoted through copies of both.
        share = None if share is None else share.to(products)
        for start in range(0, len(result), lines):
            part, *operands = (lines_of[start : start + lines] for lines_of in (result, left, right))
            operands = [_operand(operand, products) for operand in operands]
            if first:
                part.copy_(torch.bmm(*operands))
                continue
            kept = part.to(products)
            if share is not None:
                kept.mul_(share[start : start + lines])
            part.copy_(kept.baddbmm_(*operands))


def _scores(query: torch.Tensor, key: torch.Tensor, statistics: torch.dtype, masked: bool) -> torch.Tensor:
    """Scores (lines, n, n); along every axis but the last a position does not count itself."""
    scores = torch.bmm(query, key.transpose(1, 2)).to(statistics)
    if masked:
        scores.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    return scores


def _attend_lines(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    maximum: torch.Tensor,
    log_sum: torch.Tensor,
    first: bool,
    masked: bool,
) -> None:
    """Attend along some lines, and merge the result with that of the axes before, if this is not the first."""
    products = _product_dtype(query)
    weights = _scores(_operand(query, products), _operand(key, products), maximum.dtype, masked)
    largest = weights.amax(-1, keepdim=True)
    if not first:
        largest = torch.maximum(largest, maximum)
    total = weights.sub_(largest).exp_().sum(-1, keepdim=True)
    share = None
    if not first:
        earlier = (maximum - largest).add_(log_sum).exp_()
        share = earlier.div_(total.add_(earlier))
    maximum.copy_(largest)
    weights.div_(total)
    torch.log(total, out=log_sum)
    _accumulate(output, weights, value, first, share)


def _differentiate_lines(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad: torch.Tensor,
    grad_query: torch.Tensor,
    grad_key: torch.Tensor,
    grad_value: torch.Tensor,
    logsumexp: torch.Tensor,
    delta: torch.Tensor,
    first: bool,
    masked: bool,
) -> None:
    """Write the gradients that come by way of some lines, or add them to those of the axes before."""
    products = _product_dtype(query)
    query, key, value, grad = (_operand(lines, products) for lines in (query, key, value, grad))
    weights = _scores(query, key, logsumexp.dtype, masked).sub_(logsumexp).exp_()
    grad_scores = torch.bmm(grad, value.transpose(1, 2)).to(delta.dtype)
    grad_scores = grad_scores.sub_(delta).mul_(weights).to(products)
    _accumulate(grad_query, grad_scores, key, first)
    _accumulate(grad_key, grad_scores.transpose(1, 2), query, first)
    _accumulate(grad_value, weights.to(products).transpose(1, 2), grad, first)


def _without_autocast(implementation: Callable) -> Callable:
    """Run an implementation in the dtypes it chose: autocast is still on inside an operator."""

    @functools.wraps(implementation)
    def wrapper(*tensors: torch.Tensor):
        device_type = tensors[0].device.type
        if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # meta refuses the question
            return implementation(*tensors)
        with torch.autocast(device_type, enabled=False):
            return implementation(*tensors)

    return wrapper


@_without_autocast
def _forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator's implementation: output (B, C, *spatial) and log-sum-exp (B, *spatial)."""
    statistics, spatial = _statistics_dtype(query.dtype), query.shape[2:]
    axes = _attended_axes(spatial)
    # A converted query and key.
    width = 0 if _product_dtype(query) == query.dtype else 2 * query.shape[1]
    output = _empty_channels_innermost(value)
    # Two numbers until all axes are merged: beside a score of 1e10 their sum cannot hold the logarithm.
    maximum, log_sum = (query.new_empty((query.shape[0], *spatial, 1), dtype=statistics) for _ in range(2))
    tensors = (*map(_channels_innermost, (query, key, value)), output.movedim(1, -1), maximum, log_sum)
    for one in zip(*tensors, strict=True):
        for axis in axes:
            for block in _line_blocks(one, axis, width):
                _attend_lines(*block, first=axis == axes[0], masked=axis != axes[-1])
    return output, maximum.add_(log_sum).squeeze(-1)


def _forward_residual(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gamma: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The second operator's implementation: gamma times the output plus the residual, and the log-sum-exp."""
    output, logsumexp = _forward(query, key, value)
    return output.mul_(gamma).add_(residual), logsumexp


@_without_autocast
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value; the weights are computed again, a block of lines at a time."""
    channels, axes = value.shape[1], _attended_axes(query.shape[2:])
    width = 0 if _product_dtype(value) == value.dtype else 2 * channels
    inputs = tuple(map(_channels_innermost, (query, key, value, grad)))
    results = tuple(map(_empty_channels_innermost, (query, key, value)))
    # What every score's gradient loses: the mean of the weights' gradients under the weights.
    delta = torch.empty_like(logsumexp)
    tensors = (
        *inputs,
        *(result.movedim(1, -1) for result in results),
        logsumexp.unsqueeze(-1),
        delta.unsqueeze(-1),
        output.movedim(1, -1),
    )
    for *one, one_output in zip(*tensors, strict=True):
        for lines_grad, lines_output, lines_delta in _line_blocks((one[3], one_output, one[-1]), axes[-1], channels):
            torch.sum(lines_grad.to(delta.dtype) * lines_output, -1, keepdim=True, out=lines_delta)
        for axis in axes:
            for block in _line_blocks(tuple(one), axis, width):
                _differentiate_lines(*block, first=axis == axes[0], masked=axis != axes[-1])
    return results


# --- registration --------------------------------------------------------------------------------------------------


def _fake_forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    statistics = _statistics_dtype(query.dtype)
    return _empty_channels_innermost(value), query.new_empty((query.shape[0], *query.shape[2:]), dtype=statistics)


def _fake_residual(query, key, value, gamma, residual) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_forward(query, key, value)


def _fake_backward(grad, query, key, value, output, logsumexp) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(map(_empty_channels_innermost, (query, key, value)))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx, grad_output: torch.Tensor | None, grad_logsumexp: None):
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "criss_cross_attention can be differentiated once; for higher derivatives take "
            "criss_cross_attention_with_weights"
        )
    if grad_output is None:
        return None, None, None
    return torch.ops.ccnet_hf.criss_cross_attention_backward(grad_output, *ctx.saved_tensors)


def _setup_residual_context(ctx, inputs, output) -> None:
    *projections, gamma, _ = inputs
    ctx.save_for_backward(*projections, gamma)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd_residual_backward(ctx, grad_output: torch.Tensor | None, grad_logsumexp: None):
    if grad_output is None:
        return (None,) * 5
    *projections, gamma = ctx.saved_tensors
    output, logsumexp = torch.ops.ccnet_hf.criss_cross_attention(*projections)
    grads = torch.ops.ccnet_hf.criss_cross_attention_backward(gamma * grad_output, *projections, output, logsumexp)
    grad_gamma = (grad_output.to(logsumexp.dtype) * output).sum().to(gamma.dtype).view_as(gamma)
    return *grads, grad_gamma, grad_output


def _forward_flops(query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    """2 FLOPs a multiply-add: scores and weighted sum over the positions of every axis."""
    spatial = query_shape[2:]
    return 2 * query_shape[0] * math.prod(spatial) * sum(spatial) * (query_shape[1] + value_shape[1])


def _backward_flops(grad_shape, query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    """The scores again, their gradient, and one product for each of query, key and value."""
    spatial = query_shape[2:]
    return 2 * query_shape[0] * math.prod(spatial) * sum(spatial) * (3 * query_shape[1] + 2 * value_shape[1])


def _register() -> None:
    """Define the operators once per process, however many copies of this file are loaded (remote code is a copy)."""
    defined = getattr(torch.ops, _NAMESPACE)
    attention = "Tensor query, Tensor key, Tensor value"
    schemas = {
        _FORWARD: f"({attention}) -> (Tensor, Tensor)",
        _RESIDUAL: f"({attention}, Tensor gamma, Tensor residual) -> (Tensor, Tensor)",
        _BACKWARD: f"(Tensor grad, {attention}, Tensor output, Tensor logsumexp) -> (Tensor, Tensor, Tensor)",
    }
    # implementation, fake implementation, FLOPs
    formulas = {
        _FORWARD: (_forward, _fake_forward, _forward_flops),
        _RESIDUAL: (_forward_residual, _fake_residual, _forward_flops),
        _BACKWARD: (_backward, _fake_backward, _backward_flops),
    }
    gradients = {
        _FORWARD: (_autograd_backward, _setup_context),
        _RESIDUAL: (_autograd_residual_backward, _setup_residual_context),
    }
    for name, schema in schemas.items():
        if hasattr(defined, name):
            continue
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        implementation, fake, flops = formulas[name]
        library.define(name + schema)
        library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=library)
        if name in gradients:
            backward, setup_context = gradients[name]
            torch.library.register_autograd(
                f"{_NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library
            )
        operator = getattr(defined, name)
        if operator not in flop_registry:
            register_flop_formula(operator)(flops)
        # A library unregisters what it defined when it is collected.
        setattr(torch, f"_{_NAMESPACE}_{name}_library", library)


_register()

__all__ = [
    "criss_cross_attention",
    "criss_cross_attention_residual",
    "criss_cross_attention_round",
    "criss_cross_attention_with_weights",
]
