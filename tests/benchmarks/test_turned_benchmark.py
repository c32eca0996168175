from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from toys import face_at, toy_pipeline

from benchmarks import turned
from benchmarks.turned import judge
from diffusers_dedim.faces import Face

UPRIGHT = face_at(10, 20, 60)


class Detector:
    """The same face in every photo, wherever it is turned to; at no turn but the upright one without ``any_turn``."""

    def __init__(self, *, device: Any, any_turn: bool = False) -> None:
        self.any_turn = any_turn

    def __call__(self, photo: NDArray[np.uint8]) -> list[Face]:
        corner = photo[0, 0, 0]
        if corner == 255:  # upright: the corner is marked
            return [UPRIGHT]
        return [face_at(30, 30, 60)] if self.any_turn else []


def test_counts_who_is_found_at_each_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turned, "FaceDetector", Detector)
    pixels = astronaut()[:200, :200].copy()
    pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1] = 255, 0, 0, 0
    for role, name in (("gallery", "1.png"), ("probe", "2.png")):
        folder = tmp_path / role / "somebody"
        folder.mkdir(parents=True)
        Image.fromarray(pixels).save(folder / name)
    turned.main(["--data", str(tmp_path), "--side", "0"], toy_pipeline)
    results = json.loads(capsys.readouterr().out)
    assert results["photos"] == 1
    upright, quarter = results["turns"]["0"], results["turns"]["90"]
    assert upright["plain"]["right"] == upright["any_turn"]["right"] == 1
    assert quarter["plain"]["none"] == 1
    assert quarter["any_turn"]["right"] + quarter["any_turn"]["wrong"] + quarter["any_turn"]["none"] == 1
    assert upright["any_turn"]["seconds"] >= 0


@pytest.mark.parametrize(
    ("face", "word"), [(UPRIGHT, "right"), (face_at(20, 30, 60), "wrong"), (face_at(200, 200, 60), "none")]
)
def test_a_finding_is_judged_by_its_points(face: Face, word: str) -> None:
    assert judge([face], UPRIGHT, 0, (300, 300))[0] == word
