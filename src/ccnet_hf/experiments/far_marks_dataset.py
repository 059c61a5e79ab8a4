"""Far marks: synthetic images in which one small mark decides the class of every pixel.

On noise lie grey squares and one coloured square, the mark; all pixels belong to the class of its colour. Where a
pixel lies, seen from the mark, decides how far a network must see to know its class: see `parts`.
"""

from __future__ import annotations

import torch


SIDE = 80  # of an image, in pixels
SQUARE = 8  # side of every square
NEAR, FAR = 8, 32  # pixels between a pixel and the mark's edge that count as near at most, as far at least
NUM_GREY = 4

COLOURS = {"red": (2.0, 0.5, 0.5), "green": (0.5, 2.0, 0.5), "blue": (0.5, 0.5, 2.0)}


def far_marks(num_examples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw images, their label maps and where their marks are.

    Args:
        num_examples: how many, N.
        generator: of every random draw.

    Returns:
        Images (N, 3, SIDE, SIDE), float32, about -1..2; label maps (N, SIDE, SIDE), int64, the index of the mark's
        colour in `COLOURS` everywhere; row and column of the marks' top left pixels (N, 2), int64.
    """
    images = 0.3 * torch.randn(num_examples, 3, SIDE, SIDE, generator=generator)
    corners = torch.randint(SIDE - SQUARE + 1, (num_examples, NUM_GREY + 1, 2), generator=generator)
    classes = torch.randint(len(COLOURS), (num_examples,), generator=generator)
    colours = torch.tensor(list(COLOURS.values()))[classes]
    for image, squares, colour in zip(images, corners, colours, strict=True):
        for top, left in squares.tolist():
            image[:, top : top + SQUARE, left : left + SQUARE] = 0.0
        image[:, top : top + SQUARE, left : left + SQUARE] = colour[:, None, None]  # the last is the mark
    labels = classes[:, None, None].expand(num_examples, SIDE, SIDE).contiguous()
    return images, labels, corners[:, -1]


def far_marks_clips(
    num_examples: int, num_frames: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw clips whose mark is in the first frame and decides the class of every pixel of every frame.

    Args:
        num_examples: how many, N.
        num_frames: of a clip, T, at least 2.
        generator: of every random draw.

    Returns:
        Clips (N, T, 3, SIDE, SIDE); label maps (N, T, SIDE, SIDE); corners (N, 2) of the marks, in the first frame. In
        the others the grey squares lie elsewhere, and there is no mark.
    """
    images, labels, corners = far_marks(num_examples, generator)
    clips = 0.3 * torch.randn(num_examples, num_frames, 3, SIDE, SIDE, generator=generator)
    places = torch.randint(SIDE - SQUARE + 1, (num_examples, num_frames, NUM_GREY, 2), generator=generator)
    for clip, squares in zip(clips, places, strict=True):
        for frame, frame_squares in zip(clip, squares.tolist(), strict=True):
            for top, left in frame_squares:
                frame[:, top : top + SQUARE, left : left + SQUARE] = 0.0
    clips[:, 0] = images
    return clips, labels[:, None].expand(num_examples, num_frames, SIDE, SIDE).contiguous(), corners


def parts(corners: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of images, by where their pixels lie, seen from marks at `corners` (N, 2).

    Returns:
        Masks (N, SIDE, SIDE): `"near"` the mark; `"in line"` with it, in its rows or columns and far along them;
        `"elsewhere"`, far from its rows and from its columns. Pixels between belong to none.
    """
    positions = torch.arange(SIDE)
    gaps = (corners[..., None] - positions).maximum(positions - corners[..., None] - SQUARE + 1).clamp(min=0)
    down, across = gaps[:, 0, :, None], gaps[:, 1, None, :]
    return {
        "near": down.maximum(across) <= NEAR,
        "in line": (down.minimum(across) == 0) & (down.maximum(across) >= FAR),
        "elsewhere": down.minimum(across) >= FAR,
    }
