"""The page in headless Chromium: what the tests that drive it share.

Needs Debian's ``chromium`` (or ``CHROMIUM``) and playwright for Python. With ``DEDIM_SCREENSHOTS=FOLDER`` `picture`
leaves pictures of the page to look at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_demo import toy_face

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
# allow_hosts: the server itself may talk to nobody else either
MARKS = [
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


def opened_page(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A loaded page; at the end every request must have stayed on this machine."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
    context.set_default_timeout(SECONDS)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("#photos")
    yield page
    outside = [other for other in asked if not other.startswith((url, "data:", "blob:"))]
    context.close()
    assert not outside, "the page asked other hosts"


def upload(page: Any, path: Path | list[Path], field: str = "photos") -> None:
    page.set_input_files(f"#{field} input[type=file]", path)


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


def wait_for_checked(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#chosen input:checked').length == {count}")


def click_on_picture(page: Any, x: float, y: float) -> None:
    """At these shares of its width and height."""
    box = page.locator("#faces img").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def shown_photo(page: Any) -> str:
    """Its address, which says what its pixels are."""
    return page.evaluate("document.querySelector('#faces img').src")


def slow_network(page: Any, seconds: float) -> None:
    """From now on an answer takes so long on its way."""
    conditions = {
        "offline": False,
        "latency": 1000 * seconds,
        "downloadThroughput": -1,
        "uploadThroughput": -1,
    }
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", conditions)


def wait_for_other_photo(page: Any, before: str) -> None:
    page.wait_for_function("before => document.querySelector('#faces img').src != before", arg=before)
