"""The page's colours and type."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, sizes

_TEAL = colors.Color(
    name="teal",
    c50="#eef7f6",
    c100="#d6ebe9",
    c200="#aed7d4",
    c300="#7fbfbb",
    c400="#4ba39e",
    c500="#2a857f",
    c600="#1f6f6b",
    c700="#1a5a57",
    c800="#174846",
    c900="#133a38",
    c950="#0a2423",
)
_STONE = colors.Color(
    name="stone",
    c50="#faf9f7",
    c100="#f6f5f2",
    c200="#e9e7e1",
    c300="#d6d3cb",
    c400="#a9adb0",
    c500="#6b747b",
    c600="#4b545b",
    c700="#333a40",
    c800="#1e2327",
    c900="#191d20",
    c950="#15181b",
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO_FONTS = ("ui-monospace", "SF Mono", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """A Gradio theme that loads no font from anywhere."""
    theme = gr.themes.Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=_STONE,
        text_size=sizes.text_md,
        radius_size=sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO_FONTS,
    )
    return theme.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_900",
    )
