"""Label maps and attention as people look at them: palette images, overlays with a legend, maps of attention.

`ccnet_hf.visualization.curves` draws the numbers of a training. It is imported by that name, for it needs the extra
`train`.
"""

from ccnet_hf.visualization.attention import attention_map, captioned_grid, draw_attention
from ccnet_hf.visualization.segmentation import (
    Color,
    LabelMap,
    blend,
    class_shares,
    colorize,
    complete_palette,
    draw_legend,
    format_share,
    generate_palette,
    overlay,
)


__all__ = [
    "Color",
    "LabelMap",
    "attention_map",
    "blend",
    "captioned_grid",
    "class_shares",
    "colorize",
    "complete_palette",
    "draw_attention",
    "draw_legend",
    "format_share",
    "generate_palette",
    "overlay",
]
