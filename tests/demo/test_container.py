"""The steps of the Dockerfile, one by one, without Docker."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from toy_demo import launched, toy_face, toy_handlers
from typer.testing import CliRunner

from diffusers_dedim.cli import main as cli

ROOT = Path(__file__).parents[2]
KNOWN = {"FROM", "RUN", "COPY", "USER", "WORKDIR", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}


def steps() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


STEPS = steps()


def values(name: str) -> list[str]:
    return [value for step, value in STEPS if step == name]


def test_every_step_is_one_that_is_looked_at() -> None:
    assert {name for name, _ in STEPS} == KNOWN
    assert STEPS[0][0] == "FROM"
    assert STEPS[-1][0] == "CMD"


def test_what_is_copied_is_there_and_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {word for value in values("COPY") for word in value.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.slow  # builds a wheel of 24 MB
def test_what_is_copied_is_enough_for_a_wheel(tmp_path: Path) -> None:
    import shutil

    for name in (word for value in values("COPY") for word in value.split()[:-1]):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist"]
    subprocess.run([*pip, tmp_path], check=True, timeout=600)
    assert len(list((tmp_path / "dist").glob("diffusers_dedim-*.whl"))) == 1


def test_it_runs_offline_and_not_as_root() -> None:
    names = [name for name, _ in STEPS]
    (user,) = values("USER")
    assert user != "root"
    assert any(f"useradd --create-home --uid 1000 {user}" in value for value in values("RUN"))
    assert "RUN" not in names[names.index("USER") :]  # as root something is installed, and nothing is run
    settings = dict(word.split("=", 1) for value in values("ENV") for word in shlex.split(value))
    assert settings["HF_HUB_OFFLINE"] == "1"
    assert settings["GRADIO_SERVER_NAME"] == "0.0.0.0"  # of the container; what reaches it, docker's -p says


def test_the_extra_and_the_command_exist() -> None:
    (installed,) = (value for value in values("RUN") if "/source" in value)
    assert re.search(r'"/source\[demo\]"', installed)
    words = json.loads(values("CMD")[0])
    assert words[:2] == ["dedim", "demo"]
    shown = CliRunner().invoke(cli.app, ["demo", "--help"])
    assert shown.exit_code == 0
    assert words[2] in shown.stdout
    assert values("EXPOSE") == [words[3]]


def test_the_health_check_asks_the_page(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, _, command = values("HEALTHCHECK")[0].partition(" CMD ")
    assert "--start-period=120s" in options  # the networks are loaded first
    python, flag, code = json.loads(command)
    assert (python, flag) == ("python", "-c")

    def ask(address: str, timeout: float) -> Any:
        place = address.removeprefix("http://127.0.0.1:7860")
        assert place.startswith("/")
        answer = client.get(place)
        if answer.status_code != 200:
            raise urllib.error.HTTPError(address, answer.status_code, "", None, None)  # type: ignore[arg-type]
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", ask)
    with launched(toy_handlers(lambda _: [toy_face(20, 30, 60)])) as (_, client):
        exec(code, {})
