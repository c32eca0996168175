"""benchmarks.video with toy networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_experiment as toy
from PIL import Image
from toys import ToyEncoder, face_at, tiny_preset

from benchmarks import _clips, _command, video
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.faces import Face
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.video import looks

PRESET = tiny_preset(
    guidance="estimate", guidance_scale=0.2, max_rounds=2, threshold=0.95, threshold_margin=0.02
)


def test_clips_know_where_their_faces_are() -> None:
    photos = [(toy.photo_of(name), toy.CENTRAL) for name in ("red", "green")]
    for kind in _clips.KINDS:
        made = list(_clips.make_clip(photos, kind, 9, 12))
        assert [each.frame.pixels.shape for each in made] == [(240, 320, 3)] * 9
        for each in made:
            for number, face in each.faces.items():
                x, y = face.landmarks.mean(axis=0).astype(int)
                assert each.frame.pixels[y, x].argmax() == number  # red or green
    cross = [set(each.faces) for each in _clips.make_clip(photos, "cross", 9, 12)]
    assert cross[0] == cross[-1] == {0, 1}
    assert {1} in cross  # who passes behind is hidden
    assert [set(each.faces) for each in _clips.make_clip(photos, "cut", 9, 12)][::4] == [{0}, {1}, {0}]


def test_prints_what_is_seen_of_clips_and_draws_them(
    pipe: DeDiMPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        _command, "load_recogniser", lambda name: Recogniser.of(name, ToyEncoder(seed=int(name[-1])))
    )
    monkeypatch.setitem(PRESETS, "fast", PRESET)
    pipe.face_detector = find
    monkeypatch.setattr(looks, "_WORTH", 10**6)  # it knows whole pictures only
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green"], ["red", "green", "blue"])
    words = ["--data", data, "--kinds", "still", "--frames", 5, "--gallery", 1, "--alone", 2]
    words += [
        "--crf",
        18,
        40,
        "--black-box",
        "toy1",
        "--cache",
        tmp_path / "cache",
        "--sheet",
        tmp_path / "sheet.png",
    ]
    video.main(list(map(str, words)), load_pipeline=lambda: pipe)
    found = json.loads(capsys.readouterr().out)
    row = found["clips"]["still"]
    assert (row["frames"], row["face_frames"], row["below"]) == (5, 5, 1.0)
    assert row["frame_by_frame"]["frames"] == 2
    assert row["flicker_psnr"] > row["frame_by_frame"]["flicker_psnr"]
    assert set(row["recognisers"]) == {"white", "toy1"}
    assert found["all"]["below_in_file"] == row["below_in_file"] > 0.5
    assert row["by_crf"]["18"]["bytes"] > row["by_crf"]["40"]["bytes"]
    assert found["all"]["by_crf"] == row["by_crf"]
    assert Image.open(tmp_path / "sheet.png").size == (8 * 320, 3 * 240)


def test_makes_clips_of_a_photo_that_may_be_shown(
    pipe: DeDiMPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "fast", PRESET)
    pipe.face_detector = lambda photo: [face_at(90, 30, 60)]
    monkeypatch.setattr(looks, "_WORTH", 10**6)
    Image.fromarray(toy.photo_of("red")).save(tmp_path / "photo.png")
    words = ["--photo", tmp_path / "photo.png", "--kinds", "talk", "--frames", 3, "--alone", 0, "--black-box"]
    video.main(list(map(str, words)), load_pipeline=lambda: pipe)
    row = json.loads(capsys.readouterr().out)["clips"]["talk"]
    assert (row["face_frames"], row["recognisers"]) == (3, {})


def find(photo: np.ndarray) -> list[Face]:
    """The face of the toy photo: known in the photo, and by its colour in a frame of a still camera."""
    if photo.shape[0] == 120:
        return [toy.CENTRAL]
    (made,) = _clips.make_clip([(toy.photo_of("red"), toy.CENTRAL)], "still", 1, 12)
    return [made.faces[0]] if np.ptp(photo) > 60 else [face_at(0, 0, 50)]
