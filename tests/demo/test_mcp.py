"""The page as a server of the Model Context Protocol, asked by that protocol's own client over 127.0.0.1."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_port import free_port
from PIL import Image
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo import launch
from diffusers_dedim.demo.handlers import DemoHandlers
from diffusers_dedim.images.files import decode_photo

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"])]


@pytest.fixture(scope="module")
def handlers() -> DemoHandlers:
    return toy_handlers(lambda pixels: [toy_face(20, 30, 60), toy_face(120, 40, 50)] if pixels.any() else [])


@pytest.fixture(scope="module")
def url(handlers: DemoHandlers, cache: Path) -> Iterator[str]:
    demo, address = launch.serve(handlers, port=free_port(), mcp=True, block=False)
    yield address
    demo.close()


def ask(url: str, work: Callable[[Any], Any]) -> Any:
    """Open a session, do something in it, and close it."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> Any:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await work(session)

    return asyncio.run(asyncio.wait_for(talk(), 120))


def call(url: str, **arguments: Any) -> tuple[bool, str]:
    """Whether the tool failed, and its words."""
    answer = ask(url, lambda session: session.call_tool("protect", arguments))
    assert {part.type for part in answer.content} == {"text"}, "a picture would be packed anew, unjudged"
    return bool(answer.isError), " ".join(part.text for part in answer.content)


def as_text(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def photo() -> bytes:
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_the_tool_says_what_it_does_and_what_it_takes(url: str) -> None:
    (tool,) = ask(url, lambda session: session.list_tools()).tools
    assert tool.name == "protect"
    assert tool.description.startswith(
        "Change the faces in a photo a little, so that face recognition matches"
    )
    assert "does not make anybody anonymous" in tool.description
    properties = tool.inputSchema["properties"]
    assert set(properties) == {"photo", "strength", "faces", "second_photo"}
    assert "from left to right from 1" in properties["faces"]["description"]


def test_a_photo_is_protected_and_lies_in_the_private_folder(url: str, cache: Path) -> None:
    import urllib.request

    failed, words = call(url, photo=as_text(photo()), strength="gentler", faces=[2])
    assert not failed, words
    address = re.search(r"http://127\.0\.0\.1:\d+/gradio_api/file=\S+?\.jpg", words)
    assert address, words
    assert "'left_out_not_protected': [1]" in words
    with urllib.request.urlopen(address[0]) as answer:
        change = abs(decode_photo(answer.read()).pixels.astype(int) - decode_photo(photo()).pixels)
    assert change[45:85, 125:165].mean() > 30 > 3 > change[35:85, 25:75].mean()
    sent = [path for path in cache.rglob("*") if path.is_file() and path.read_bytes() == photo()]
    assert sent
    assert all(path.relative_to(cache).parts[0].startswith("dedim-demo-") for path in sent), "kept for ever"


def test_no_address_of_this_computer_is_fetched(url: str) -> None:
    """Gradio refuses it: a model must not read what only this computer can reach."""
    failed, words = call(url, photo=f"{url}config")
    assert failed
    assert "components" not in words


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"photo": as_text(b"Dear diary")}, "This file could not be used: not a photo in a known format"),
        ({"photo": as_text(photo()[:300])}, "This file could not be used: damaged or truncated"),
        ({"photo": "/etc/passwd"}, "provide a url"),
        ({"photo": as_text(photo()), "strength": "much"}, "strength: expected one of ['gentler', 'standard'"),
        (
            {"photo": as_text(photo()), "faces": [9]},
            "Face 9 cannot be chosen; in this photo these can: 1, 2.",
        ),
    ],
)
def test_what_cannot_be_done_is_told(url: str, arguments: dict[str, Any], told: str) -> None:
    failed, words = call(url, **arguments)
    assert failed
    assert told in words
    assert json.dumps(words).isascii() or "Traceback" not in words
