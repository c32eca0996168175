"""Photos are packed as finely as asked, and no more coarsely than their protection bears."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline, photo_array
from PIL import Image
from toys import ToyEncoder, face_at, tiny_preset, toy_pipeline

from diffusers_dedim.faces import align_face
from diffusers_dedim.images.files import encode_photo, read_photo
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.runs import writing
from diffusers_dedim.runs.records import RunResult, RunSettings
from diffusers_dedim.runs.run import FolderRun


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo_array(size=(160, 120))).save(tmp_path / "in" / "a.jpg", quality=40)
    return tmp_path / "in"


def protect(source: Path, out: Path, pipe: Any = None, **settings: Any) -> RunResult:
    return FolderRun([source], out, RunSettings(**settings)).execute(pipe or FakePipeline())


def tables(path: Path) -> dict[int, list[int]]:
    with Image.open(path) as image:
        return dict(image.quantization)


def scoring(bear: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the n-th file that is measured keep its face below the threshold or not; returns the calls so far."""
    calls: list[int] = []

    def score(result: Any, *rest: Any) -> Any:
        calls.append(len(calls))
        return tuple(
            replace(face, similarity=0.6, reached_threshold=bear(calls[-1])) for face in result.faces
        )

    monkeypatch.setattr(writing, "score_pixels", score)
    return calls


def test_a_photo_keeps_its_own_coding_where_that_suffices(source: Path, tmp_path: Path) -> None:
    (record,) = protect(source, tmp_path / "out").protected
    assert record.notes == ()
    assert tables(tmp_path / "out" / "a.jpg") == tables(source / "a.jpg")
    size = (source / "a.jpg").stat().st_size
    assert (tmp_path / "out" / "a.jpg").stat().st_size < 1.2 * size
    protect(source, tmp_path / "best", quality="best")
    assert (tmp_path / "best" / "a.jpg").stat().st_size > 1.5 * size
    protect(source, tmp_path / "number", quality=75)
    Image.new("RGB", (8, 8)).save(tmp_path / "75.jpg", quality=75)
    assert tables(tmp_path / "number" / "a.jpg") == tables(tmp_path / "75.jpg")


def test_what_would_show_a_face_again_is_packed_more_finely(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = scoring(lambda number: number == 1, monkeypatch)
    (record,) = protect(source, tmp_path / "out").protected
    assert len(calls) == 2
    assert record.notes == (writing.NOTE_FINER,)
    assert record.faces[0].similarity == 0.6
    before, after = sum(tables(source / "a.jpg")[0]), sum(tables(tmp_path / "out" / "a.jpg")[0])
    assert after == pytest.approx(before / 2, rel=0.05)


def test_what_no_coding_keeps_hidden_is_not_called_protected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = scoring(lambda number: False, monkeypatch)
    result = protect(source, tmp_path / "out")
    (record,) = result.failures
    assert (record.status, record.output) == ("not_protected", None)
    assert record.reason == "1 of 1 faces still match (similarity 0.60)"
    assert not (tmp_path / "out" / "a.jpg").exists()
    assert len(calls) == 3
    (partial,) = protect(source, tmp_path / "partial", allow_partial=True).failures
    assert partial.output == "a.not-protected.jpg"


def test_without_loss_nothing_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scoring(lambda number: False, monkeypatch)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.tif", "c.bmp"):
        Image.fromarray(photo_array()).save(tmp_path / "in" / name)
    Image.fromarray(photo_array()).save(tmp_path / "in" / "d.webp", lossless=True)
    assert len(protect(tmp_path / "in", tmp_path / "out").protected) == 4
    assert calls == []


def test_the_scores_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_preset(threshold=0.999, max_rounds=1))
    pipe, face = toy_pipeline(), face_at(10, 10, 112)
    pipe.face_detector = lambda photo: [face]
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(60, 190, (150, 150, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "a.jpg", quality=20)
    before = read_photo(tmp_path / "in" / "a.jpg").pixels
    (record,) = protect(tmp_path / "in", tmp_path / "out", pipe, preset="tiny", seed=1).protected
    after = read_photo(tmp_path / "out" / "a.jpg").pixels
    with torch.no_grad():
        pair = ToyEncoder()(torch.stack([align_face(pixels, face).crop for pixels in (before, after)]))
    assert record.faces[0].similarity == pytest.approx(float(pair[0] @ pair[1]), abs=1e-5)  # float32 rounding


@pytest.mark.parametrize(
    ("name", "options", "loses"),
    [("a.jpg", {"quality": 20}, True), ("a.webp", {"quality": 20}, False), ("a.png", {}, False)],
)
def test_what_the_finest_file_shows(tmp_path: Path, name: str, options: dict[str, Any], loses: bool) -> None:
    Image.fromarray(photo_array()).save(tmp_path / name, **options)
    photo = read_photo(tmp_path / name)
    packed = writing.pack_finest(photo, RunSettings())
    assert (packed is not None) == loses
    if packed is not None:
        (tmp_path / name).write_bytes(encode_photo(photo, photo.pixels))
        np.testing.assert_array_equal(packed(photo.pixels), read_photo(tmp_path / name).pixels)


def test_a_face_that_its_file_shows_again_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        PRESETS, "tiny", tiny_preset(threshold=0.5, threshold_margin=0.49, max_rounds=9, retries=3)
    )
    pipe = toy_pipeline()
    pipe.face_detector = lambda photo: [face_at(10, 10, 112)]
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(60, 190, (150, 150, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "a.jpg", quality=95)
    original, read = read_photo(tmp_path / "in" / "a.jpg").pixels, [writing._read_back]

    def first_undone(*given: Any) -> Any:
        pixels = read[0](*given)
        if len(read) == 1:
            read.append(read[0])
            return original
        return pixels

    monkeypatch.setattr(writing, "_read_back", first_undone)
    (record,) = protect(tmp_path / "in", tmp_path / "out", pipe, preset="tiny", seed=1).protected
    assert record.faces[0].attempts == ("first", "another draw")


def test_dates_are_kept_on_request(source: Path, tmp_path: Path) -> None:
    then = 1_000_000_000_123_456_789
    os.utime(source / "a.jpg", ns=(then, then))
    protect(source, tmp_path / "kept", keep_times=True)
    protect(source, tmp_path / "new")
    # file systems differ in how finely they count
    assert (tmp_path / "kept" / "a.jpg").stat().st_mtime == pytest.approx(then / 1e9, abs=2)
    assert (tmp_path / "new" / "a.jpg").stat().st_mtime > 1_500_000_000


def test_a_photo_that_was_too_large_is_tried_again_with_another_limit(source: Path, tmp_path: Path) -> None:
    (record,) = protect(source, tmp_path / "out", max_megapixels=0.01).failures
    assert record.reason.startswith(
        "too large: 160 x 120 = 19200 pixels, limit 10000; raise it (--max-megapixels)"
    )
    again = FolderRun([source], tmp_path / "out", RunSettings(max_megapixels=1), resume=True).execute(
        FakePipeline()
    )
    assert [each.status for each in again.records] == ["protected"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"quality": 0}, 'quality must be "same", "best" or a whole number'),
        ({"quality": "fine"}, 'quality must be "same", "best" or a whole number'),
        ({"max_megapixels": 0}, "max_megapixels must be a number above 0, got 0"),
        ({"max_megapixels": float("nan")}, "max_megapixels must be a number above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RunSettings(**settings)
