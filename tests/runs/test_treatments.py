"""What a run says of faces that were covered, tried again or not chosen; and whom it is told to protect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from toys import ToyEncoder, face_at, tiny_preset

from diffusers_dedim import DeDiMPipeline, faces
from diffusers_dedim.cli.run import summarise
from diffusers_dedim.pipeline import persons
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.people import find_people
from diffusers_dedim.runs.ray.stages import _row, _unpack
from diffusers_dedim.runs.records import RunResult, RunSettings
from diffusers_dedim.runs.report import render_report
from diffusers_dedim.runs.run import FolderRun

Pixels = NDArray[np.uint8]
LARGE, SMALL = face_at(0, 0, 112), face_at(130, 40, 30)


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "easy", tiny_preset(threshold=0.999, max_rounds=1))
    monkeypatch.setitem(PRESETS, "never", tiny_preset(threshold=0.001, max_rounds=1, retries=1))


@pytest.fixture
def source(pipe: DeDiMPipeline, crop: Pixels, tmp_path: Path) -> Path:
    """A photo of a large and a small face."""
    pipe.face_detector = lambda _: [LARGE, SMALL]
    pixels = np.random.default_rng(0).integers(100, 150, (112, 200, 3), dtype=np.uint8)
    pixels[:, :112] = crop
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    return tmp_path / "in"


def protect(pipe: DeDiMPipeline, source: Path, **options: Any) -> RunResult:
    settings = RunSettings(**{"preset": "easy", "seed": 3, **options})
    return FolderRun([source], source.parent / "out", settings).execute(pipe)


def lines(result: RunResult, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    summarise(result)
    return tuple(capsys.readouterr())


def test_manifest_report_and_summary_say_who_was_blurred(
    pipe: DeDiMPipeline, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = protect(pipe, source)
    (record,) = result.protected
    assert [face.treatment for face in record.faces] == ["changed", "blurred"]
    assert record.notes == ("1 of 2 faces was blurred (under 40 px)",)
    said, _ = lines(result, capsys)
    assert said.startswith("1 of 1 photos protected (2 faces, 1 blurred) in ")
    assert "Note: a.png: 1 of 2 faces was blurred (under 40 px).\n" in said
    row = json.loads((result.out / MANIFEST_NAME).read_text().splitlines()[-1])
    assert [(face["treatment"], face["reason"]) for face in row["faces"]] == [
        ("changed", ""),
        ("blurred", "under 40 px"),
    ]
    page = "".join(render_report(result))
    assert "<td>blurred, under 40 px</td>" in page
    assert "<dt>Faces covered</dt><dd>1</dd>" in page


def test_a_stubborn_face_fails_its_photo_or_is_covered(
    pipe: DeDiMPipeline, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = (result := protect(pipe, source, preset="never")).failures
    assert record.reason.startswith("1 of 2 faces still match (similarity ")
    assert record.faces[0].attempts == ("first", "another draw")
    assert not (result.out / "a.png").exists()
    again = FolderRun([source], source.parent / "two", replace(result.settings, fallback="pixelate"))
    (record,) = (result := again.execute(pipe)).protected
    assert record.notes == (
        "1 of 2 faces was pixelated (stayed above the threshold)",
        "1 of 2 faces was blurred (under 40 px)",
    )
    assert "(2 faces, 1 blurred, 1 pixelated)" in lines(result, capsys)[0]
    page = "".join(render_report(result))
    assert "<td>pixelated, stayed above the threshold, tried 2 times</td>" in page
    assert FolderRun([source], source.parent / "two", result.settings, resume=True).pending == ()


def test_a_face_that_cannot_be_changed_is_listed_with_its_reason(pipe: DeDiMPipeline, source: Path) -> None:
    pipe.face_detector = lambda _: [replace(LARGE, reason="lies on its side"), SMALL]
    (record,) = protect(pipe, source, small_faces="skip").failures
    assert (record.status, record.output) == ("not_protected", None)
    assert record.reason == "1 of 1 faces cannot be changed (lies on its side)"
    again = FolderRun([source], source.parent / "two", RunSettings(preset="never", seed=0))
    (record,) = again.execute(pipe).protected
    assert record.notes == (
        "1 of 2 faces was blurred (lies on its side)",
        "1 of 2 faces was blurred (under 40 px)",
    )


def test_ray_carries_the_reasons_of_faces() -> None:
    faces = (replace(LARGE, reason="lies on its side"), SMALL)
    row = _row("a.png", b"", faces)
    assert [face.reason for face in _unpack(row["faces"], row["reasons"])] == ["lies on its side", ""]


@pytest.fixture
def me(tmp_path: Path, crop: Pixels, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo of the left face; toy recognisers have another scale."""
    Image.fromarray(crop).save(tmp_path / "me.png")
    monkeypatch.setattr(persons, "reference_face", _reference)
    monkeypatch.setattr(ToyEncoder, "forward", lambda self, crops: _two_people(crops))
    return tmp_path / "me.png"


def _reference(pixels: Pixels, _: Any) -> Any:
    count = pixels.shape[1] // 112
    detect = lambda _: [face_at(112 * index, 0, 112) for index in range(count)]  # noqa: E731
    return REFERENCE(pixels, detect)


REFERENCE = persons.reference_face


def _two_people(crops: torch.Tensor) -> torch.Tensor:
    """The left face of the photo, upright, is one person; all else is another."""
    mine = (crops[:, :, :40].std((1, 2, 3)) > 0.16) & (crops[:, 0, 0, 0] > crops[:, 0, -1, 0])
    # a little of the crop, for a gradient to push by
    return torch.nn.functional.normalize(
        torch.stack([mine + 0.1 * crops.mean((1, 2, 3)), (~mine).float()], 1)
    )


def boxes(result: RunResult) -> list[float]:
    return [face.box[0] for record in result.records for face in record.faces]


@pytest.mark.parametrize(("option", "expected"), [("only", [0]), ("all_but", [130])])
def test_one_person_alone_or_everybody_else(
    pipe: DeDiMPipeline, source: Path, me: Path, option: str, expected: Sequence[float]
) -> None:
    crop = np.asarray(Image.open(me))
    assert crop[0, 0, 0] > crop[-1, 0, 0]
    result = protect(pipe, source, **{option: (str(me),)})
    assert boxes(result) == expected, result.records[0].reason
    assert result.records[0].notes[-1] == "1 of 2 faces was not chosen and left as it is"
    # neither what the person looks like nor what they are known by is on disk
    header = json.loads((result.out / MANIFEST_NAME).read_text().splitlines()[0])
    assert [len(digest) for digest in header["settings"][option]] == [64]
    assert "me.png" not in json.dumps(header)


def test_the_person_is_found_by_the_run_s_own_detector_however_the_photo_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face, asked = face_at(0, 0, 112), []

    def named(name: str) -> Any:
        asked.append(name)
        return lambda pixels: [face]

    path = tmp_path / "me.png"
    Image.fromarray(np.zeros((112, 112, 3), np.uint8)).save(path)
    monkeypatch.setattr(faces, "shared_detector", named)
    found = find_people(RunSettings(only=(str(path),), detector="mine"))
    assert found is not None
    assert ([each.face for each in found.references], asked) == ([face], ["mine"])
    monkeypatch.undo()
    Image.fromarray(np.rot90(astronaut())).save(path)
    assert len(find_people(RunSettings(only=(str(path),))).references) == 1


def test_resuming_with_another_photo_of_the_person_is_refused(
    pipe: DeDiMPipeline, source: Path, me: Path
) -> None:
    result = protect(pipe, source, only=(str(me),))
    FolderRun([source], result.out, result.settings, resume=True)
    Image.fromarray(np.asarray(Image.open(me)) // 2).save(me)
    with pytest.raises(RunError, match="was made with other settings"):
        FolderRun([source], result.out, result.settings, resume=True)


def test_photos_that_show_not_one_face_are_refused_before_any_work(
    source: Path, me: Path, tmp_path: Path
) -> None:
    for width, text in ((100, "no face was found in it"), (224, "it shows 2 faces; crop it")):
        Image.fromarray(np.zeros((112, width, 3), np.uint8)).save(me)
        for option, word in (("only", "--only"), ("all_but", "--except")):
            with pytest.raises(RunError, match=rf"{word} .*me\.png: {text}"):
                FolderRun([source], tmp_path / "out", RunSettings(**{option: (str(me),)}))
    with pytest.raises(RunError, match=r"--only .*gone\.png: "):
        FolderRun([source], tmp_path / "out", RunSettings(only=(str(tmp_path / "gone.png"),)))
    assert not (tmp_path / "out").exists()
