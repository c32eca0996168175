from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM
from free_port import free_port
from PIL import Image

from diffusers_dedim.demo import launch


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Gradio, or the server's own folder in it, keeps its files."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "holiday.jpg"
    coarse = np.random.default_rng(0).integers(60, 196, (10, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    picture = Image.fromarray(coarse).resize((640, 400), Image.Resampling.BICUBIC)
    picture.save(path, quality=95, exif=exif)
    return path


@pytest.fixture(scope="module")
def url(handlers: Any, cache: Path) -> Iterator[str]:
    """Address of a page with the module's ``handlers``."""
    demo, address = launch.serve(handlers, port=free_port(), block=False)
    yield address
    demo.close()
