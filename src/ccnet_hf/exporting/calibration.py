"""Static int8 by NNCF: ranges of activations from pictures, for the exporters of transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor

from ccnet_hf.data.images import read_image
from ccnet_hf.deployment.programs import Format
from ccnet_hf.errors import InputError


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


def make_quantizer(program_format: Format, pictures: Collection[dict[str, torch.Tensor]]) -> Any:
    """The quantizer for a format, calibrated on network inputs as [`Pictures`] makes them. Only convolutions
    are quantized: they are nearly all of the work, and the attention's scores need their digits.

    Raises:
        InputError: its package is not installed.
    """
    from transformers import exporters

    try:
        import nncf
    except ModuleNotFoundError as error:
        raise InputError("nncf, which int8 needs, is not installed: pip install 'ccnet-hf[export]'") from error
    if program_format == "onnx":
        from ccnet_hf.exporting.onnx_quantizer import NNCFOnnxQuantizer

        return NNCFOnnxQuantizer(pictures)
    config = exporters.NNCFQuantizationConfig(
        subset_size=len(pictures), ignored_scope=nncf.IgnoredScope(types=["MatMul"])
    )
    return exporters.NNCFOpenVINOQuantizer(config, pictures)
