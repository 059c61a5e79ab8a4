"""Static int8 by NNCF: ranges of activations from pictures, for the exporters of transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import BaseImageProcessor

from ccnet_hf.data.images import read_image
from ccnet_hf.deployment.programs import Network
from ccnet_hf.errors import InputError


if TYPE_CHECKING:
    from transformers.exporters.quantizers.base import ExportQuantizer


class Pictures:
    """Network inputs made of image files, read anew on every pass so that memory holds one at a time.

    Args:
        paths: the files.
        image_processor: of the checkpoint.
        number: how many are taken, evenly over all.
    """

    def __init__(self, paths: Sequence[Path], image_processor: BaseImageProcessor, number: int):
        number = min(number, len(paths))
        self.paths = [paths[index * len(paths) // number] for index in range(number)]
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Each as `{"pixel_values": (1, 3, H, W) float32}`."""
        for path in self.paths:
            inputs = self.image_processor(read_image(path), return_tensors="pt", do_pad=False)
            yield {"pixel_values": inputs["pixel_values"]}


def make_quantizer(pictures: Collection[dict[str, torch.Tensor]], network: Network | None = None) -> ExportQuantizer:
    """The quantizer of ONNX and OpenVINO programs. Only convolutions are quantized: they are nearly all of the work,
    and the attention's scores need their digits.

    Args:
        pictures: network inputs as [`Pictures`] makes them, which it is calibrated on.
        network: in float32, whose labels are kept: where more than 1 % of them change, the convolutions that change
            most stay in float32. Without it all are quantized.

    Raises:
        InputError: its package is not installed.
    """
    try:
        from ccnet_hf.exporting.quantizer import ConvolutionQuantizer
    except ModuleNotFoundError as error:
        if error.name != "nncf":
            raise
        raise InputError("nncf, which int8 needs, is not installed: pip install 'ccnet-hf[export]'") from error
    return ConvolutionQuantizer(pictures, network)
