"""Several photos at once: one run, one album, one ZIP with a report; what fails is left out and named."""

from __future__ import annotations

import threading
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo import handlers as actions
from diffusers_dedim.demo import job as jobs
from diffusers_dedim.demo.handlers import Upload
from diffusers_dedim.demo.results import RunView
from diffusers_dedim.demo.texts import DemoError
from diffusers_dedim.images.files import decode_photo

SIZES = {(200, 120): [toy_face(20, 30, 60), toy_face(120, 40, 50)], (160, 120): [toy_face(20, 30, 60)]}


def detect(pixels: np.ndarray) -> list[Any]:
    """By the size of the photo; nobody is on a black one."""
    return SIZES.get(pixels.shape[1::-1], []) if pixels.any() else []


@pytest.fixture
def uploads(tmp_path: Path) -> list[Upload]:
    """Two photos with three faces, one without, and a text."""
    draw = np.random.default_rng(0)
    for name, (width, height) in zip(("beach.jpg", "party.png"), SIZES, strict=True):
        Image.fromarray(draw.integers(40, 216, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.new("RGB", (90, 90)).save(tmp_path / "night.png")
    (tmp_path / "notes.txt").write_text("Dear diary")
    return [
        Upload(str(tmp_path / name), name) for name in ("beach.jpg", "notes.txt", "party.png", "night.png")
    ]


def run(uploads: list[Upload], chosen: list[int], **changes: Any) -> RunView:
    handlers = changes.pop("handlers", None) or toy_handlers(detect)
    opened = handlers.open(uploads)
    folder = str(Path(uploads[0].path).parent)
    return handlers.protect(opened, chosen, "standard", None, "s", folder, **changes)


def unpack(run: RunView) -> dict[str, bytes]:
    with zipfile.ZipFile(run.download or "") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_one_zip_with_what_came_out_well_and_a_report(uploads: list[Upload]) -> None:
    view = run(uploads, [0, 1, 2])
    files = unpack(view)
    assert Path(view.download or "").name == "dedim.zip"
    assert list(files) == ["photo-01.jpg", "photo-03.png", "report.html"]  # nothing of the uploads' names
    for upload, name in ((uploads[0], "photo-01.jpg"), (uploads[2], "photo-03.png")):
        before, after = decode_photo(Path(upload.path).read_bytes()), decode_photo(files[name])
        assert (after.format, after.pixels.shape) == (before.format, before.pixels.shape)
        assert abs(after.pixels[35:85, 25:75].astype(int) - before.pixels[35:85, 25:75]).mean() > 20
    report = files["report.html"].decode()
    for text in (
        "<h2>photo-01.jpg</h2>",
        "Person 1: changed;",
        "Person 3: changed;",
        "Photo 2: This file could not be used: not a photo",
        "Photo 4: no face was found on it.",
        "3 faces were changed",
        "does not make anybody\nanonymous",
    ):
        assert text in report, text
    assert not [upload.name for upload in uploads if upload.name in report]
    page = " ".join(view.verdict.split())
    assert "2 of 4 photos are in the ZIP." in page
    assert "Photo 2 (notes.txt): This file could not be used" in page
    assert view.label == "Download the ZIP"


def test_who_is_left_out_is_named_on_page_button_file_and_report(uploads: list[Upload]) -> None:
    view = run(uploads, [0])
    files = unpack(view)
    assert Path(view.download or "").name == "dedim-some-faces.zip"
    assert list(files) == ["photo-01-some-faces.jpg", "report.html"]
    report = files["report.html"].decode()
    assert "Person 2: left out, <strong>not protected</strong>." in report
    assert "Photo 3: nobody on it was chosen." in report
    assert "Photo 1 (beach.jpg): Person 2 was left out and is <strong>not protected</strong>" in " ".join(
        view.verdict.split()
    )
    assert view.label == "Download the ZIP (1 face left out, not protected)"


def test_one_album_over_all_photos(uploads: list[Upload]) -> None:
    handlers = toy_handlers(detect)
    run(uploads, [0, 1, 2], handlers=handlers)
    first, second = (keywords["album"] for keywords in handlers.protector.pipe.keywords)
    assert first is second


def test_a_photo_that_stays_above_the_threshold_is_not_in_the_zip(uploads: list[Upload]) -> None:
    handlers = toy_handlers(detect, reached=False)
    view = run(uploads, [0, 1, 2], handlers=handlers)
    assert view.download is None
    assert "None of the photos is offered as a file." in view.verdict
    assert "Photo 3 (party.png): 1 of 1 faces still match" in view.verdict


def test_an_error_on_one_photo_costs_the_others_nothing(
    uploads: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = toy_handlers(detect)
    pipe = handlers.protector.pipe
    call = type(pipe).__call__

    def fail_once(self: Any, photos: list[Image.Image], **keywords: Any) -> Any:
        if photos[0].size == (200, 120):
            raise RuntimeError("out of memory for beach.jpg")
        return call(self, photos, **keywords)

    monkeypatch.setattr(type(pipe), "__call__", fail_once)
    view = run(uploads, [0, 1, 2], handlers=handlers)
    assert list(unpack(view)) == ["photo-03.png", "report.html"]
    assert "Something went wrong here (RuntimeError)" in view.photos[0].reason
    assert "out of memory" not in view.verdict


def test_what_was_done_before_a_stop_is_kept(uploads: list[Upload]) -> None:
    handlers = toy_handlers(detect)

    def report(share: float, words: str) -> None:
        if words.startswith("Photo 2 of 3"):
            handlers.stop("s")

    view = run(uploads, [0, 1, 2], handlers=handlers, report=report)
    assert list(unpack(view)) == ["photo-01.jpg", "report.html"]
    assert view.photos[2].reason == "Stopped. Nothing was changed."
    handlers.expect("s")
    handlers.stop("s")
    with pytest.raises(DemoError, match=r"^Stopped\. Nothing was changed\.$"):
        run(uploads, [0, 1, 2], handlers=handlers)
    assert not handlers._running


def test_the_progress_is_of_all_photos(uploads: list[Upload]) -> None:
    told: list[tuple[float, str]] = []
    run(uploads, [0, 1, 2], report=lambda *words: told.append(words))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert told[0][1].startswith("Photo 1 of 3. Round 1 of at most")
    assert any(words.startswith("Photo 2 of 3. ") for _, words in told)


def test_others_come_in_between_the_photos_of_a_long_run(uploads: list[Upload]) -> None:
    """Each photo waits for its turn: who has one photo does not wait for somebody's twenty."""
    handlers = toy_handlers(detect, pause=0.02)
    order: list[str] = []

    def watch(name: str) -> Any:
        def report(share: float, words: str) -> None:
            if "Waiting" not in words and order[-1:] != [name]:
                order.append(name)

        return report

    def one(name: str, files: list[Upload]) -> None:
        opened, folder = handlers.open(files), str(Path(uploads[0].path).parent)
        handlers.protect(opened, opened.everybody, "standard", None, name, folder, watch(name))

    many = threading.Thread(target=one, args=("many", [uploads[0], uploads[2], uploads[0]]))
    many.start()
    while not order:
        time.sleep(0.001)
    single = threading.Thread(target=one, args=("single", [uploads[2]]))
    single.start()
    many.join(60)
    single.join(60)
    assert order == ["many", "single", "many"]


def test_limits_are_told_before_anything_is_opened(
    uploads: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = toy_handlers(lambda _: pytest.fail("opened"))
    with pytest.raises(
        DemoError, match=r"up to 20 photos at a time, and these are 24\. For whole folders there is"
    ):
        handlers.open(uploads * 6)
    monkeypatch.setattr(actions, "MAX_BYTES", 1_000_000)
    Path(uploads[0].path).write_bytes(b"0" * 1_600_000)
    with pytest.raises(DemoError, match=r"up to 1 MB at a time, and these photos are 2 MB\. Choose fewer\."):
        handlers.open(uploads)


def test_files_of_which_none_can_be_used(uploads: list[Upload]) -> None:
    handlers = toy_handlers(detect)
    with pytest.raises(DemoError, match=r"^This file could not be used: not a photo"):
        handlers.open([uploads[1]])
    with pytest.raises(DemoError, match=r"notes\.txt: This file .* notes\.txt: This file"):
        handlers.open([uploads[1]] * 2)


def test_names_of_files_cannot_become_markup(uploads: list[Upload]) -> None:
    files = [*uploads[:1], Upload(uploads[1].path, "<img src=x>.txt")]
    handlers = toy_handlers(detect)
    from diffusers_dedim.demo import texts

    opened = handlers.open(files)
    assert "<img" not in texts.list_problems(opened)
    assert "<img src=x" not in run(files, [0, 1], handlers=handlers).verdict


def test_a_large_zip_is_written_to_disk_piece_by_piece(
    uploads: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nameless until it is done: nobody is handed half of one, and no age deletes it meanwhile."""
    folder = Path(uploads[0].path).parent
    during: list[list[str]] = []
    add = jobs.Bundle.add

    def watch(self: Any, *arguments: Any) -> Any:
        during.append([path.name for path in folder.rglob("*.zip")])
        return add(self, *arguments)

    monkeypatch.setattr(jobs.Bundle, "add", watch)
    run(uploads, [0, 1, 2])
    assert during == [[], []]
    assert BytesIO(next(folder.rglob("*.zip")).read_bytes()).read(2) == b"PK"
