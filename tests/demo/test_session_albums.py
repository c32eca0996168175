"""Photos that one visitor protects one after another are told apart, and nobody is remembered for long."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_demo import BoxPipeline, toy_face, toy_handlers

from diffusers_dedim.demo import albums as sessions
from diffusers_dedim.demo.albums import SessionAlbums
from diffusers_dedim.demo.handlers import DemoHandlers, Upload
from diffusers_dedim.demo.job import Job
from diffusers_dedim.demo.protect import Protector
from diffusers_dedim.demo.results import RunView
from diffusers_dedim.pipeline.album import Album

FACES = [toy_face(20, 30, 60)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "me.png")
    return str(tmp_path / "me.png")


def albums_used(handlers: DemoHandlers) -> list[Album | None]:
    return [keywords.get("album") for keywords in handlers.protector.pipe.keywords]


def test_a_session_has_one_album_until_it_is_left(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES)
    opened, folder = handlers.open([Upload(path)]), str(Path(path).parent)
    for session in ("me", "me", "you"):
        handlers.protect(opened, [0], "standard", None, session, folder)
    handlers.leave("me")
    handlers.protect(opened, [0], "standard", None, "me", folder)
    first, again, other, later = albums_used(handlers)
    assert first is again
    assert len({id(album) for album in (first, other, later)}) == 3
    assert all(isinstance(album, Album) for album in (first, other, later))


def test_of_a_program_nothing_is_kept(path: str) -> None:
    handlers = toy_handlers(lambda _: FACES)
    handlers.protect_file(Upload(path), "standard", str(Path(path).parent))
    assert len(handlers.albums) == 0


def test_what_another_process_would_forget_is_not_handed_over(path: str) -> None:
    pipe = BoxPipeline(None)
    handlers = DemoHandlers(Protector(pipe, wrap=lambda call: call), lambda _: FACES, lambda _: FACES)
    handlers.protect(handlers.open([Upload(path)]), [0], "standard", None, "me", str(Path(path).parent))
    assert "album" not in pipe.keywords[0]


def test_an_album_ages_from_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: now))
    albums = SessionAlbums()
    with albums.use("me") as mine:
        now += 3600
        albums.forget(1800)  # while the run goes on
        assert len(albums) == 1
    albums.forget(1800)
    with albums.use("me") as again:
        assert again is mine
    now += 1801
    albums.forget(1800)
    assert len(albums) == 0
    with albums.use("me"):
        albums.close("me")  # the visitor has left
    assert len(albums) == 0


def test_a_run_of_an_hour_is_remembered_by_the_next(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: now))
    handlers = toy_handlers(lambda _: FACES)
    opened, folder = handlers.open([Upload(path)]), str(Path(path).parent)
    run = Job.run

    def slow(job: Job, *arguments: Any) -> RunView:
        nonlocal now
        view = run(job, *arguments)
        now += 3600
        handlers.albums.forget(1800)
        return view

    monkeypatch.setattr(Job, "run", slow)
    for _ in range(2):
        handlers.protect(opened, [0], "standard", None, "me", folder)
    first, second = albums_used(handlers)
    assert first is second


def test_albums_go_with_time_and_the_oldest_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(sessions, "time", clock)
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 2)
    albums = SessionAlbums()
    mine = albums.open("me")
    albums.open("you")
    assert albums.open("me") is mine  # used again
    albums.open("she")
    assert len(albums) == 2
    assert albums.open("me") is mine
    now += 1000
    albums.open("she")
    now += 1000
    albums.forget(1800)
    assert len(albums) == 1
    assert albums.open("me") is not mine
