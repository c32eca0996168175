"""Photos and videos in one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_clips import PRESET, detect, moving, picture, sound_of, write_clip

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.presets import PRESETS
from diffusers_dedim.runs.jobs import plan_jobs, result_names
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.records import RunResult, RunSettings
from diffusers_dedim.runs.run import FolderRun
from diffusers_dedim.runs.videos import seed_of
from diffusers_dedim.video.animation import is_animation
from diffusers_dedim.video.reading import VideoReader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(moving(1)[0]).save(source / "photo.png")
    write_clip(source / "clip.mp4", moving(3))
    images = [Image.fromarray(pixels) for pixels in moving(3)]
    images[0].save(source / "dance.gif", save_all=True, append_images=images[1:], duration=80)
    return source


@pytest.fixture
def run(pipe: DeDiMPipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, "fast", PRESET)
    pipe.face_detector = detect

    def call(settings: RunSettings | None = None, on_frame=None, **options: bool) -> RunResult:
        made = FolderRun([folder], tmp_path / "out", settings or RunSettings(seed=0), **options)
        return made.execute(pipe, on_frame=on_frame)

    return call


def test_photos_videos_and_animations_are_entries_of_one_run(run, folder: Path, tmp_path: Path) -> None:
    seen = []
    result = run(on_frame=lambda job, done, total: seen.append((job.name, done, total)))
    out = tmp_path / "out"
    assert {record.name: (record.status, record.output) for record in result.records} == {
        "clip.mp4": ("protected", "clip.mp4"),
        "dance.gif.png": ("protected", "dance.gif.png"),
        "photo.png": ("protected", "photo.png"),
    }
    assert [entry for entry in seen if entry[0] == "clip.mp4"] == [("clip.mp4", n, 3) for n in (1, 2, 3)]
    assert sound_of(out / "clip.mp4") == sound_of(folder / "clip.mp4")
    assert is_animation(out / "dance.gif.png")
    clip = next(record for record in result.records if record.name == "clip.mp4")
    assert clip.notes[0] == "3 frames, 1 person, 100 % of 3 faces below the threshold"
    assert (len(clip.faces), clip.faces[0].reached_threshold) == (1, True)
    rows = [json.loads(line) for line in (out / MANIFEST_NAME).read_text().splitlines()]
    assert {row["name"] for row in rows if row["kind"] == "photo"} == {
        "clip.mp4",
        "dance.gif.png",
        "photo.png",
    }


def test_a_resume_does_what_is_missing(run, tmp_path: Path) -> None:
    first = run()
    (tmp_path / "out" / "clip.mp4").unlink()
    again = run(resume=True)
    assert again.resumed == 2
    assert len(again.protected) == len(first.protected) == 3


def test_a_stop_leaves_no_half_video_and_a_resume_begins_it_anew(run, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_frame=stop)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"clip.mp4", "dance.gif.png"} & left
    assert not [name for name in left if name.startswith(".dedim-tmp")]
    assert len(run(resume=True).protected) == 3


def test_what_cannot_be_protected_is_listed_and_the_others_are_done(
    run, folder: Path, tmp_path: Path
) -> None:
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:-300])
    write_clip(folder / "empty.mp4", [picture()] * 2)
    result = run()
    reasons = {record.name: (record.status, record.reason) for record in result.failures}
    assert reasons["cut.mp4"][0] == "unreadable"
    assert reasons["cut.mp4"][1].startswith("not a video that can be read, or cut off")
    assert reasons["empty.mp4"] == ("no_face", "no face was found in 2 frames, so nothing was protected")
    assert len(result.protected) == 3
    assert not (tmp_path / "out" / "empty.mp4").exists()


@pytest.mark.parametrize("album", [True, False])
def test_a_person_wears_one_face_in_all_videos_of_a_run(run, album: bool) -> None:
    rounds = {
        record.name: record.faces[0].rounds
        for record in run(RunSettings(seed=0, album=album)).records
        if record.name != "photo.png"
    }
    assert rounds["clip.mp4"] > 0
    assert (rounds["dance.gif.png"] == 0) == album


def test_videos_have_their_place(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    plan = plan_jobs([tmp_path], tmp_path.parent / "o")
    assert [job.name for job in plan.jobs] == ["a.mp4", "b.webm.mkv"]
    assert plan.other_files == 1
    assert result_names("a.mp4") == ("a.mp4", "a.not-protected.mp4")
    assert seed_of(1, "a.mp4") != seed_of(2, "a.mp4")


def test_the_file_is_smaller_at_a_higher_rate_factor(run, tmp_path: Path) -> None:
    run(RunSettings(seed=0, crf=4))
    fine = (tmp_path / "out" / "clip.mp4").stat().st_size
    run(RunSettings(seed=0, crf=40), overwrite=True)
    assert (tmp_path / "out" / "clip.mp4").stat().st_size < fine
    with VideoReader(tmp_path / "out" / "clip.mp4") as clip:
        assert np.stack([frame.pixels for frame in clip.frames()]).shape == (3, 120, 160, 3)
