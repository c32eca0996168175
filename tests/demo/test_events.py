"""What the page's events answer, without a page."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from diffusers_dedim.demo import events, layout, texts


@pytest.mark.parametrize(
    ("event", "more"),
    [
        (events.redrawing, (None,)),
        (events.clicking, (None, False, 0, gr.SelectData(None, {"index": [3, 4], "value": None}))),
        (events.adding, (40, 20, 60, 50)),
    ],
)
def test_a_page_whose_photos_were_deleted_by_age_says_so(event: Any, more: tuple[Any, ...]) -> None:
    assert texts.GONE in event(None)(None, [0], 0, *more)[-1]


@pytest.mark.parametrize(
    "payload", ["holiday.jpg", [None], [{"video": {"path": "/etc/passwd"}}], [{"image": 3}]]
)
def test_what_is_no_upload_is_refused_and_opens_nothing(payload: Any) -> None:
    with gr.Blocks():
        card = layout.upload_card()
    if isinstance(payload, str):
        assert card.read(payload) == []
    else:
        with pytest.raises(gr.Error, match="expected an uploaded file"):
            card.read(payload)
