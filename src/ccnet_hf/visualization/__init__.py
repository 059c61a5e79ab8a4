"""Label maps and attention as people look at them: palette images, overlays with a legend, maps of attention.

`ccnet_hf.visualization.curves` draws the numbers of a training. It is imported by that name, for it needs the extra
`train`.
"""

from ccnet_hf.visualization.attention import (
    attention_map,
    attention_ratio,
    captioned_grid,
    clip_attention,
    draw_attention,
    draw_attention_ratio,
    uniform_attention,
)
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
    "attention_ratio",
    "blend",
    "captioned_grid",
    "class_shares",
    "clip_attention",
    "colorize",
    "complete_palette",
    "draw_attention",
    "draw_attention_ratio",
    "draw_legend",
    "format_share",
    "generate_palette",
    "overlay",
    "uniform_attention",
]
