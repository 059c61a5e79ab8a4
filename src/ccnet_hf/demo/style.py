"""The look of the page: one theme, and what it adds for the legend, for attention and for phones."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr
from PIL import Image

from ccnet_hf.demo.pictures import ClassEntry
from ccnet_hf.visualization import format_share


# Fonts of the system: nothing is fetched from elsewhere.
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    quiet = {"background_fill": "*neutral_100", "background_fill_dark": "*neutral_800"}
    return gr.themes.Soft(
        primary_hue=gr.themes.colors.orange,
        secondary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO_FONTS,
    ).set(
        **{f"block_label_{name}": value for name, value in quiet.items()},
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_background_fill="none",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_padding="0",
        checkbox_label_background_fill_selected="*neutral_100",
        checkbox_label_background_fill_selected_dark="*neutral_700",
        checkbox_label_text_color_selected="*body_text_color",
        checkbox_label_shadow="none",
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_border_width="1px",
        block_shadow="none",
    )


CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.7rem; margin: 0; }
#title p { margin: 4px 0 0; color: var(--body-text-color-subdued); }
.note { padding: 0 2px !important; color: var(--body-text-color-subdued); }
.note strong { color: var(--body-text-color); }
.note .refused {
  display: block; padding: 10px 12px; color: var(--body-text-color); overflow-wrap: anywhere;
  border: 1px solid #ef4444; border-left-width: 4px; border-radius: 6px;
}
.swatch, #classes .wrap label > span::before {
  content: ""; display: inline-block; width: 14px; height: 14px; margin-right: 8px; vertical-align: -2px; flex: none;
  border-radius: 3px; border: 1px solid rgb(128 134 139 / 60%);
}
#classes .wrap label span { white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; padding-top: 8px; }
.legend > span { white-space: nowrap; color: var(--body-text-color); }
#attended img {
  width: auto !important; height: auto !important; max-width: 100%; max-height: 600px;
  margin: 0 auto; cursor: crosshair;
}
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.views.two { grid-template-columns: 1fr 1fr; }
.views figure { margin: 0; }
.views img { width: 100%; height: auto; display: block; border-radius: 6px; }
.views figcaption { padding-top: 4px; font-size: 0.85rem; color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  #header { flex-direction: column; }
  .gradio-container main { padding: 12px !important; }
  #title h1 { font-size: 1.4rem; }
}
"""


def swatches(classes: Sequence[ClassEntry]) -> str:
    """HTML that gives the check boxes of these classes, in order, their colours."""
    rules = [
        f"#classes .wrap label:nth-of-type({number}) > span::before {{ background: rgb{entry.color}; }}"
        for number, entry in enumerate(classes, start=1)
    ]
    return f"<style>{' '.join(rules)}</style>"


def legend(classes: Sequence[ClassEntry]) -> str:
    """HTML of colours, names and fractions."""
    entries = [
        f'<span><i class="swatch" style="background: rgb{entry.color}"></i>'
        f"{escape(entry.name)} {format_share(entry.share)}</span>"
        for entry in classes
    ]
    return f'<div class="legend">{"".join(entries)}</div>'


def figures(views: Mapping[str, Image.Image], in_pairs: bool = False) -> str:
    """HTML of images above their captions, side by side as far as there is room, or two in a row."""
    shown = []
    for caption, image in views.items():
        content = io.BytesIO()
        image.convert("RGB").save(content, format="JPEG", quality=88)
        source = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        caption = escape(caption)
        shown.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="views{" two" if in_pairs else ""}">{"".join(shown)}</div>'


def refusal(sentence: str) -> str:
    """HTML of what cannot be done, and why."""
    return f'<span class="refused" role="alert">{escape(sentence)}</span>'
