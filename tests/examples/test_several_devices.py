"""One process and a stand-in for the pipeline; two real ones: tests/test_composition_docs.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusers_dedim.errors import NoFaceError

FILE = Path(__file__).parents[2] / "examples" / "several_devices.py"


class Inverter:
    """Protects a photo by inverting it; finds no face in one of a single colour."""

    def to(self, device: object) -> Inverter:
        return self

    def set_progress_bar_config(self, **settings: object) -> None:
        pass

    def __call__(self, photo: np.ndarray, **settings: Any) -> SimpleNamespace:
        if np.ptp(photo) == 0:
            raise NoFaceError("no face was found")
        return SimpleNamespace(images=[255 - photo], faces=[SimpleNamespace(is_protected=True)])


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("several_devices", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DeDiMPipeline", SimpleNamespace(from_pretrained=lambda model: Inverter()))
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).save(folder / "b.gif")
    return folder


def test_a_gif_is_written_as_png(example: ModuleType, photos: Path, tmp_path: Path) -> None:
    assert example.main([str(photos), str(tmp_path / "out"), "--cpu"]) == 0
    assert {path.name: Image.open(path).format for path in (tmp_path / "out").iterdir()} == {
        "a.png": "PNG",
        "b.gif.png": "PNG",
    }


def test_what_an_earlier_run_wrote_for_a_photo_that_fails_is_removed(
    example: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert example.main([str(photos), str(out), "--cpu"]) == 0
    Image.new("RGB", (8, 8), "grey").save(photos / "a.png")
    assert example.main([str(photos), str(out), "--cpu"]) == 1
    assert "1 of 2 photos protected\na.png: no face was found" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["b.gif.png"]


@pytest.mark.parametrize(
    ("out", "text"),
    [("photos", "output equals input"), ("photos/out", "the output folder lies in the input folder")],
)
def test_the_originals_are_not_overwritten(
    example: ModuleType, photos: Path, out: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    with pytest.raises(SystemExit, match="2"):
        example.main([str(photos), str(photos.parent / out), "--cpu"])
    assert text in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
