"""How far a model looks: where in the image the gradient of one position's class lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ccnet_hf.command import run_command
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.limits import MAX_SEED, check_range
from ccnet_hf.models.modeling_ccnet import CrissCrossAttention


# Fractions of the gradient whose distance is reported.
_FRACTIONS = (0.5, 0.9, 0.95, 0.99)


@dataclass
class ReceptiveFieldArguments:
    model_name_or_path: str = field(metadata={"help": "CCNet checkpoint: a folder or a Hub id"})
    dataset_name: str = field(metadata={"help": "folder (parquet or save_to_disk) or Hub id of the dataset"})
    split: str = field(default="validation", metadata={"help": "split whose images are looked at"})
    num_examples: int = field(default=16, metadata={"help": "images, one position in each"})
    without_attention: bool = field(default=False, metadata={"help": "set gamma to 0: what the convolutions see"})
    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )
    seed: int = field(default=0, metadata={"help": "of the images and positions"})


def gradient_by_distance(model: torch.nn.Module, pixel_values: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Fraction of the gradient at every distance from a position (the effective receptive field of Luo et al., 2016).

    Args:
        model: a `CCNetForSemanticSegmentation` in eval mode.
        pixel_values: (1, 3, H, W), an image as the image processor gives it.
        row: of the position, on the map of logits.
        column: likewise.

    Returns:
        (D,) fp32, summing to 1: entry d is the fraction of the absolute gradient of the position's highest logit, less
        the mean of its logits, at pixels d to d + 1 pixels of the network's input from the position's centre.
    """
    pixel_values = pixel_values.detach().requires_grad_()
    logits = model(pixel_values=pixel_values).logits
    scores = logits[0, :, row, column]
    (gradient,) = torch.autograd.grad(scores.max() - scores.mean(), pixel_values)
    magnitude = gradient[0].float().abs().sum(0)
    centre = [
        (index + 0.5) * full / small
        for index, full, small in zip((row, column), magnitude.shape, logits.shape[-2:], strict=True)
    ]
    rows, columns = (
        torch.arange(size, device=magnitude.device) + 0.5 - middle
        for size, middle in zip(magnitude.shape, centre, strict=True)
    )
    distance = (rows[:, None].square() + columns.square()).sqrt().long()
    return torch.bincount(distance.flatten(), (magnitude / magnitude.sum()).flatten())


def measure_receptive_field(arguments: ReceptiveFieldArguments) -> None:
    """Print within how many pixels of a position the gradient of its class lies, averaged over random positions."""
    import datasets  # here, so that --help needs no extra

    from ccnet_hf.data.loading import SegmentationDataset, load_split

    check_range("--num_examples", arguments.num_examples, 1, 10**9)
    check_range("--seed", arguments.seed, 0, MAX_SEED)
    datasets.disable_progress_bars()
    model, image_processor = load_checkpoint(arguments.model_name_or_path)
    if arguments.without_attention:
        for module in model.modules():
            if isinstance(module, CrissCrossAttention):
                torch.nn.init.zeros_(module.gamma)
    split = load_split(arguments.dataset_name, arguments.split, label_column_name=None, hint="--split names another")
    dataset = SegmentationDataset(
        split,
        model.config.num_labels,
        max_image_pixels=arguments.max_image_pixels,
        source=arguments.dataset_name,
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    fractions = torch.zeros(1)
    chosen = torch.randperm(len(dataset), generator=generator)[: arguments.num_examples].tolist()
    for index in tqdm(chosen, desc="look", unit="image", disable=None, leave=False):
        image, _, _ = dataset.read(index)
        pixel_values = image_processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        with torch.inference_mode():
            size = model(pixel_values=pixel_values).logits.shape[-2:]
        row, column = (int(torch.randint(side, (1,), generator=generator)) for side in size)
        found = gradient_by_distance(model, pixel_values, row, column).cpu()
        longer, shorter = sorted((fractions, found), key=len, reverse=True)
        fractions = longer.clone()
        fractions[: len(shorter)] += shorter
    within = (fractions / fractions.sum()).cumsum(0)
    height, width = pixel_values.shape[-2:]
    print(f"{len(chosen)} images of {arguments.split}, the last one {height}x{width} at the network's input")
    for fraction in _FRACTIONS:
        print(f"{fraction:.0%} of the gradient within {int((within < fraction).sum()) + 1} pixels")


def main(argv: Sequence[str] | None = None, prog: str = "receptive_field.py") -> int:
    """Run the command; returns the exit status."""
    return run_command(ReceptiveFieldArguments, measure_receptive_field, argv, prog)
