"""What the page's events answer, without a page."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo import events, layout, texts
from diffusers_dedim.demo.choice import Choice
from diffusers_dedim.demo.handlers import Upload

CLICK = gr.SelectData(None, {"index": [40, 50], "value": None})
ASKED: Any = SimpleNamespace(session_hash="s")


@pytest.fixture
def handlers() -> Any:
    return toy_handlers(lambda _: [toy_face(20, 30, 60), toy_face(120, 40, 50)])


@pytest.fixture
def choice(handlers: Any, tmp_path: Path) -> Choice:
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "me.png")
    return Choice(handlers.open([Upload(str(tmp_path / "me.png"))]))


@pytest.mark.parametrize(
    ("event", "more"),
    [
        (events.redrawing(None, ""), ()),  # type: ignore[arg-type]
        (events.clicking(None), (False, 0, CLICK)),  # type: ignore[arg-type]
        (events.adding(None), (40, 20, 60, 50)),  # type: ignore[arg-type]
    ],
)
def test_a_page_whose_photos_were_deleted_by_age_says_so(event: Any, more: tuple[Any, ...]) -> None:
    assert texts.GONE in event(None, [0], 0, 0, *more)[-1]


def test_what_comes_for_photos_that_were_put_away_shows_nothing(
    handlers: Any, choice: Choice, tmp_path: Path
) -> None:
    events.going_back(handlers)(choice, ASKED)
    assert all(map(_is_skip, events.redrawing(handlers, str(tmp_path))(choice, [0, 1], 0, 0)))
    assert all(map(_is_skip, events.clicking(handlers)(choice, [0, 1], 0, 0, False, 0, CLICK)))
    assert all(map(_is_skip, events.adding(handlers)(choice, [0, 1], 0, 0, 40, 20, 60, 50)))
    run = events.protecting(handlers, str(tmp_path), lambda _: None)
    ((status, done, *_),) = run(choice, [0, 1], 0, "standard", False, None, ASKED)
    assert (status, done) == ("", None)


def test_a_run_that_the_visitor_goes_back_from_ends_and_shows_nothing(
    handlers: Any, choice: Choice, tmp_path: Path
) -> None:
    handlers.protector.pipe.rounds, handlers.protector.pipe.pause = 10**6, 0.05
    events.starting(handlers)(ASKED)
    run = events.protecting(handlers, str(tmp_path), lambda _: None)
    answers = run(choice, [0, 1], 0, "standard", False, None, ASKED)
    while "Round" not in next(answers)[0]:
        pass
    events.going_back(handlers)(choice, ASKED)
    assert list(answers)[-1][:2] == ("", None)
    deadline = time.monotonic() + 30
    while handlers._line._tickets and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not handlers._line._tickets, "it went on"


def _is_skip(update: Any) -> bool:
    return update == gr.skip()


def test_two_clicks_before_the_first_answer_both_count(handlers: Any, choice: Choice) -> None:
    other = gr.SelectData(None, {"index": [140, 60], "value": None})
    click = events.clicking(handlers)
    assert click(choice, [0, 1], 0, 0, False, 0, CLICK)[1:3] == ([1], 1)
    assert click(choice, [0, 1], 0, 0, False, 0, other)[1:3] == ([], 2)
    assert click(choice, [], 2, 0, False, 0, other)[1:3] == ([1], 3)


def test_a_picture_is_never_emptied_while_somebody_reads_it(
    handlers: Any, choice: Choice, tmp_path: Path
) -> None:
    shown = gr.Image(format="jpeg")
    shown.GRADIO_CACHE = str(tmp_path)
    draw = events.redrawing(handlers, str(tmp_path))
    path = shown.postprocess(draw(choice, [0], 0, 0)[0]).path
    with Path(path).open("rb") as reading:
        whole = Path(path).read_bytes()
        assert shown.postprocess(draw(choice, [0], 0, 0)[0]).path == path, (
            "the same picture, the same address"
        )
        assert Path(path).stat().st_ino != os.fstat(reading.fileno()).st_ino
        assert reading.read() == whole


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "dedim.jpg").write_bytes(b"a face")
    fetch = events.fetching(str(tmp_path))
    assert fetch({"path": str(tmp_path / "dedim.jpg")}) == ""
    (tmp_path / "dedim.jpg").unlink()
    assert texts.FILE_GONE in fetch({"path": str(tmp_path / "dedim.jpg")})
    assert texts.FILE_GONE in fetch(None)
    assert texts.FILE_GONE in fetch({"path": __file__}), "whether other files exist is nobody's business"


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
