"""Label maps and attention as people look at them: palette images, overlays with a legend, maps of attention."""

from ccnet_hf.visualization.segmentation import (
    Color,
    LabelMap,
    attention_map,
    blend,
    captioned_grid,
    class_shares,
    colorize,
    complete_palette,
    draw_attention,
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
