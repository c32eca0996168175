"""The endpoint ``/protect`` as any program may call it, by plain HTTP; no socket is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_demo import launched, toy_face, toy_handlers

from diffusers_dedim.demo import app as page
from diffusers_dedim.demo.handlers import DemoHandlers

MARK = {"meta": {"_type": "gradio.FileData"}}
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def handlers() -> DemoHandlers:
    return toy_handlers(lambda _: [toy_face(20, 30, 60), toy_face(120, 40, 50)])


@pytest.fixture(scope="module")
def client(handlers: DemoHandlers, cache: Path) -> Iterator[Any]:
    with launched(handlers) as (_, opened):
        yield opened


@pytest.fixture(scope="module")
def protect(client: Any) -> Call:
    """POST the arguments; the answer, or the words of the error."""

    def call(photo: Any, strength: Any = "standard", *more: Any) -> Any:
        data = [photo, strength, *more, *[None, None][len(more) :]]
        event = client.post("/gradio_api/call/protect", json={"data": data}).json()["event_id"]
        answer = client.get(f"/gradio_api/call/protect/{event}").text
        kind, told = (line.partition(": ")[2] for line in answer.splitlines()[:2])
        return json.loads(told)["error"] if kind == "error" else json.loads(told)[0]

    return call


def picture(seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def uploaded(client: Any) -> str:
    answer = client.post("/gradio_api/upload", files={"files": ("holiday.jpg", picture())})
    return str(answer.json()[0])


def test_an_upload_is_protected(protect: Call, uploaded: str, cache: Path) -> None:
    for photo in ({"path": uploaded, **MARK}, {"path": uploaded}):
        result = protect(photo)
        file = result["file"]
        assert Path(file["path"]).is_relative_to(cache)
        assert Path(file["path"]).name == "dedim.jpg"
        assert [face["face"] for face in result["faces"]] == [1, 2]


def test_the_example_is_protected_once_it_is_uploaded(protect: Call, client: Any) -> None:
    answer = client.post("/gradio_api/upload", files={"files": ("astronaut.jpg", page.EXAMPLE.read_bytes())})
    result = protect({"path": answer.json()[0], **MARK})
    assert Path(result["file"]["path"]).is_file()
    assert client.get(f"/gradio_api/file={result['file']['path']}").status_code == 200


def test_an_address_that_gradio_fetches_is_protected(
    protect: Call, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    async def fetch(address: str, cache_dir: str) -> str:
        assert address == "https://example.org/holiday.jpg"
        path = Path(cache_dir) / "fetched.jpg"
        path.write_bytes(picture())
        return str(path)

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    result = protect({"path": "https://example.org/holiday.jpg", **MARK})
    assert Path(result["file"]["path"]).is_relative_to(cache)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A photo on the server that nobody has uploaded."""
    path = tmp_path / "private.jpg"
    path.write_bytes(picture(1))
    return path


@pytest.mark.parametrize("name", ["photo", "second_photo"])
def test_no_file_outside_the_uploads_is_read(
    protect: Call, uploaded: str, cache: Path, outside: Path, name: str
) -> None:
    """Gradio itself checks only a path that is marked as a file, and nobody has to mark it."""
    (cache / "link.jpg").unlink(missing_ok=True)
    (cache / "link.jpg").symlink_to(outside)
    around = f"{cache}/../{outside.relative_to(cache.parent)}"
    odd = [
        "",
        "\0",
        "/etc/passwd",
        "https://example.org/a.jpg",
        str(cache),
        3,
        [str(outside)],
        {"path": uploaded},
    ]
    for path in (str(outside), around, str(cache / "link.jpg"), *odd):
        values = (
            [{"path": path}] if name == "photo" else [{"path": uploaded}, "standard", None, {"path": path}]
        )
        assert protect(*values).startswith(f"{name}: expected an uploaded file; with gradio_client, wrap"), (
            path
        )
    for value in ("text", 7, [], {}, {"url": str(outside)}):
        values = [value] if name == "photo" else [{"path": uploaded}, "standard", None, value]
        assert protect(*values).startswith(f"{name}: expected an uploaded file"), value


@pytest.mark.parametrize("field", ["photos", "other"])
def test_the_pages_own_events_read_uploads_alone(
    client: Any, uploaded: str, outside: Path, field: str
) -> None:
    """They are private, but anybody may join their queue by number, with the path of any file."""
    parts = client.get("/config").json()
    names = {part["id"]: part["props"].get("elem_id") for part in parts["components"]}
    event = next(e for e in parts["dependencies"] if field in [names[part] for part in e["inputs"]])
    others = {"chosen": [], "strength": "standard", "paper": False}

    def join(path: str) -> str:
        values = {**others, "other": {"path": path}, "photos": [{"image": {"path": path}, "caption": None}]}
        data = [values.get(names[part]) for part in event["inputs"]]
        asked = {"data": data, "fn_index": event["id"], "session_hash": field}
        assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
        return str(client.get(f"/gradio_api/queue/data?session_hash={field}").text)

    for path in (str(outside), "/etc/passwd", "/etc/nothing-here", "/dev/zero"):
        assert f"{field}: expected an uploaded file" in join(path), path
    assert "expected an uploaded file" not in join(uploaded)


def test_what_it_takes(protect: Call, uploaded: str, handlers: DemoHandlers) -> None:
    photo = {"path": uploaded, **MARK}
    result = protect(photo, "stronger", [2], photo)
    assert [face["face"] for face in result["faces"]] == [2]
    assert result["left_out_not_protected"] == [1]
    assert {score["against"] for score in result["faces"][0]["scores"]} == {"itself", "other"}
    assert result["note"] == "The second photo shows several faces; the largest was compared."
    result = protect(photo, "gentler", [1])
    assert {score["against"] for score in result["faces"][0]["scores"]} == {"itself"}
    assert result["note"] == ""
    assert [call["preset"] for call in handlers.protector.pipe.keywords[-2:]] == ["strong", "gentle"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["standard", ["1"]], "faces: expected a list of whole numbers, counted from left to right from 1"),
        (["standard", "1"], "or none for all; got '1'."),
        (["standard", 1], "got 1."),
        (["standard", [1.5]], "got [1.5]."),
        (["standard", [True]], "got [True]."),
        (["standard", [[1]]], "got [[1]]."),
        (["standard", []], "Choose at least one face."),
        (["standard", [0]], "Face 0 cannot be chosen; in this photo these can: 1, 2."),
        (["much"], "strength: expected one of ['gentler', 'standard', 'stronger', 'paper'], got 'much'."),
        ([["much"]], "got ['much']."),
    ],
)
def test_wrong_arguments_are_told(
    protect: Call, uploaded: str, values: list[Any], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert told in protect({"path": uploaded, **MARK}, *values)
    assert "Traceback" not in capfd.readouterr().err


def test_files_that_cannot_be_used_are_told(protect: Call, client: Any, uploaded: str) -> None:
    large = BytesIO()
    Image.new("1", (10000, 6000), 1).save(large, "PNG")
    sent = [("files", ("large.png", large.getvalue())), ("files", ("text.txt", b"Dear diary"))]
    large_path, text_path = client.post("/gradio_api/upload", files=sent).json()
    assert "the photo is too large (60 megapixels). This page takes up to 25" in protect(
        {"path": large_path, **MARK}
    )
    assert "not a photo in a known format" in protect({"path": text_path, **MARK})
    result = protect({"path": uploaded, **MARK}, "standard", None, {"path": text_path, **MARK})
    assert result["note"].startswith(
        "The second photo was left aside. This file could not be used: not a photo"
    )
