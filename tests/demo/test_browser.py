"""The page in headless Chromium, with a pipeline without networks; ``pytest -m browser``, see `chromium`."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chromium import (
    ENDLESS,
    MARKS,
    click_on_picture,
    detect,
    opened_page,
    picture,
    run,
    shown_photo,
    upload,
    wait_for_checked,
    wait_for_other_photo,
    wait_for_text,
)
from free_port import free_port
from PIL import Image
from toy_demo import toy_handlers

from diffusers_dedim.demo import app, files, launch
from diffusers_dedim.demo import protect as scores
from diffusers_dedim.demo.protect import ScoreScale
from diffusers_dedim.images.files import decode_photo

pytestmark = MARKS


@pytest.fixture(scope="module")
def handlers() -> Any:
    scores.SCALES["toy"] = ScoreScale(0.1, 0.45)
    yield toy_handlers(detect, keen=lambda _: [], pause=0.05)
    del scores.SCALES["toy"]


@pytest.fixture
def page(browser: Any, url: str, handlers: Any) -> Iterator[Any]:
    handlers.protector.pipe.reached, handlers.protector.pipe.rounds = True, 1
    yield from opened_page(browser, url)


def test_upload_choose_run_compare_download(page: Any, photo: Path, tmp_path: Path) -> None:
    picture(page, "1-start")
    upload(page, photo)
    page.wait_for_selector("#faces img")
    wait_for_text(page, "#found", "2 people. Untick whom to leave as they are. One face is too small")
    wait_for_checked(page, 3)
    click_on_picture(page, 450 / 640, 130 / 400)
    wait_for_checked(page, 2)
    picture(page, "2-chosen")
    page.click("#run")
    wait_for_text(page, "#status", "Round 1 of at most")
    picture(page, "3-running")
    page.wait_for_selector("#slider img")
    wait_for_text(page, "#verdict", "Done. 2 faces were changed")
    wait_for_text(page, "#verdict", "Person 2 was left out and is not protected.")
    assert not page.is_visible("#result-which")
    picture(page, "4-result")
    slide(page)
    check_file(photo, download(page, "dedim-some-faces.jpg", tmp_path))


def download(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == name
    download.value.save_as(folder / "kept")
    return folder / "kept"


def test_several_photos_one_zip(page: Any, photo: Path, tmp_path: Path) -> None:
    """Two faces on two photos that are the same people are chosen once; what cannot be used is named."""
    (tmp_path / "notes.jpg").write_text("Dear diary")
    Image.new("RGB", (64, 48)).save(tmp_path / "night.png")
    again = tmp_path / "again.jpg"  # other pixels: the same picture would have the same address
    Image.open(photo).save(again, quality=80)
    upload(page, [photo, tmp_path / "notes.jpg", again, tmp_path / "night.png"])
    page.wait_for_selector("#faces img")
    wait_for_text(page, "#found", "2 people on 3 photos.")
    wait_for_text(page, "#found", "No face was found in photo 4.")
    wait_for_text(page, "#problems", "Photo 2 (notes.jpg): This file could not be used")
    wait_for_text(page, "#chosen", "Person 1, 2 photos")
    shown = "getComputedStyle(document.querySelector('#chosen label'), '::before').backgroundImage"
    assert page.evaluate(shown).startswith('url("data:image/webp')
    picture(page, "10-several")
    for box in ("#chosen", "#which"):
        before = shown_photo(page)
        page.locator(f"{box} label").nth(1).click()
        wait_for_other_photo(page, before)
    run(page)
    wait_for_text(page, "#verdict", "2 of 4 photos are in the ZIP.")
    wait_for_text(page, "#verdict", "Photo 4 (night.png): no face was found on it.")
    wait_for_text(page, "#verdict", "Person 2 was left out and is not protected.")
    picture(page, "11-several-result")
    before = page.get_attribute("#slider img", "src")
    page.locator("#result-which label").nth(1).click()
    page.wait_for_function("before => document.querySelector('#slider img').src != before", arg=before)
    with zipfile.ZipFile(download(page, "dedim-some-faces.zip", tmp_path)) as archive:
        assert archive.namelist() == ["photo-01-some-faces.jpg", "photo-03-some-faces.jpg", "report.html"]


def test_a_box_drawn_by_two_clicks_or_by_numbers(page: Any, handlers: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_selector("#faces img")
    page.get_by_role("button", name="A face has no box? Draw one").click()
    page.wait_for_selector("#add", state="visible")
    page.wait_for_timeout(500)  # the click that opens it is an event of the page too
    click_on_picture(page, 0.3, 0.6)
    wait_for_text(page, "#drawn", "Now click on the opposite corner.")
    click_on_picture(page, 0.5, 0.95)
    wait_for_text(page, "#drawn", "Added as person 3: no eyes, nose and mouth were found in the box")
    wait_for_checked(page, 4)
    page.get_by_label("Left").fill("70")
    page.get_by_label("Right").fill("71")
    page.click("#add")
    wait_for_text(page, "#drawn", "The box is too small")
    page.get_by_label("Right").fill("90")
    page.click("#add")
    wait_for_text(page, "#drawn", "Added as person 4")
    wait_for_checked(page, 5)
    picture(page, "12-drawn")
    run(page)
    wait_for_text(page, "#verdict", "5 faces were changed")
    given = handlers.protector.pipe.keywords[-1]["faces"]
    assert given[3].box == pytest.approx((192, 240, 320, 380), abs=2)  # a click is a whole pixel
    assert given[3].reason


def test_by_keyboard_alone(page: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_selector("#faces img")
    wait_for_checked(page, 3)
    page.get_by_role("checkbox", name="Person 2").focus()
    page.keyboard.press("Space")
    wait_for_checked(page, 2)
    page.get_by_role("radio", name="Standard").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector("#strength label.selected:has-text('Stronger')")
    page.get_by_role("button", name="Protect", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#slider img")
    wait_for_text(page, "#verdict", "Person 2 was left out")


def slide(page: Any) -> None:
    """Dragging the handle moves the edge between before and after."""
    cut = "getComputedStyle(document.querySelector('#slider img.fixed')).clipPath"
    page.wait_for_function(f"{cut} != 'none'")
    before, box = page.evaluate(cut), page.locator("#slider .icon-wrap").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 150, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function(f"before => before != {cut}", arg=before)


def check_file(source: Path, kept: Path) -> None:
    """Same size and format, the chosen face changed, the others not, no metadata."""
    before, data = decode_photo(source.read_bytes()).pixels.astype(int), kept.read_bytes()
    after = decode_photo(data)
    change = abs(before - after.pixels)
    assert after.format == "JPEG"
    assert change.shape == (400, 640, 3)
    assert change[70:170, 70:170].mean() > 20
    assert change[90:170, 410:490].mean() < 2  # JPEG written again at quality 97
    assert b"Exif" not in data


def test_what_changed_and_another_photo(page: Any, photo: Path) -> None:
    upload(page, photo)
    run(page)
    page.get_by_role("tab", name="Difference").click()
    page.wait_for_selector("#change img", state="visible")
    picture(page, "5-change")
    page.click("#back")
    page.wait_for_selector("#photos", state="visible")
    page.wait_for_selector("#result", state="hidden")
    upload(page, photo)
    page.wait_for_selector("#faces img")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_text("Dear diary"), "not a photo in a known format"),
        (lambda path: Image.new("1", (10000, 6000), 1).save(path), "too large (60 megapixels)"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_the_next_works(
    page: Any, photo: Path, tmp_path: Path, make: Any, text: str
) -> None:
    make(tmp_path / "bad.png")
    upload(page, tmp_path / "bad.png")
    wait_for_text(page, "#problem", text)
    assert not page.is_visible("#run")
    picture(page, f"6-problem-{text[:6].strip()}")
    page.wait_for_selector("#photos input[type=file]", state="attached")  # the field is empty again
    upload(page, photo)
    page.wait_for_selector("#faces img")
    page.wait_for_function("!document.querySelector('#problem')?.innerText.trim()")


def test_an_upload_over_the_limit_is_told_and_the_next_works(
    browser: Any, handlers: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Gradio's own words. Files below the limit are judged by us: the test above."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "_MAX_UPLOAD", "1mb")
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    demo, address = launch.serve(handlers, port=free_port(), block=False)
    try:
        for page in opened_page(browser, address):
            upload(page, tmp_path / "large.png")
            wait_for_text(page, "body", "exceed the maximum allowed size of 1.0 Mb")
            upload(page, photo)
            page.wait_for_selector("#faces img")
    finally:
        demo.close()


def test_a_face_that_still_matches_is_told_and_not_offered(page: Any, handlers: Any, photo: Path) -> None:
    handlers.protector.pipe.reached = False
    upload(page, photo)
    run(page)
    wait_for_text(page, "#verdict", "Not protected.")
    wait_for_text(page, "#verdict", "not offered as a file")
    assert not page.is_visible("#download")
    picture(page, "7-not-protected")


def test_stop_and_again_while_somebody_waits(
    browser: Any, page: Any, url: str, handlers: Any, photo: Path
) -> None:
    handlers.protector.pipe.rounds = ENDLESS
    upload(page, photo)
    page.click("#run")
    wait_for_text(page, "#status", "Round")
    for other in opened_page(browser, url):
        upload(other, photo)
        other.click("#run")
        wait_for_text(other, "#status", "Waiting: 1 photo before this one")
        stop(other)
    assert len(handlers._running) == 1
    stop(page)
    assert not handlers._running, "the run went on behind the page"
    handlers.protector.pipe.rounds = 1
    run(page)


def stop(page: Any) -> None:
    """The page comes back to where it was; only then is there something to click on."""
    page.click("#stop")
    wait_for_text(page, "#status", "Stopped. Nothing was changed.")
    page.wait_for_selector("#run")
    page.wait_for_selector("#stop", state="hidden")


def test_closing_the_page_ends_its_run(browser: Any, url: str, handlers: Any, photo: Path) -> None:
    handlers.protector.pipe.rounds = ENDLESS
    for page in opened_page(browser, url):
        upload(page, photo)
        page.click("#run")
        wait_for_text(page, "#status", "Round")
        tickets = handlers._line._tickets
        assert tickets
    deadline = time.monotonic() + 60
    while tickets and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not tickets


def test_a_second_photo(page: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_selector("#faces img")
    page.get_by_text("Check against another photo").click()
    upload(page, photo, "other")
    page.wait_for_selector("#other img")
    run(page)
    wait_for_text(page, "#scores", "against your second photo")
    picture(page, "8-second-photo")


def test_the_camera(page: Any) -> None:
    page.locator("#photos").get_by_label("Capture from camera").click()
    page.locator("#photos").get_by_text("Click to Access Webcam").click()
    page.wait_for_function(
        "document.querySelector('#photos video')?.currentTime > 0.5"
    )  # not the black start
    page.locator("#photos").get_by_label("capture photo").click()
    page.wait_for_selector("#faces img")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(browser: Any, url: str, photo: Path, scheme: Any) -> None:
    for page in opened_page(
        browser,
        url,
        viewport={"width": 360, "height": 780},
        color_scheme=scheme,
        device_scale_factor=2,
        has_touch=True,
        is_mobile=True,
    ):
        picture(page, f"9-phone-{scheme}-start")
        upload(page, photo)
        run(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in ground[4:-1].split(",")[:3]) / 3
        assert (brightness < 60) is (scheme == "dark")
        picture(page, f"9-phone-{scheme}-result")


def test_the_documented_call_of_a_program(url: str, handlers: Any, photo: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    handlers.protector.pipe.reached, handlers.protector.pipe.rounds = True, 1
    client = Client(url, download_files=str(tmp_path), verbose=False, analytics_enabled=False)
    result = client.predict(handle_file(photo), faces=[1], api_name="/protect")
    check_file(photo, Path(result["file"]))
    assert result["left_out_not_protected"] == [2, 3]
    assert result["faces"][0]["reached_threshold"] is True
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/protect"]
    handlers.protector.pipe.reached = False
    with pytest.raises(AppError, match="Not protected, so there is no file"):
        client.predict(handle_file(photo), api_name="/protect")
    (tmp_path / "text.txt").write_text("Dear diary")
    with pytest.raises(AppError, match="not a photo in a known format"):
        client.predict(handle_file(tmp_path / "text.txt"), api_name="/protect")


def test_uploads_and_results_are_deleted(
    browser: Any, handlers: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client, handle_file

    ahead = 0.0  # of this clock
    clock = SimpleNamespace(sleep=time.sleep, time=lambda: time.time() + ahead)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(files, "time", clock)
    monkeypatch.setattr(app, "DELETE_CACHE", (1, 1800))
    handlers.protector.pipe.reached, handlers.protector.pipe.rounds = True, 1
    demo, address = launch.serve(handlers, port=free_port(), block=False)
    try:
        for page in opened_page(browser, address):
            upload(page, photo)
            run(page)
            page.click("#back")
            page.wait_for_selector("#photos", state="visible")
            upload(page, photo)  # a second time, where Gradio alone forgets its files
            run(page)
        client = Client(address, download_files=False, verbose=False, analytics_enabled=False)
        client.predict(handle_file(photo), api_name="/protect")
        written = files_of(tmp_path)
        assert {path.suffix for path in written} >= {".jpg", ".jpeg", ".png"}
        ahead = 1801.0
        deadline = time.monotonic() + 60
        while (left := files_of(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left
    finally:
        demo.close()


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
