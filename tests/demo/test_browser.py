"""The page in headless Chromium, with a pipeline without networks; ``pytest -m browser``.

Needs Debian's ``chromium`` (or ``CHROMIUM``) and playwright for Python. With ``DEDIM_SCREENSHOTS=FOLDER`` it leaves
pictures of the page to look at.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo import app, files, launch
from diffusers_dedim.demo import protect as scores
from diffusers_dedim.demo.protect import ScoreScale
from diffusers_dedim.images.files import decode_photo

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# allow_hosts: the server itself may talk to nobody else either
pytestmark = [
    pytest.mark.browser,
    pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"]),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed (Debian: apt install chromium)"),
]
FACES = [toy_face(60, 60, 120), toy_face(400, 80, 100), toy_face(570, 10, 24)]
SECONDS = 60_000  # a page of Gradio's takes long to load where two cores are shared
ENDLESS = 10**6  # rounds: such a run ends when it is stopped, however slow the machine


def detect(pixels: np.ndarray) -> list[Any]:
    """No face in a black photo; three in the others."""
    return FACES if pixels.any() else []


@pytest.fixture(scope="module")
def handlers() -> Any:
    scores.SCALES["toy"] = ScoreScale(0.1, 0.45)
    yield toy_handlers(detect, pause=0.05)
    del scores.SCALES["toy"]


@pytest.fixture(scope="module")
def url(handlers: Any, cache: Path) -> Iterator[str]:
    demo, address = launch.serve(handlers, port=free_port(), block=False)
    yield address
    demo.close()


def free_port() -> int:
    """One that no other worker of pytest takes at the same time, as the first free from 7860 may be."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, url: str, handlers: Any) -> Iterator[Any]:
    handlers.protector.pipe.reached, handlers.protector.pipe.rounds = True, 1
    yield from opened_page(browser, url)


def opened_page(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A loaded page; at the end every request must have stayed on this machine."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(SECONDS)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#photo")
    yield page
    outside = [other for other in asked if not other.startswith((url, "data:", "blob:"))]
    context.close()
    assert not outside, "the page asked other hosts"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "holiday.jpg"
    coarse = np.random.default_rng(0).integers(60, 196, (10, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    picture = Image.fromarray(coarse).resize((640, 400), Image.Resampling.BICUBIC)
    picture.save(path, quality=95, exif=exif)
    return path


def upload(page: Any, path: Path, field: str = "photo") -> None:
    page.set_input_files(f"#{field} input[type=file]", str(path))


def run(page: Any) -> None:
    page.click("#run")
    page.wait_for_selector("#slider img")
    page.wait_for_selector("#run")  # all of the result has come


def wait_for_text(page: Any, place: str, text: str) -> None:
    script = "([place, text]) => document.querySelector(place)?.innerText.includes(text)"
    page.wait_for_function(script, arg=[place, text])


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("DEDIM_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(700)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_upload_choose_run_compare_download(page: Any, photo: Path, tmp_path: Path) -> None:
    picture(page, "1-start")
    upload(page, photo)
    page.wait_for_selector("#faces img")
    wait_for_text(page, "#faces-found", "3 faces were found. One is under 40 pixels")
    page.wait_for_function("document.querySelectorAll('#chosen input:checked').length == 3")
    box = page.locator("#faces img").bounding_box()
    page.mouse.click(box["x"] + 450 * box["width"] / 640, box["y"] + 130 * box["height"] / 400)
    page.wait_for_function("document.querySelectorAll('#chosen input:checked').length == 2")
    picture(page, "2-chosen")
    page.click("#run")
    wait_for_text(page, "#status", "Round 1 of at most")
    picture(page, "3-running")
    page.wait_for_selector("#slider img")
    wait_for_text(page, "#verdict", "Done for faces 1 and 3.")
    wait_for_text(page, "#verdict", "Face 2 was left out: unchanged and not protected.")
    picture(page, "4-result")
    slide(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "dedim-some-faces.jpg"
    download.value.save_as(tmp_path / "kept.jpg")
    check_file(photo, tmp_path / "kept.jpg")


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
    page.get_by_role("tab", name="What changed").click()
    page.wait_for_selector("#change img", state="visible")
    picture(page, "5-change")
    page.click("#back")
    page.wait_for_selector("#photo", state="visible")
    page.wait_for_selector("#result", state="hidden")
    upload(page, photo)
    page.wait_for_selector("#faces img")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_text("Dear diary"), "not a photo in a known format"),
        (lambda path: Image.new("RGB", (64, 48)).save(path), "No face was found in this photo"),
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
    page.wait_for_selector("#photo input[type=file]", state="attached")  # the field is empty again
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
    wait_for_text(page, "#status", "Stopped. The photo was not changed.")
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
    page.get_by_text("Check against a second photo").click()
    upload(page, photo, "other")
    page.wait_for_selector("#other img")
    run(page)
    wait_for_text(page, "#scores", "against your second photo")
    picture(page, "8-second-photo")


def test_the_camera(page: Any) -> None:
    page.locator("#photo").get_by_label("Capture from camera").click()
    page.locator("#photo").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#photo video')?.currentTime > 0.5")  # not the black start
    page.locator("#photo").get_by_label("capture photo").click()
    page.wait_for_selector("#faces img")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_light_and_dark(browser: Any, url: str, photo: Path, scheme: Any) -> None:
    for page in opened_page(
        browser,
        url,
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
        device_scale_factor=2,
        has_touch=True,
        is_mobile=True,
    ):
        picture(page, f"9-phone-{scheme}-start")
        upload(page, photo)
        run(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in ground[4:-1].split(",")[:3]) / 3
        assert (brightness < 60) is (scheme == "dark")
        picture(page, f"9-phone-{scheme}-result")


def test_the_documented_call_of_a_program(url: str, handlers: Any, photo: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    handlers.protector.pipe.reached, handlers.protector.pipe.rounds = True, 1
    client = Client(url, download_files=str(tmp_path), verbose=False, analytics_enabled=False)
    file, result = client.predict(handle_file(photo), faces=[1], api_name="/protect")
    check_file(photo, Path(file["path"] if isinstance(file, dict) else file))
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
            page.wait_for_selector("#photo", state="visible")
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
