"""benchmarks.small_faces with colours for people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_experiment as toy
from PIL import Image

from benchmarks import _command, small_faces
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import Probe

PEOPLE = ["red", "green", "blue"]


def test_each_size_and_cover_is_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(small_faces, "FaceDetector", lambda *_, **__: toy.detect)
    monkeypatch.setattr(_command, "load_recogniser", lambda name: Recogniser(name, toy.MeanColour(), name))
    data = toy.write_experiment(tmp_path / "e.parquet", PEOPLE, PEOPLE)
    words = [
        "--data",
        data,
        "--cache",
        tmp_path / "cache",
        "--black-box",
        "toy",
        "--sizes",
        20,
        39,
        "--probes",
        3,
    ]
    words += ["--panel", tmp_path / "panel.png"]
    small_faces.main(list(map(str, words)), load_pipeline=toy.SwapColours)
    results = json.loads(capsys.readouterr().out)
    assert (results["probes"], results["gallery"], list(results["sizes"])) == (3, 3, ["20", "39"])
    for ways in results["sizes"].values():
        assert list(ways) == ["none", "blur", "pixelate", "beside"]
        # a colour is what a cover keeps, and by it these recognisers go
        assert all(way["rank1"] == {"white": 1, "toy": 1} for way in ways.values())
    assert Image.open(tmp_path / "panel.png").size == (4 * small_faces.PANEL_SIDE, 4 * small_faces.PANEL_SIDE)


def test_shrinking_takes_the_face_along() -> None:
    photo = toy.photo_of("red")
    small = small_faces.shrink(Probe("red", photo, toy.CENTRAL), 25)
    assert small.photo.shape == (30, 30, 3)
    assert small.face.size == pytest.approx(25, abs=1e-9)
    np.testing.assert_allclose(
        small.face.landmarks, (toy.CENTRAL.landmarks + 0.5) / 4 - 0.5, rtol=0, atol=1e-9
    )
    with pytest.raises(ValueError, match="size: expected at most the face's 100 px, got 200"):
        small_faces.shrink(Probe("red", photo, toy.CENTRAL), 200)
