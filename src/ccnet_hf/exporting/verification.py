"""Does an exported folder compute what its checkpoint computes?"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from ccnet_hf.deployment.fusion import Rewritable
from ccnet_hf.deployment.programs import Network, float32_options, quiet
from ccnet_hf.errors import InputError
from ccnet_hf.exporting.calibration import Pictures
from ccnet_hf.models.post_processing_ccnet import argmax_of_resized_logits


_SHAPES = ((1, 3, 96, 128), (2, 3, 129, 97))
_LARGEST_ERROR = 1e-3  # of the largest logit
_PICTURES = 8  # compared after int8


def run_folder(folder: Path, program_format: str) -> Network:
    """What transformers' `ExportedModel` makes of a folder that we have just written ourselves, in float32."""
    from transformers.exporters import ExportedModel

    with quiet():
        options = float32_options(program_format)
        program = ExportedModel.from_pretrained(folder, device="cpu", trust_remote_code=True, **options)
    return lambda pixel_values: program(pixel_values=pixel_values).logits


@torch.no_grad()
def check_logits(model: Rewritable) -> None:
    """Find out before the work that there is nothing to compare with.

    Raises:
        InputError: the checkpoint's own logits are not finite.
    """
    pixel_values = torch.randn(_SHAPES[0], generator=torch.Generator().manual_seed(0))
    if not model(pixel_values=pixel_values).logits.isfinite().all():
        raise InputError("the checkpoint's logits are not finite: its weights are damaged, or overflow in float32")


@torch.no_grad()
def verify_logits(network: Network, model: Rewritable) -> float:
    """The largest error of logits, as a fraction of the largest logit, over two sizes and two numbers of images.

    Raises:
        RuntimeError: it is more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    errors = []
    for shape in _SHAPES:
        pixel_values = torch.randn(shape, generator=generator)
        expected = model(pixel_values=pixel_values).logits
        found = network(pixel_values)
        if found.shape != expected.shape:
            raise RuntimeError(f"the exported program gives logits {tuple(found.shape)}, not {tuple(expected.shape)}")
        errors.append(((found - expected).abs().max() / expected.abs().max()).item())
    if not max(errors) <= _LARGEST_ERROR:
        raise RuntimeError(f"the exported program's logits differ from the checkpoint's by {max(errors):.1e}")
    return max(errors)


@torch.no_grad()
def equal_labels(network: Network, model: Rewritable, pictures: Pictures) -> float:
    """The fraction of pixels that get the checkpoint's label, over the first pictures."""
    equal = pixels = 0
    for inputs in itertools.islice(pictures, _PICTURES):
        pixel_values = inputs["pixel_values"]
        size = tuple(pixel_values.shape[-2:])
        found, expected = (
            argmax_of_resized_logits(logits[0], model.config.align_corners, size, size)
            for logits in (network(pixel_values), model(pixel_values=pixel_values).logits)
        )
        equal += (found == expected).sum().item()
        pixels += expected.numel()
    return equal / pixels
