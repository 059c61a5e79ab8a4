"""mmsegmentation's CCNet state dict, filled with numbers that need no download.

The golden files hold what mmsegmentation computes from these weights. Every tensor depends on its key and shape alone:
NumPy's frozen `RandomState`, seeded with the CRC-32 of the key, drawn in float64 and rounded once to float32.
"""

import zlib
from collections.abc import Iterator

import numpy as np
import torch


STAGE_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Deviation of a convolution's weight in units of sqrt(2 / fan in), by part of its key; the first that fits counts.
GAINS = {
    ".conv3.weight": 0.5,
    ".query_conv.": 0.2,
    ".key_conv.": 0.2,
    ".value_conv.": 1.0,
    ".conv_seg.": 1.5,
    "_head.": 2.0,
    "": 1.3,
}


def mmsegmentation_state_dict(depth: int, num_labels: int) -> dict[str, torch.Tensor]:
    """State dict of mmsegmentation's `ccnet_r{depth}-d8` in its own order."""
    return {key: reference_tensor(key, shape) for key, shape in key_shapes(depth, num_labels)}


def key_shapes(depth: int, num_labels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of that state dict."""
    for index, (channels, width) in zip((0, 3, 6), ((3, 32), (32, 32), (32, 64)), strict=True):
        yield f"backbone.stem.{index}.weight", (width, channels, 3, 3)
        yield from _norm(f"backbone.stem.{index + 1}", width)
    channels = 64
    for stage, blocks in enumerate(STAGE_DEPTHS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            prefix = f"backbone.layer{stage + 1}.{block}"
            yield f"{prefix}.conv1.weight", (width, channels, 1, 1)
            yield from _norm(f"{prefix}.bn1", width)
            yield f"{prefix}.conv2.weight", (width, width, 3, 3)
            yield from _norm(f"{prefix}.bn2", width)
            yield f"{prefix}.conv3.weight", (4 * width, width, 1, 1)
            yield from _norm(f"{prefix}.bn3", 4 * width)
            if block == 0:
                yield f"{prefix}.downsample.0.weight", (4 * width, channels, 1, 1)
                yield from _norm(f"{prefix}.downsample.1", 4 * width)
            channels = 4 * width

    yield from _convolution("decode_head.conv_seg", num_labels, 512)
    for name, in_channels in (("convs.0", 2048), ("convs.1", 512), ("conv_cat", 2048 + 512)):
        yield f"decode_head.{name}.conv.weight", (512, in_channels, 3, 3)
        yield from _norm(f"decode_head.{name}.bn", 512)
    for name, width in (("query", 64), ("key", 64), ("value", 512)):
        yield from _convolution(f"decode_head.cca.{name}_conv", width, 512)
    yield "decode_head.cca.gamma.scale", ()
    yield from _convolution("auxiliary_head.conv_seg", num_labels, 256)
    yield "auxiliary_head.convs.0.conv.weight", (256, 1024, 3, 3)
    yield from _norm("auxiliary_head.convs.0.bn", 256)


def _convolution(prefix: str, out_channels: int, in_channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", (out_channels, in_channels, 1, 1)
    yield f"{prefix}.bias", (out_channels,)


def _norm(prefix: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{name}", (channels,)
    yield f"{prefix}.num_batches_tracked", ()


def reference_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One entry of that state dict."""
    return torch.from_numpy(_values(key, shape))


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if key.endswith("gamma.scale"):
        return np.full(shape, 0.7, dtype=np.float32)
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        value = random.uniform(0.5, 1.5, size=shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.1 * random.standard_normal(size=shape)
    elif len(shape) == 1:  # weight of a batch norm
        value = random.uniform(0.5, 1.0, size=shape)
    else:
        gain = next(gain for part, gain in GAINS.items() if part in key)
        value = gain * np.sqrt(2.0 / np.prod(shape[1:])) * random.standard_normal(size=shape)
        value -= value.mean(axis=(1, 2, 3), keepdims=True)
    return value.astype(np.float32)
