from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from toys import face_at, toy_pipeline

from benchmarks import detectors
from benchmarks.detectors import draw_crowds, make_cases
from diffusers_dedim.faces import Face


def find_in_the_middle(photo: NDArray[np.uint8]) -> list[Face]:
    """A face where LFW has one, and one that is none, in single photos alone."""
    height, width = photo.shape[:2]
    size = 0.44 * height
    faces = [face_at(0.5 * width - size / 2, 0.53 * height - size / 2, size), face_at(0, 0, 0.1 * height)]
    return faces if width == height else faces[1:]


def test_counts_what_each_detector_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detectors, "named_detector", lambda name: find_in_the_middle)
    for role, person in (("gallery", "one"), ("gallery", "two"), ("probe", "one")):
        folder = tmp_path / role / person
        folder.mkdir(parents=True)
        Image.fromarray(astronaut()[:150, 150:300]).save(folder / f"{role}.png")
    detectors.main(["--data", str(tmp_path), "--detectors", "toy"], toy_pipeline)
    results = json.loads(capsys.readouterr().out)
    assert results["photos"] == 2
    assert set(results["cases"]) == {*make_cases(), "crowd"}
    assert all(case["toy"]["found"] == 1 for name, case in results["cases"].items() if name != "crowd")
    assert results["cases"]["small 24"]["toy"]["agreed"] is None
    assert results["cases"]["crowd"]["toy"]["found"] == 0
    assert results["cases"]["crowd"]["toy"]["false"] == 1


def test_a_crowd_is_where_it_is_said_to_be() -> None:
    photo = np.zeros((250, 250, 3), dtype=np.uint8)
    photo[125:140, 118:133] = (255, 0, 255)  # the middle of a face
    scenes = list(draw_crowds([photo] * 170))
    assert [len(scene.sizes) for scene in scenes] == [24] * 7 + [2]
    for scene in scenes:
        assert ((scene.sizes >= 20) & (scene.sizes <= 100)).all()
        for x, y in scene.middles.round().astype(int):
            assert scene.photo[y, x, 0] > 200 > 60 > scene.photo[y, x, 1]
