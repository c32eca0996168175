"""The site of docs/ is built without a warning, asks nobody for anything, and its reference leaves no folder out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_A_PAGE = {"cli", "demo", "images", "templates", "weights"}


def test_the_reference_has_a_page_for_each_folder() -> None:
    folders = {path.name for path in (ROOT / "src" / "diffusers_dedim").iterdir() if path.is_dir()}
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")} - {"index"}
    assert pages == folders - WITHOUT_A_PAGE - {"__pycache__"}


class Loaded(HTMLParser):
    """What a browser would fetch for a page, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        if "src" in values:
            self.assets.append(values["src"])
        if "href" in values:
            (self.links if tag == "a" else self.assets).append(values["href"])


def missing(page: Path, addresses: list[str]) -> list[str]:
    """Those that are neither elsewhere nor a file of the site."""
    local = [address for address in addresses if not re.match(r"[a-z]+:|//|#", address)]
    return [name for name in local if not (page.parent / unquote(name.partition("#")[0])).exists()]


@pytest.mark.slow
def test_the_site_is_built_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ruff formats signatures
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(path for path in tmp_path.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 30
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert not [address for address in loaded.assets if re.match(r"https?:|//", address)], page
        assert not missing(page, [*loaded.assets, *loaded.links]), page
