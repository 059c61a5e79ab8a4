"""Label maps as people look at them: palette images, and overlays with a legend."""

import colorsys
from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ccnet_hf.errors import InputError, using
from ccnet_hf.limits import check_integer
from ccnet_hf.models.configuration_ccnet import MAX_NUM_LABELS
from ccnet_hf.models.image_arguments_ccnet import check_palette
from ccnet_hf.models.image_transforms_ccnet import segmentation_map_to_array
from ccnet_hf.visualization.canvas import AnyImage, drawable


Color = tuple[int, int, int]
LabelMap = np.ndarray | torch.Tensor | Image.Image

PAPER, INK, FAINT = (255, 255, 255), (32, 33, 36), (128, 134, 139)

_ROWS = 32  # of an image that are blended at a time


def generate_palette(num_labels: int) -> list[Color]:
    """`num_labels` RGB colours that are easy to tell apart: hues by the golden angle, lightness in three steps.

    Raises:
        InputError: that is no number of colours.
    """
    if not isinstance(num_labels, int) or num_labels < 0:
        raise InputError(f"num_labels must be an integer of at least 0, got {num_labels!r}")
    golden_angle = 0.618033988749895
    lightness, saturation = (0.55, 0.40, 0.70), (0.75, 0.85, 0.65)
    colors = []
    for label in range(num_labels):
        step = label % 3
        red, green, blue = colorsys.hls_to_rgb((0.6 + label * golden_angle) % 1.0, lightness[step], saturation[step])
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def complete_palette(palette: Sequence[Color] | None, num_labels: int) -> Sequence[Color]:
    """The palette, or a generated one where there is none or one of too few colours. Raises InputError for another
    kind of palette."""
    palette = None if palette is None else _colors(palette)
    return generate_palette(num_labels) if palette is None or len(palette) < num_labels else palette


def colorize(label_map: LabelMap, palette: Sequence[Color]) -> Image.Image:
    """A label map (H, W) as a palette image (PIL mode P): pixel values are the labels, colours come from `palette`.

    Labels without a colour (the ignored 255) are black.

    Raises:
        InputError: a label does not fit into 0..255 or is no whole number, or the palette is no list of RGB colours.
    """
    labels, palette = _to_numpy(label_map), _colors(palette)
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise InputError(f"a palette image holds labels 0..255, got {labels.min()}..{labels.max()}")
    image = Image.fromarray(labels.astype(np.uint8)).convert("P")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: min(len(palette), 256)] = np.array(palette[:256], dtype=np.uint8).reshape(-1, 3)
    image.putpalette(table.tobytes())
    return image


def class_shares(label_map: LabelMap, num_labels: int) -> np.ndarray:
    """Fraction of the pixels of a label map (H, W) in each class: float64 (num_labels,), other labels left out.

    Raises:
        InputError: `num_labels` is no number of classes, or a label is no whole number.
    """
    check_integer("num_labels", num_labels, 0, MAX_NUM_LABELS)
    labels = _to_numpy(label_map).ravel()
    counts = np.bincount(labels[(labels >= 0) & (labels < num_labels)], minlength=num_labels)
    return counts / max(labels.size, 1)


def blend(image: AnyImage, label_map: LabelMap, palette: Sequence[Color], alpha: float = 0.5) -> Image.Image:
    """Tint an image with the colours of its classes and draw a thin light line where classes meet.

    Args:
        image: image of width W and height H: a PIL image, which is turned upright as its EXIF orientation says, an
            array or tensor of integers from 0 to 255, or an image file.
        label_map: (H, W) labels; those without a colour leave the image as it is.
        palette: RGB colour (0..255) per label.
        alpha: strength of the colour, 0 (none) to 1 (nothing but colour).

    Raises:
        InputError: image and label map differ in size, the palette is no list of RGB colours, or alpha is no number
            from 0 to 1.
    """
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise InputError(f"alpha must be a number from 0 to 1, got {alpha!r}")
    labels, palette, image = _to_numpy(label_map), _colors(palette), drawable(image)
    if labels.shape != (image.height, image.width):
        raise InputError(f"image is {image.height}x{image.width}, label map {'x'.join(map(str, labels.shape))}")
    pixels = np.asarray(image)
    known = (labels >= 0) & (labels < len(palette))
    numbers = np.where(known, labels, len(palette))  # the last one leaves the image as it is
    present = np.flatnonzero(np.bincount(numbers.ravel(), minlength=len(palette) + 1))
    rows_of_table = np.zeros(len(palette) + 1, dtype=np.int32)
    rows_of_table[present] = np.arange(len(present))
    table = _blended_values([palette[label] if label < len(palette) else None for label in present], alpha)
    border = _borders(labels, width=max(1, round(min(labels.shape) / 700)))
    blended = np.empty_like(pixels)
    # A few rows at a time, which stay in the processor's cache.
    for top in range(0, len(labels), _ROWS):
        rows = slice(top, top + _ROWS)
        places = 256 * (rows_of_table[numbers[rows]] + len(present) * border[rows])
        for channel in range(3):
            blended[rows, :, channel] = table[channel].ravel().take(places + pixels[rows, :, channel])
    return Image.fromarray(blended)


def _blended_values(colors: Sequence[Color | None], alpha: float) -> np.ndarray:
    """What becomes of every value of a pixel: (3, 2 * len(colors), 256) uint8, by channel, by colour (`None` tints
    nothing), without and then with the light line over it, and by value."""
    values = np.arange(256, dtype=np.float64)
    tables = []
    for line in (0.0, 0.75):
        for color in colors:
            strength = 0.0 if color is None else alpha
            tint = np.zeros(3) if color is None else np.array(color, dtype=np.float64)
            tinted = values * (1 - strength) + tint[:, None] * strength
            tables.append(tinted * (1 - line) + 255 * line)
    return (np.stack(tables, axis=1) + 0.5).clip(0, 255).astype(np.uint8)


def _borders(labels: np.ndarray, width: int) -> np.ndarray:
    """True on the pixels, `width` wide, before a change of label to the right or below."""
    border = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width + 1):
        border[:, :-step] |= labels[:, :-step] != labels[:, step:]
        border[:-step] |= labels[:-step] != labels[step:]
    return border


def overlay(
    image: AnyImage,
    label_map: LabelMap,
    palette: Sequence[Color],
    class_names: Sequence[str],
    alpha: float = 0.5,
) -> Image.Image:
    """An image tinted by its classes, with a legend of the classes present, most pixels first.

    The legend stands below a wide image and to the right of a tall one, and never covers it.

    Args:
        image: as for `blend`.
        label_map: (H, W) labels; those outside the classes (255) are left untinted and out of the legend.
        palette: RGB colour (0..255) per class.
        class_names: name per class.
        alpha: strength of the colour, 0..1.

    Returns:
        RGB image: the given one and the legend.

    Raises:
        InputError: as `blend`, the names are no list of names, or there are fewer colours than names.
    """
    palette = _colors(palette)
    is_list = isinstance(class_names, Sequence | np.ndarray) and not isinstance(class_names, str)
    if not is_list or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"`class_names` must be a list of a name for each class, got {class_names!r}")
    if len(palette) < len(class_names):
        raise InputError(f"palette must have a colour for each of {len(class_names)} classes, got {len(palette)}")
    blended = blend(image, label_map, palette, alpha)
    shares = class_shares(label_map, len(class_names))
    present = [label for label in np.argsort(-shares, kind="stable") if shares[label] > 0]
    entries = [(palette[label], class_names[label], format_share(shares[label])) for label in present]
    if not entries:
        return blended
    font_size = min(max(15, round(max(blended.size) / 40)), 60)
    margin = font_size
    if blended.width > blended.height:
        panel = draw_legend(entries, font_size, width=blended.width)
        canvas = Image.new("RGB", (max(blended.width, panel.width), blended.height + panel.height), PAPER)
        canvas.paste(panel, (0, blended.height))
    else:
        panel = draw_legend(entries, font_size, height=blended.height)
        canvas = Image.new("RGB", (blended.width + panel.width, max(blended.height, panel.height)), PAPER)
        canvas.paste(panel, (blended.width, max(0, min(margin, canvas.height - panel.height))))
    canvas.paste(blended, (0, 0))
    return canvas


def format_share(share: float) -> str:
    """A fraction 0..1 as a percentage with one decimal; what would round to nothing is shown as `<0.1 %`."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def draw_legend(
    entries: Sequence[tuple[Color, str, str]], font_size: int, width: int | None = None, height: int | None = None
) -> Image.Image:
    """Draw swatch, name and percentage per entry, filled column by column, one column at least.

    Args:
        entries: (RGB colour 0..255, name, percentage) each, at least one.
        font_size: in pixels; everything else follows from it.
        width: as many columns as fit into it.
        height: given instead of `width`, as many columns as it takes not to be higher.

    Returns:
        RGB image of the size that the entries take.

    Raises:
        InputError: there is no entry, or neither `width` nor `height` is given.
    """
    if not entries:
        raise InputError("`entries` must hold a colour, a name and a percentage at least once, got none")
    if width is None and height is None:
        raise InputError("`width` or `height` must be a number of pixels, got neither")
    font = ImageFont.load_default(size=font_size)
    swatch, gap, line = round(font_size * 1.1), round(font_size * 0.6), round(font_size * 1.75)
    margin = font_size
    name_width = max(ceil(font.getlength(name)) for _, name, _ in entries)
    share_width = max(ceil(font.getlength(share)) for _, _, share in entries)
    column = swatch + gap + name_width + 2 * gap + share_width
    if height is not None:
        rows = max(1, (height - 2 * margin) // line)
        columns = ceil(len(entries) / rows)
    else:
        columns = max(1, min(len(entries), (width - 2 * margin + 3 * gap) // (column + 3 * gap)))
    rows = ceil(len(entries) / columns)
    columns = ceil(len(entries) / rows)
    size = (2 * margin + columns * column + (columns - 1) * 3 * gap, 2 * margin + rows * line - (line - swatch))
    panel = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(panel)
    for index, (color, name, share) in enumerate(entries):
        left = margin + (index // rows) * (column + 3 * gap)
        top = margin + (index % rows) * line
        middle = top + swatch / 2
        draw.rounded_rectangle(
            (left, top, left + swatch, top + swatch), radius=swatch // 5, fill=tuple(color), outline=FAINT
        )
        draw.text((left + swatch + gap, middle), name, font=font, fill=INK, anchor="lm")
        draw.text((left + column, middle), share, font=font, fill=FAINT, anchor="rm")
    return panel


def _colors(palette: Sequence[Color]) -> list[list[int]]:
    with using(""):
        return check_palette(palette)


def _to_numpy(label_map: LabelMap) -> np.ndarray:
    with using("a label map"):
        if isinstance(label_map, Image.Image):
            return segmentation_map_to_array(label_map)
        labels = label_map.cpu().numpy() if isinstance(label_map, torch.Tensor) else np.asarray(label_map)
        if labels.ndim != 2:
            raise InputError(f"a label map has two axes (height, width), got shape {labels.shape}")
        return segmentation_map_to_array(labels)
