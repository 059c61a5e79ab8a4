"""The command that draws the paper's attention figure for a pixel of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import huggingface_hub.utils.logging
import transformers.utils.logging
from PIL import Image

from ccnet_hf.command import run_command
from ccnet_hf.data.images import check_max_pixels, read_image
from ccnet_hf.errors import InputError, enough_memory
from ccnet_hf.files import atomic_file, check_file
from ccnet_hf.inference.attention import PixelAttention
from ccnet_hf.inference.loading import Dtype, load_checkpoint
from ccnet_hf.inference.predictor import Predictor
from ccnet_hf.visualization import (
    attention_ratio,
    captioned_grid,
    clip_attention,
    draw_attention,
    draw_attention_ratio,
)


# Pixels of an image in the figure: small ones are enlarged so that their maps can be seen, narrow ones not endlessly.
_SHORTEST_SIDE, _LONGEST_SIDE = 300, 2048


@dataclass(kw_only=True)
class AttendArguments:
    image: str = field(metadata={"positional": True, "metavar": "IMAGE", "help": "image to look at"})
    point: str = field(metadata={"metavar": "X,Y", "help": "pixel of the image, from its upper left corner: 320,180"})
    model_name_or_path: str = field(
        metadata={"metavar": "MODEL", "help": "folder of a CCNet checkpoint, or namespace/name on the Hub"}
    )
    output: str = field(metadata={"metavar": "F.png", "help": "image file to write"})
    percentile: float = field(
        default=99.0, metadata={"help": "of the weights off the pixel's cross, where they are cut off"}
    )
    dtype: Dtype = field(
        default="auto", metadata={"help": "auto: as the checkpoint is stored, but float32 on the CPU"}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1, mps, ...; auto: the fastest there is"})
    max_image_pixels: int | None = field(
        default=None, metadata={"help": "largest image that is read, in pixels, 0: any; default: 178956970"}
    )


def attend(arguments: AttendArguments) -> None:
    """Draw what a pixel attends to, round by round and by all together: weights, and their ratio to uniform ones."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    check_max_pixels(arguments.max_image_pixels)
    point = _parse_point(arguments.point)
    check_file(arguments.output)
    image = read_image(arguments.image, arguments.max_image_pixels)
    predictor = Predictor(*load_checkpoint(arguments.model_name_or_path, arguments.dtype, arguments.device))
    with enough_memory(f"the attention of {arguments.image} ({image.width}x{image.height} pixels)"):
        attention = predictor.attention(image, point)
        figure = draw_figure(image, point, attention, arguments.percentile)
    with atomic_file(arguments.output) as unfinished:
        figure.save(unfinished, format="PNG")
    height, width = attention.rounds[0].shape[:2]
    print(
        f"{arguments.output}: position {attention.position} of {height}x{width} (rows, columns), "
        f"gamma {_joined(attention.gammas)}"
    )


def draw_figure(
    image: Image.Image, point: tuple[float, float], attention: PixelAttention, percentile: float = 99.0
) -> Image.Image:
    """The views of `draw_views` in one image: the weights above, their ratios to uniform attention below.

    Args:
        image: the upright image.
        point: (x, y) of the pixel.
        attention: of `Predictor.attention`.
        percentile: as in `clip_attention`.
    """
    larger = max(1.0, min(_SHORTEST_SIDE / min(image.size), _LONGEST_SIDE / max(image.size)))
    shown = image.resize(tuple(round(side * larger) for side in image.size), Image.Resampling.BICUBIC)
    return captioned_grid(draw_views(shown, point, attention, percentile))


def draw_views(
    shown: Image.Image, point: tuple[float, float], attention: PixelAttention, percentile: float = 99.0
) -> tuple[dict[str, Image.Image], dict[str, Image.Image]]:
    """The attention of a pixel over the image: each round and all together.

    Args:
        shown: the upright image, of any size.
        point: (x, y) of the pixel, on the image that the attention is of.
        attention: of `Predictor.attention`.
        percentile: as in `clip_attention`.

    Returns:
        Images of the size of `shown` by their captions: the weights as they are, and of all rounds together also cut
        off at a percentile, as the authors draw them; and the same as ratios to uniform attention.
    """
    gammas = [f"gamma {gamma:.3g}" for gamma in attention.gammas]
    views = {f"round {number}, {gamma}": (number,) for number, gamma in enumerate(gammas, start=1)}
    together = "all rounds" if len(gammas) > 2 else "both rounds"
    if len(gammas) > 1:
        views[together] = tuple(range(1, len(gammas) + 1))
    position = (int(point[1]), int(point[0]))
    raw, ratios = {}, {}
    for caption, rounds in views.items():
        weights = attention.map(*rounds)
        raw[caption] = draw_attention(shown, attention.at_image_size(weights), position)
        ratio = attention.at_image_size(attention_ratio(weights, attention.position, len(rounds)))
        ratios[f"{caption.partition(',')[0]}, to uniform"] = draw_attention_ratio(shown, ratio, position)
    if len(gammas) > 1:
        clipped = attention.at_image_size(clip_attention(attention.map(), attention.position, percentile))
        raw[f"{together}, cut at {percentile:g} %"] = draw_attention(shown, clipped, position)
    return raw, ratios


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--point must be X,Y, such as 320,180, got {text!r}") from None
    return x, y


def _joined(gammas: Sequence[float]) -> str:
    """The gammas, once where all rounds share one."""
    return ", ".join(f"{gamma:.4g}" for gamma in (gammas[:1] if len(set(gammas)) == 1 else gammas))


def main(argv: Sequence[str] | None = None, prog: str = "attend.py") -> int:
    return run_command(AttendArguments, attend, argv, prog)
