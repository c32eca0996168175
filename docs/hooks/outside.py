"""Links to files outside `docs/` for MkDocs.

The pages link to them as a forge wants it (`../model_cards/unet.md`), and there is no address of one to put in place.
So every file that is linked joins the site, below `project/`: Markdown and notebooks as pages, others as they are.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href)=\")(?P<target>[^()\s#\":]+)(?=[)#\s\"])")


def in_site(path: Path) -> str:
    """The name of a file of the repository among the site's sources."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"project/{path.relative_to(ROOT).as_posix()}"
    return f"{name}.md" if path.suffix == ".ipynb" else name


def in_repository(name: str) -> Path:
    """The reverse of `in_site`."""
    if not name.startswith("project/"):
        return DOCS / name
    return ROOT / name.removeprefix("project/").replace(".ipynb.md", ".ipynb")


def linked(source: Path, target: str) -> Path | None:
    """The file of the repository that a link leads to; None for what is no such file."""
    path = (source.parent / target).resolve()
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_relative_to(ROOT) and path.is_file() else None


def as_page(path: Path) -> str:
    """The text of a Markdown file; a notebook as its texts and its code."""
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what those pages link to."""
    pages = [DOCS / file.src_uri for file in files.documentation_pages()]
    while pages:
        page = pages.pop()
        for match in LINK.finditer(as_page(page)):
            path = linked(page, match["target"])
            if path is None or files.get_file_from_path(in_site(path)):
                continue
            if path.suffix in (".md", ".ipynb"):
                files.append(File.generated(config, in_site(path), content=as_page(path)))
                pages.append(path)
            else:
                files.append(File.generated(config, in_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each link lead to where its file lies in the site."""
    source = in_repository(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = linked(source, match["target"])
        if path is None:
            return match[0]
        return match["before"] + posixpath.relpath(in_site(path), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
