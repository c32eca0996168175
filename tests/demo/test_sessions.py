"""What Gradio keeps in memory of a page's photos, and when it goes."""

from __future__ import annotations

import datetime
import gc
import json
import time
import weakref
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_demo import launched, toy_face, toy_handlers

from diffusers_dedim.demo import files as sessions
from diffusers_dedim.demo.choice import Choice

CROP = "data:image/"


def event(demo: Any, client: Any, name: str, data: list[Any]) -> Any:
    """Cause an event of the page in the session "s", as a browser does; its last answer."""
    index = next(key for key, fn in demo.fns.items() if fn.name == name)
    body = {"fn_index": index, "data": data, "session_hash": "s"}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    told = client.get("/gradio_api/queue/data?session_hash=s").text.split("data: ")
    done = [message for message in map(json.loads, told[1:]) if message["msg"] == "process_completed"]
    assert done[0]["success"], done
    return done[0]["output"]


def wait_until(happened: Any) -> bool:
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(happened())


def test_what_gradio_keeps_of_a_photo_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    file = BytesIO()
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    handlers = toy_handlers(lambda _: [toy_face(20, 30, 60), toy_face(120, 40, 50)])
    with launched(handlers) as (demo, client):
        path = client.post("/gradio_api/upload", files={"files": ("holiday.jpg", file.getvalue())}).json()[0]
        upload = {"path": path, "orig_name": "holiday.jpg", "meta": {"_type": "gradio.FileData"}}
        event(demo, client, "on_photos", [[{"image": upload, "caption": None}], None])
        run = [None, [0, 1], 0, "standard", False, None]
        event(demo, client, "on_run", run)
        session = demo.state_holder.session_data["s"]
        assert CROP in str(session.config_values), "nothing to test: Gradio keeps no values any more"

        sessions.forget_photos(demo, 1800)
        assert CROP not in str(session.config_values)
        assert "holiday" not in str(session.config_values)
        assert CROP in str(event(demo, client, "on_run", run)), "the open page works on"

        ((key, opened),) = [item for item in session.state_data.items() if isinstance(item[1], Choice)]
        photo = weakref.ref(opened)
        del opened
        session._state_ttl[key] = (1800, datetime.datetime.now() - datetime.timedelta(seconds=1801))
        session.is_closed = True  # Gradio alone would keep it for an hour
        sessions.forget_photos(demo, 1800)
        assert wait_until(lambda: gc.collect() >= 0 and photo() is None)
        assert CROP not in str(session.config_values)


def test_it_goes_in_the_background_and_before_the_launch_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions.forget_photos(SimpleNamespace(), 1800)  # type: ignore[arg-type]
    calls: list[Any] = []

    def sleep(seconds: float) -> None:
        time.sleep(0.01 if len(calls) < 2 else 3600)  # the thread lives as long as this process

    monkeypatch.setattr(sessions, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(sessions, "forget_photos", lambda *words: calls.append(words))
    sessions.keep_forgetting("demo", 300, 1800)  # type: ignore[arg-type]
    assert wait_until(lambda: len(calls) == 2)
    assert calls == [("demo", 1800)] * 2
