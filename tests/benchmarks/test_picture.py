"""The pictures of faces that may be shown, with a toy pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import face_at, tiny_preset, toy_pipeline

from benchmarks import picture
from diffusers_dedim.pipeline import presets

pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "fast", tiny_preset(max_rounds=1))


def toy() -> Any:
    pipe = toy_pipeline()
    pipe.face_detector = lambda photo: [face_at(60, 40, 90)]
    return pipe


def test_one_face_beside_itself(tmp_path: Path) -> None:
    picture.main(["--out", str(tmp_path / "one.png")], toy)
    shown = Image.open(tmp_path / "one.png")
    assert abs(shown.width - 3 * shown.height) <= 3  # its half pixels are rounded


def test_six_faces_in_two_columns(tmp_path: Path) -> None:
    sheet = Image.new("RGB", (448, 448))
    sheet.paste((200, 150, 120), (336, 336, 448, 448))
    sheet.save(tmp_path / "drawn.png")
    words = ["--six", "--sheet", str(tmp_path / "drawn.png"), "--out", str(tmp_path / "six.png")]
    picture.main([*words, "--drawn", "1", "4", "9", "16"], toy)
    assert picture.drawn_faces(picture.parse([*words, "--drawn", "1", "2", "3", "16"]))[3].getpixel(
        (0, 0)
    ) == (200, 150, 120)
    assert Image.open(tmp_path / "six.png").size == (2 * 3 * 224 + 8, 3 * 224 + 2 * 8)


def test_both_photos_come_from_packages() -> None:
    for photo in (picture.astronaut(), picture.grace_hopper()):
        assert photo.dtype == np.uint8
        assert photo.ndim == 3


def test_a_number_that_was_not_drawn_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        picture.parse(["--six", "--drawn", "1", "2", "3", "17"])
    assert "expected numbers from 1 to 16, got [1, 2, 3, 17]" in capsys.readouterr().err


def test_no_change_is_grey() -> None:
    face = np.full((4, 4, 3), 90, np.uint8)
    assert (picture.difference(face, face) == 128).all()
    assert (picture.difference(face, face + 2) == 144).all()
