"""The page in headless Chromium for those who are faster than the server, or leave; ``pytest -m browser``."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
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
    run,
    shown_photo,
    slow_network,
    upload,
    wait_for_checked,
    wait_for_other_photo,
    wait_for_text,
)
from free_port import free_port
from PIL import Image
from toy_demo import toy_handlers

from diffusers_dedim.demo import handlers as drawing
from diffusers_dedim.demo import launch

pytestmark = MARKS
# two faces, shares of the picture's width and height
FIRST, SECOND = (120 / 640, 120 / 400), (450 / 640, 130 / 400)
WIDTH = "document.querySelector('#faces img').naturalWidth"
LOADED = "document.querySelector('#faces img')?.complete"


@pytest.fixture(scope="module")
def pause() -> SimpleNamespace:
    """Seconds that the server takes to find the faces of a photo; and how many photos it has looked at."""
    return SimpleNamespace(detect=0.0, looked=0)


@pytest.fixture(scope="module")
def handlers(pause: SimpleNamespace) -> Any:
    def slow(pixels: np.ndarray) -> list[Any]:
        pause.looked += 1
        time.sleep(pause.detect)
        return [face for face in detect(pixels) if face.box[2] < pixels.shape[1]]  # the example is narrower

    return toy_handlers(slow, keen=lambda _: [], pause=0.05)


@pytest.fixture
def page(browser: Any, url: str, handlers: Any, pause: SimpleNamespace) -> Iterator[Any]:
    pause.detect, handlers.protector.pipe.rounds = 0.0, 1
    yield from opened_page(browser, url)


@pytest.fixture(scope="module")
def other_photo(photo: Path) -> Path:
    """Of other pixels and another size."""
    path = photo.with_name("other.jpg")
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 636, 400)).save(path)
    return path


@pytest.fixture
def draw_slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    mark_faces = drawing.mark_faces

    def set_pause(seconds: float) -> None:
        monkeypatch.setattr(
            drawing, "mark_faces", lambda *arguments: (time.sleep(seconds), mark_faces(*arguments))[1]
        )

    return set_pause


def checked(page: Any) -> str:
    """Who is ticked: 1 or 0 for each."""
    return page.evaluate("[...document.querySelectorAll('#chosen input')].map(box => +box.checked).join('')")


def wait_for_ticks(page: Any, ticks: str) -> None:
    script = (
        "ticks => [...document.querySelectorAll('#chosen input')].map(box => +box.checked).join('') == ticks"
    )
    page.wait_for_function(script, arg=ticks)


def longest_answer(url: str, seconds: float) -> float:
    """The longest time that the server took to answer, in so many seconds."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        with urllib.request.urlopen(f"{url}theme.css", timeout=60) as answer:
            answer.read()
        longest = max(longest, time.monotonic() - start)
        time.sleep(0.1)
    return longest


def test_who_leaves_while_photos_are_opened_stops_nobody_else(
    browser: Any, url: str, pause: SimpleNamespace, photo: Path
) -> None:
    pause.detect, pause.looked = 2.0, 0
    for page in opened_page(browser, url):
        upload(page, [photo] * 6)
        wait_for_text(page, "#problem", "photo 1 of 6")
        pause.detect = 9.0  # of the second
        wait_for_text(page, "#problem", "photo 2 of 6")
    assert longest_answer(url, 10) < 6, "the server waited for the photo, or for all of them"
    assert pause.looked == 2, "photos were opened that nobody waits for"


def test_a_third_visitor_is_told_that_photos_are_being_opened(
    browser: Any, url: str, page: Any, pause: SimpleNamespace, photo: Path
) -> None:
    pause.detect = 4.0
    for first in opened_page(browser, url):
        for second in opened_page(browser, url):
            upload(first, [photo] * 3)
            upload(second, [photo] * 3)
            for other in (first, second):
                wait_for_text(other, "#problem", "of 3")
            upload(page, photo)
            wait_for_text(page, "#problem", "photo 1 of 1")
            assert not first.is_visible("#faces")
            assert not second.is_visible("#faces")


def test_who_leaves_during_a_long_round_stops_nobody_else(
    browser: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    handlers = toy_handlers(detect, pause=12)
    demo, url = launch.serve(handlers, port=free_port(), block=False)
    try:
        for page in opened_page(browser, url):
            upload(page, photo)
            page.wait_for_selector("#faces img")
            page.click("#run")
            wait_for_text(page, "#status", "Round")
        assert longest_answer(url, 5) < 6  # it was as long as the round
    finally:
        demo.close()


def test_photos_after_others_that_took_a_while(
    page: Any, pause: SimpleNamespace, photo: Path, other_photo: Path
) -> None:
    """The page has said meanwhile how far it is."""
    pause.detect = 1.0
    for path in (photo, other_photo):
        upload(page, path)
        wait_for_text(page, "#problem", "photo 1 of 1")
        page.wait_for_selector("#faces img")
        page.click("#back")
        page.wait_for_selector("#photos", state="visible")


def test_a_photo_that_was_opened_before_arrives_whole(page: Any, photo: Path) -> None:
    """The same picture is the same file: written again while it is sent, it is cut off."""
    for _ in range(8):
        page.reload()
        page.wait_for_selector("#photos", state="visible")
        upload(page, photo)
        page.wait_for_function(LOADED)
        page.wait_for_timeout(300)
        assert page.evaluate(WIDTH) == 640


def test_other_photos_after_a_run_was_stopped(
    page: Any, handlers: Any, photo: Path, other_photo: Path
) -> None:
    handlers.protector.pipe.rounds = ENDLESS
    upload(page, photo)
    page.wait_for_selector("#faces img")
    page.click("#run")
    wait_for_text(page, "#status", "Round")
    page.click("#stop")
    wait_for_text(page, "#status", "Stopped.")
    page.wait_for_selector("#run", state="visible")
    page.click("#back")
    upload(page, other_photo)
    page.wait_for_selector("#faces img")
    assert not page.locator("#status").inner_text().strip()
    assert not page.locator("[data-testid=toast-body]").count(), "an error was shown"


def test_a_choice_while_the_boxes_of_another_are_drawn(
    page: Any, photo: Path, draw_slowly: Callable[[float], None]
) -> None:
    upload(page, photo)
    page.wait_for_selector("#faces img")
    everybody = shown_photo(page)
    people = page.locator("#chosen label")
    people.nth(0).click()
    wait_for_other_photo(page, everybody)
    only_second = shown_photo(page)
    people.nth(1).click()
    wait_for_other_photo(page, only_second)
    nobody = shown_photo(page)
    people.nth(1).click()
    wait_for_other_photo(page, nobody)
    people.nth(0).click()
    wait_for_other_photo(page, only_second)
    draw_slowly(1)
    for person in (0, 1):
        people.nth(person).click()
    page.wait_for_function("nobody => document.querySelector('#faces img').src == nobody", arg=nobody)


def test_two_faces_clicked_at_once(page: Any, photo: Path, draw_slowly: Callable[[float], None]) -> None:
    upload(page, photo)
    page.wait_for_function(LOADED)
    draw_slowly(1)
    click_on_picture(page, *FIRST)
    page.wait_for_timeout(200)
    click_on_picture(page, *SECOND)
    wait_for_ticks(page, "001")


def test_a_face_clicked_and_a_person_unticked(
    page: Any, photo: Path, draw_slowly: Callable[[float], None]
) -> None:
    upload(page, photo)
    page.wait_for_function(LOADED)
    everybody = shown_photo(page)
    draw_slowly(1)
    click_on_picture(page, *FIRST)
    wait_for_ticks(page, "011")
    page.locator("#chosen label").nth(1).click()
    wait_for_other_photo(page, everybody)
    page.wait_for_timeout(2000)
    assert checked(page) == "001"


def test_a_person_unticked_and_the_page_turned(
    page: Any, photo: Path, other_photo: Path, draw_slowly: Callable[[float], None]
) -> None:
    upload(page, [photo, other_photo])
    page.wait_for_function(LOADED)
    draw_slowly(1)
    page.locator("#chosen label").nth(0).click()
    page.locator("#which label").nth(1).click()
    page.wait_for_function(f"{WIDTH} == 636")


def test_a_click_on_a_photo_that_is_about_to_go(
    page: Any, photo: Path, other_photo: Path, draw_slowly: Callable[[float], None]
) -> None:
    upload(page, [photo, other_photo])
    page.wait_for_function(LOADED)
    everybody = checked(page)
    draw_slowly(4)
    page.locator("#which label").nth(1).click()
    page.wait_for_timeout(150)
    click_on_picture(page, *FIRST)
    page.wait_for_function(f"{WIDTH} == 636")
    page.wait_for_timeout(500)
    assert checked(page) == everybody


def test_two_corners_at_once(page: Any, photo: Path, draw_slowly: Callable[[float], None]) -> None:
    upload(page, photo)
    page.wait_for_function(LOADED)
    page.get_by_role("button", name="A face has no box? Draw one").click()
    page.wait_for_selector("#add", state="visible")
    page.wait_for_timeout(500)  # the click that opens it is an event of the page too
    draw_slowly(1)
    click_on_picture(page, 0.3, 0.6)
    page.wait_for_timeout(300)
    click_on_picture(page, 0.5, 0.95)
    wait_for_text(page, "#drawn", "Added as person 3")
    wait_for_checked(page, 4)


def wait_for_pages(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#which label').length == {count}")


def test_a_photo_added_while_another_is_opened(
    page: Any, pause: SimpleNamespace, photo: Path, other_photo: Path
) -> None:
    pause.detect, pause.looked = 1.5, 0
    upload(page, photo)
    wait_for_text(page, "#problem", "photo 1 of 1")
    upload(page, other_photo)
    wait_for_text(page, "#problem", "of 2")
    page.wait_for_selector("#faces img")
    wait_for_pages(page, 2)
    assert pause.looked == 3, "photos were opened again"


def test_photos_removed_while_they_are_opened(page: Any, pause: SimpleNamespace, photo: Path) -> None:
    pause.detect, pause.looked = 1.5, 0
    upload(page, [photo] * 3)
    wait_for_text(page, "#problem", "photo 1 of 3")
    page.locator("#photos").get_by_label("Clear").click()
    page.wait_for_function("!document.querySelector('#problem')?.innerText.trim()")
    page.wait_for_timeout(4000)
    assert not page.is_visible("#faces")
    assert pause.looked == 1, "photos were opened that nobody waits for"


def test_the_example_while_photos_are_opened_and_photos_while_it_is(
    page: Any, pause: SimpleNamespace, photo: Path
) -> None:
    pause.detect = 1.5
    upload(page, [photo] * 2)
    wait_for_text(page, "#problem", "photo 1 of 2")
    page.click("#example")
    page.wait_for_selector("#photos img", state="detached")
    page.wait_for_function(LOADED)
    assert page.evaluate(WIDTH) == 512
    page.click("#back")
    page.wait_for_selector("#example", state="visible")
    page.click("#example")
    wait_for_text(page, "#problem", "photo 1 of 1")
    upload(page, [photo] * 2)
    wait_for_text(page, "#problem", "photo 1 of 2")
    page.wait_for_function(LOADED)
    page.wait_for_timeout(3000)
    assert page.evaluate(WIDTH) == 640


@pytest.mark.parametrize("rounds", [1, ENDLESS])
def test_other_photos_at_once_after_run(
    page: Any, handlers: Any, photo: Path, other_photo: Path, rounds: int
) -> None:
    handlers.protector.pipe.rounds = rounds
    upload(page, photo)
    page.wait_for_selector("#faces img")
    slow_network(page, 0.5)
    page.click("#run")
    page.click("#back")
    page.wait_for_selector("#photos", state="visible")
    upload(page, other_photo)
    page.wait_for_selector("#faces img")
    page.wait_for_selector("#run", state="visible")
    page.wait_for_timeout(2000)
    assert not page.locator("#status").inner_text().strip()
    assert not page.is_visible("#result")
    assert not page.locator("[data-testid=toast-body]").count(), "an error was shown"
    assert not handlers._line._tickets, "the run went on behind the page"
    handlers.protector.pipe.rounds = 1
    run(page)


def test_a_face_clicked_and_run_at_once(page: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_function(LOADED)
    assert not page.locator("#heard").is_visible()  # what the page counts is not for the visitor
    slow_network(page, 0.5)
    click_on_picture(page, *SECOND)
    run(page)
    wait_for_text(page, "#verdict", "Person 2 was left out and is not protected.")


def test_two_faces_clicked_and_run_on_a_slow_network(page: Any, photo: Path) -> None:
    upload(page, photo)
    page.wait_for_function(LOADED)
    slow_network(page, 0.5)
    click_on_picture(page, *FIRST)
    click_on_picture(page, *SECOND)
    run(page)
    wait_for_text(page, "#verdict", "Person 1 and Person 2 were left out and are not protected.")
    assert checked(page) == "001"


def test_a_file_that_was_deleted_by_age(page: Any, photo: Path, cache: Path) -> None:
    upload(page, photo)
    run(page)
    for path in cache.rglob("dedim*.jpg"):
        path.unlink()
    page.click("#download")
    wait_for_text(page, "#gone", "The file is not here any more")
