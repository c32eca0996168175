"""A run with a real pipeline of toy networks; test_run.py has the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from toys import face_at, tiny_preset

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.faces import align_face
from diffusers_dedim.images.files import read_photo
from diffusers_dedim.pipeline.inputs import generators
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.runs.records import RunSettings
from diffusers_dedim.runs.run import FolderRun


@pytest.fixture
def source(pipe: DeDiMPipeline, crop: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "tiny", tiny_preset(threshold=0.999, max_rounds=1))
    pipe.face_detector = lambda photo: [face_at(0, 0, 112)] if photo.any() else []
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(np.roll(crop, 8 * index, axis=1)).save(folder / f"{index}.png")
    Image.fromarray(np.zeros_like(crop)).save(folder / "black.png")
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:100])
    return folder


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_run_writes_what_the_pipeline_gives_and_names_the_rest(
    pipe: DeDiMPipeline, source: Path, tmp_path: Path, batch_size: int | None
) -> None:
    settings = RunSettings(preset="tiny", seed=3)
    seen: list[str] = []
    run = FolderRun([source], tmp_path / "out", settings)
    result = run.execute(pipe, batch_size=batch_size, on_done=lambda record: seen.append(record.name))
    assert [record.name for record in result.protected] == [f"{index}.png" for index in range(5)]
    assert {record.name: record.status for record in result.failures} == {
        "black.png": "no_face",
        "torn.png": "unreadable",
    }
    assert result.failures[0].reason == "no face was found, so nothing was protected"
    assert sorted(seen) == sorted(record.name for record in result.records)
    for record in result.protected:
        alone = pipe(
            read_photo(source / record.name).pixels, preset="tiny", generator=generators(3, [record.name])
        )
        written = read_photo(tmp_path / "out" / record.name).pixels
        # convolutions of another batch size may add in another order: a value on .5 may round the other way
        assert abs(written.astype(int) - np.asarray(alone.images[0])).max() <= 1
        assert record.faces[0].probability == pytest.approx(alone.faces[0].probability, abs=1e-4)
    assert FolderRun([source], tmp_path / "out", settings, resume=True).pending[0].name == "torn.png"


def test_faces_that_were_skipped_are_noted(pipe: DeDiMPipeline, source: Path, tmp_path: Path) -> None:
    pipe.face_detector = lambda photo: [face_at(0, 0, 112), face_at(60, 60, 30)]
    settings = RunSettings(preset="tiny", small_faces="skip")
    result = FolderRun([source / "0.png"], tmp_path / "out", settings).execute(pipe)
    (record,) = result.protected
    assert record.notes == ("1 of 2 faces are smaller than 40 px and were left UNPROTECTED",)
    assert len(record.faces) == 1
    settings = RunSettings(preset="tiny", small_faces="error")
    refused = FolderRun([source / "1.png"], tmp_path / "out2", settings).execute(pipe)
    assert [record.status for record in refused.records] == ["face_too_small"]


def test_a_grey_photo_is_judged_without_the_colours_that_are_not_written(
    pipe: DeDiMPipeline, crop: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", tiny_preset(threshold=0.999, max_rounds=1))
    pipe.face_detector = lambda photo: [face_at(0, 0, 112)]
    predict, drift = pipe._predict_noise, torch.tensor([1.0, -0.5, 0.2]).view(3, 1, 1)
    monkeypatch.setattr(pipe, "_predict_noise", lambda x_t, timestep: predict(x_t, timestep) + drift)
    Image.fromarray(crop).convert("L").save(tmp_path / "grey.png")
    before = read_photo(tmp_path / "grey.png").pixels
    # the pipeline itself keeps what is grey in three channels grey
    alone = np.asarray(pipe(before, preset="tiny", generator=generators(3, ["grey.png"])).images[0])
    assert (alone == alone[..., :1]).all()
    tinted = before.copy()
    tinted[0, 0, 0] ^= 1  # one pixel that is not grey
    coloured = np.asarray(pipe(tinted, preset="tiny", generator=generators(3, ["grey.png"])).images[0])
    assert (coloured != coloured[..., :1]).any()
    settings = RunSettings(preset="tiny", seed=3)
    (record,) = FolderRun([tmp_path / "grey.png"], tmp_path / "out", settings).execute(pipe).protected
    assert Image.open(tmp_path / "out" / "grey.png").mode == "L"
    after = read_photo(tmp_path / "out" / "grey.png").pixels

    def similarity(pixels: NDArray[np.uint8]) -> float:
        crops = torch.stack([align_face(photo, face_at(0, 0, 112)).crop for photo in (before, pixels)])
        first, second = pipe.face_encoder(crops)
        return float(first @ second)

    assert record.faces[0].similarity == pytest.approx(similarity(after), abs=1e-4)  # float32, clamped
    assert abs(similarity(coloured) - similarity(after)) > 1e-3
