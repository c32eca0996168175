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
from diffusers_dedim.demo.photos import OpenedPhoto
from diffusers_dedim.images.files import Photo
from diffusers_dedim.pipeline.presets import PRESETS

SPACE = Path(__file__).parents[2] / "spaces"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(launch, "serve", lambda handlers, **options: calls.append((handlers, options)))
    monkeypatch.setattr(launch, "load_unseen", lambda: None)
    monkeypatch.setattr(common, "load_pipeline", lambda *_: BoxPipeline(lambda _: []))
    return calls


def test_dedim_demo_serves_on_this_computer_unless_told_to_share(served: list[Any]) -> None:
    assert CliRunner().invoke(cli.app, ["demo"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["demo", "--port", "8123", "--share"]).exit_code == 0
    assert [options for _, options in served] == [
        {"port": None, "share": False},
        {"port": 8123, "share": True},
    ]
    handlers = served[0][0]
    assert handlers.presets[0] == "fast"
    assert "paper" in handlers.presets
    assert handlers.protector.max_seconds is None


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(cli.app, ["demo"])
    assert result.exit_code == EXIT_USAGE
    assert "dedim demo needs the package 'gradio'" in result.stderr
    assert 'run: pip install "diffusers-dedim[demo]"' in result.stderr


def test_help_imports_neither_gradio_nor_torch() -> None:
    code = "import sys, diffusers_dedim.cli.main; print({'gradio', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "set()"


def test_the_space_limits_time_and_presets(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "user/space")
    handlers = launch.make_handlers(BoxPipeline(lambda _: []))
    assert handlers.presets == ("fast",)
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
    opened = OpenedPhoto(Photo(pixels), (toy_face(5, 5, 60),))
    assert handlers.protector(opened, [0], "fast", "standard").reached == (True,)
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


def test_the_presets_are_told_apart_from_the_strengths() -> None:
    handlers = toy_handlers(lambda _: [])
    handlers.presets = ("fast", *(name for name in PRESETS if name != "fast"))
    blocks = {block.elem_id: block for block in build_demo(handlers, "on this computer").blocks.values()}
    labels = {value: label for label, value in blocks["preset"].choices}
    assert set(labels) == set(PRESETS)
    assert labels["strong"] == "Strong (aims lower and tries longer; changes the face more)"
    assert all("(" in label for label in labels.values())
    assert "the strength above is added to it" in blocks["preset"].info
