"""What starting and installing cost: nothing is timed here, only that the right things are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import install


def test_extras_are_not_weighed() -> None:
    names = set(install.brought_by(install.PACKAGE))
    assert {"diffusers-dedim", "torch", "diffusers", "facenet-pytorch", "numpy"} <= names  # requests, too
    assert not {"gradio", "scikit-image", "pytest", "ray"} & names


def test_an_extra_that_is_asked_for_is() -> None:
    assert "pytest" in install.brought_by("diffusers-dedim[test]")


def test_the_json_object_holds_seconds_and_megabytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "STARTS", {"nothing": "pass"})
    packages = {
        name: package for name, package in install.brought_by(install.PACKAGE).items() if name != "torch"
    }
    monkeypatch.setattr(install, "brought_by", lambda _: packages)
    install.main(["--repeats", "1", "--json", str(tmp_path / "install.json")])
    measured = json.loads((tmp_path / "install.json").read_text())
    assert measured == json.loads(capsys.readouterr().out)
    assert measured["processor_seconds"]["nothing"] >= 0
    assert measured["megabytes"] > measured["of_these_for_accelerators"]
    assert measured["megabytes_each"]["diffusers-dedim"] > 20  # its weights


def test_the_quickest_start_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 3.0, 4.0])  # seconds of children before and after each of two starts

    class Usage:
        def __init__(self) -> None:
            self.ru_utime, self.ru_stime = next(clock), 0.0

    monkeypatch.setattr(install.resource, "getrusage", lambda _: Usage())
    assert install.start_seconds("pass", 2) == 1.0
