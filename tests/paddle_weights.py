"""PaddleSeg's CCNet state dict, filled with numbers that need no download, and files as `paddle.save` writes them.

The numbers are drawn as mmsegmentation's (`reference_weights`), each with the name that seeds it made of PaddleSeg's.
"""

import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from reference_weights import STAGE_DEPTHS, reference_tensor


# Parts of a key, PaddleSeg's and what they are called where the numbers are drawn, replaced from top to bottom.
_SEEDING_PARTS = (
    ("._batch_norm._mean", "._batch_norm.running_mean"),
    ("._batch_norm._variance", "._batch_norm.running_var"),
    (".conv2._conv.", ".conv3."),
    ("aux_head.conv.", "aux_head.conv_seg."),
    ("head.out.conv.", "head.out.conv_seg."),
    (".cca.q_conv.", ".cca.query_conv."),
    (".cca.k_conv.", ".cca.key_conv."),
    (".cca.v_conv.", ".cca.value_conv."),
    (".cca.gamma", ".cca.gamma.scale"),
)


def paddle_state_dict(num_labels: int) -> dict[str, np.ndarray]:
    """State dict of PaddleSeg's CCNet with a ResNet-101, float32, in its own order."""
    return {key: _values(key, shape) for key, shape in key_shapes(num_labels)}


def checksum(state_dict: dict[str, np.ndarray]) -> str:
    """CRC-32 of the bytes of all tensors, in hexadecimal digits."""
    value = 0
    for tensor in state_dict.values():
        value = zlib.crc32(tensor.tobytes(), value)
    return f"{value:08x}"


def save_pdparams(state_dict: dict[str, np.ndarray], file: Path, protocol: int = 4) -> None:
    """Write a state dict as `paddle.save` does, byte by byte but for Paddle's own names of the parameters."""
    names = {key: f"parameter_{index}.w_0" for index, key in enumerate(state_dict)}
    content = pickle.dumps(state_dict | {"StructuredToParameterName@@": names}, protocol=protocol)
    file.write_bytes(content)


def key_shapes(num_labels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of that state dict."""
    for index, (channels, width) in enumerate(((3, 32), (32, 32), (32, 64)), start=1):
        yield from _layer(f"backbone.conv1_{index}", width, channels, 3)
    channels = 64
    for stage, blocks in enumerate(STAGE_DEPTHS[101]):
        width = 64 * 2**stage
        for block in range(blocks):
            prefix = f"backbone.bb_{stage}_{block}"
            yield from _layer(f"{prefix}.conv0", width, channels, 1)
            yield from _layer(f"{prefix}.conv1", width, width, 3)
            yield from _layer(f"{prefix}.conv2", 4 * width, width, 1)
            if block == 0:
                yield from _layer(f"{prefix}.short", 4 * width, channels, 1)
            channels = 4 * width

    yield from _layer("aux_head.conv_bn_relu", 512, 1024, 3, has_bias=True)
    yield from _convolution("aux_head.conv", num_labels, 512)
    yield from _layer("head.conva", 512, 2048, 3)
    yield "head.cca.gamma", (1,)
    for name, width in (("q", 64), ("k", 64), ("v", 512)):
        yield from _convolution(f"head.cca.{name}_conv", width, 512)
    yield from _layer("head.convb", 512, 512, 3)
    yield from _layer("head.out.conv_bn_relu", 512, 2048 + 512, 3, has_bias=True)
    yield from _convolution("head.out.conv", num_labels, 512)


def _layer(
    prefix: str, out_channels: int, in_channels: int, kernel: int, has_bias: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}._conv.weight", (out_channels, in_channels, kernel, kernel)
    if has_bias:
        yield f"{prefix}._conv.bias", (out_channels,)
    for name in ("weight", "bias", "_mean", "_variance"):
        yield f"{prefix}._batch_norm.{name}", (out_channels,)


def _convolution(prefix: str, out_channels: int, in_channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", (out_channels, in_channels, 1, 1)
    yield f"{prefix}.bias", (out_channels,)


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    for theirs, seeding in _SEEDING_PARTS:
        key = key.replace(theirs, seeding)
    return reference_tensor(f"decode_{key}" if key.startswith("head.") else key, shape).numpy()
