from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import SpaceCard
from toy_demo import BoxPipeline, toy_face, toy_handlers
from typer.testing import CliRunner

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.cli import common
from diffusers_dedim.cli import main as cli
from diffusers_dedim.cli.common import EXIT_USAGE
from diffusers_dedim.demo import launch
from diffusers_dedim.demo.app import build_demo
from diffusers_dedim.demo.photos import open_photo
from diffusers_dedim.images.files import Photo, encode_photo

SPACE = Path(__file__).parents[2] / "spaces"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(launch, "serve", lambda handlers, **options: calls.append((handlers, options)))
    monkeypatch.setattr(launch, "load_unseen", lambda: None)
    monkeypatch.setattr(common, "load_pipeline", lambda *_: BoxPipeline(lambda _: []))
    return calls


def test_dedim_demo_serves_on_this_computer_unless_told_to_share(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", SimpleNamespace())
    assert CliRunner().invoke(cli.app, ["demo"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["demo", "--port", "8123", "--share", "--mcp"]).exit_code == 0
    assert [options for _, options in served] == [
        {"port": None, "share": False, "mcp": False},
        {"port": 8123, "share": True, "mcp": True},
    ]
    handlers = served[0][0]
    assert handlers.strengths == ("gentler", "standard", "stronger", "paper")
    assert handlers.protector.max_seconds is None


@pytest.mark.parametrize(
    ("package", "words", "extra"), [("gradio", ["demo"], "demo"), ("mcp", ["demo", "--mcp"], "mcp")]
)
def test_without_a_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str, words: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == EXIT_USAGE
    assert f"dedim {' '.join(words)} needs the package '{package}'" in result.stderr
    assert f'run: pip install "diffusers-dedim[{extra}]"' in result.stderr


def test_help_imports_neither_gradio_nor_torch() -> None:
    code = "import sys, diffusers_dedim.cli.main; print({'gradio', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "set()"


def test_the_space_limits_time_and_strengths(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "user/space")
    handlers = launch.make_handlers(BoxPipeline(lambda _: []))
    assert handlers.strengths == ("gentler", "standard", "stronger")
    assert handlers.protector.max_seconds == 180


@pytest.mark.parametrize("zero_gpu", [False, True])
def test_the_spaces_app(served: list[Any], monkeypatch: pytest.MonkeyPatch, zero_gpu: bool) -> None:
    lent: list[str] = []

    def lend(call: Any) -> Any:
        lent.append(call.__name__)
        return call

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lend))
    monkeypatch.setenv("SPACES_ZERO_GPU", "1" if zero_gpu else "")
    pipe = BoxPipeline(lambda _: [toy_face(5, 5, 60)])
    monkeypatch.setattr(pipe, "to", lambda device: pipe, raising=False)
    monkeypatch.setattr(DeDiMPipeline, "from_pretrained", lambda **_: pipe)
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    ((handlers, options),) = served
    assert options == {}
    assert lent == (["_call_pipeline"] if zero_gpu else [])  # once, at the start
    pixels = (__import__("numpy").indices((80, 90)).sum(0) % 251).astype("uint8")[..., None].repeat(3, 2)
    opened = open_photo(encode_photo(Photo(pixels), pixels), lambda _: [toy_face(5, 5, 60)])
    assert handlers.protector(opened, [0], "standard").reached == (True,)
    assert (pipe.keywords[0]["callback_on_step_end"] is None) is zero_gpu


def test_the_spaces_card() -> None:
    card = SpaceCard((SPACE / "README.md").read_text())
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    assert len(card.data.short_description) <= 60  # the Hub refuses longer ones
    assert (SPACE / "app.py").is_file()
    assert "diffusers-dedim[demo]" in (SPACE / "requirements.txt").read_text()


def test_the_page_is_private_by_its_settings() -> None:
    demo = build_demo(toy_handlers(lambda _: []), "on this computer")
    assert demo.analytics_enabled is False
    assert demo.delete_cache == (300, 1800)  # the page says: within 35 minutes
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    visible = [fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"]
    assert visible == ["protect"]
    formats = {block.elem_id: block.format for block in demo.blocks.values() if hasattr(block, "format")}
    assert formats["slider"] == formats["change"] == "png"


@pytest.mark.parametrize("on_space", [False, True])
def test_one_control_of_strength_and_the_papers_setting_beside_it(on_space: bool) -> None:
    handlers = toy_handlers(lambda _: [])
    handlers.strengths = handlers.strengths[: 3 if on_space else 4]
    parts = list(build_demo(handlers, "on this computer").blocks.values())
    (strength,) = (part for part in parts if part.elem_id == "strength")
    assert strength.choices == [("Gentler", "gentler"), ("Standard", "standard"), ("Stronger", "stronger")]
    (more,) = (part for part in parts if getattr(part, "label", None) == "More")
    assert more.visible is not on_space


def test_everything_that_can_be_used_says_what_it_is() -> None:
    parts = build_demo(toy_handlers(lambda _: []), "here").blocks.values()
    fields = [
        part for part in parts if hasattr(part, "label") and getattr(part, "interactive", None) is not False
    ]
    unnamed = [
        part.elem_id for part in fields if not (part.label or part.value) and type(part).__name__ != "HTML"
    ]
    assert not [name for name in unnamed if name]
    pictures = [part for part in parts if type(part).__name__ == "Image" and part.interactive is False]
    assert len(pictures) == 2
    assert all(part.alt_text for part in pictures)
