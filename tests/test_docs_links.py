"""Every relative link and picture in the Markdown leads to a file that is there, every anchor to a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "model_cards/*.md", "spaces/*.md", "examples/**/*.md")
PAGES = [path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
CODE = re.compile(r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^()\s]+(?:\([^()\s]*\))?)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*#*\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|//")  # a scheme or a host: not looked up


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in addresses, as GitHub does it."""
    found: list[str] = []
    fenced = re.compile(r"^(`{3,})[^\n]*\n.*?^\1\s*$", re.DOTALL | re.MULTILINE)
    for match in HEADING.finditer(fenced.sub("", text)):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", match["title"])
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        found.append(f"{slug}-{again}" if (again := found.count(slug)) else slug)
    return set(found)


def broken_links(page: Path) -> list[str]:
    """The links of a page that lead nowhere, each with what is wrong."""
    problems = []
    for match in LINK.finditer(CODE.sub("``", page.read_text("utf-8"))):
        target = match["target"]
        if ELSEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists():
            problems.append(f"{target}: there is no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8")):
            problems.append(f"{target}: there is no such heading")
    return problems


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_the_readme_is_a_front_door() -> None:
    """Everything else has its page; who wants to protect photos need not pass by rates and recognisers' lines."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 800
    assert "FMR" not in text


def test_the_checker_itself(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One\n\n## A `b`, c: [d](e.md)\n\n## One\n\n```sh\n# no heading\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](other.md) [b](other.md#a-b-c-d) [c](other.md#one-1) [d](#top) ![e](gone.png)\n"
        "[f](other.md#no-heading) [g](https://example.org/x#y) `[h](gone.md)`\n\n```py\n[i](gone.md)\n```\n"
        "[a link\nover two lines](gone.md)\n"
    )
    assert broken_links(page) == [
        "gone.png: there is no such file",
        "other.md#no-heading: there is no such heading",
        "gone.md: there is no such file",
    ]
