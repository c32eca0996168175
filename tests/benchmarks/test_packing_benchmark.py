from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_pipeline import photo_array
from PIL import Image

from benchmarks import packing


def test_sizes_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for role in ("probe", "gallery"):
        (tmp_path / role / "somebody").mkdir(parents=True)
        Image.fromarray(photo_array(size=(64, 64))).save(tmp_path / role / "somebody" / "a.jpg", quality=60)
    packing.main(["--data", str(tmp_path), "--photos", "1", "--json", str(tmp_path / "sizes.json")])
    found = json.loads(capsys.readouterr().out)
    assert found["photos"] == 1
    assert set(found["sizes"]) == {"as they are", "JPEG 90", "WEBP 75", "AVIF 60", "HEIF 50"}
    assert found["sizes"]["as they are"]["same"] == pytest.approx(1, abs=0.1)
    assert found["sizes"]["as they are"]["best"] > 1.2
    assert json.loads((tmp_path / "sizes.json").read_text())["sizes"] == found["sizes"]
