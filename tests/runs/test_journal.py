from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image

from diffusers_dedim.pipeline.output import FaceResult
from diffusers_dedim.runs.journal import Journal
from diffusers_dedim.runs.manifest import MANIFEST_NAME, UNDER_WAY_NAME, Manifest, names_under_way
from diffusers_dedim.runs.records import PhotoRecord, RunResult, RunSettings, as_recorded
from diffusers_dedim.runs.run import FolderRun

ODD = "sub/\udcff\n\u00e4.png"


def deaths(path: Path) -> Counter[str]:
    return Journal.read(path).deaths


def kinds(path: Path) -> list[tuple[str, str | None]]:
    return [(row["kind"], row.get("name")) for row in map(json.loads, path.read_bytes().splitlines())]


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(photo_array((90, 90, index))).save(folder / f"{index}.png")
    return folder


def protect(source: Path, out: Path, **options: Any) -> RunResult:
    return FolderRun([source], out, **options).execute(FakePipeline(), batch_size=1)


def test_what_was_begun_and_neither_done_nor_stopped_died(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    for name in ("a", "b", ODD):
        first.begin(name)
    first.end([{"kind": "photo", "name": "a"}])
    assert deaths(path) == {"b": 1, ODD: 1}
    second = Journal.read(path)
    with second.alive():  # Ctrl-C: the death before stays one
        second.begin("b")
        assert deaths(path) == {"b": 2, ODD: 1}
    assert deaths(path) == {"b": 1, ODD: 1}
    second.begin("c")  # in a thread that is still at it
    assert deaths(path) == {"b": 1, ODD: 1}
    third = Journal.read(path)
    third.begin("b")
    third.end([{"kind": "photo", "name": "b"}])
    assert deaths(path) == {ODD: 1}


def test_a_record_without_a_try_leaves_the_blame(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).begin("a")
    journal = Journal.read(path)
    journal.end([{"kind": "photo", "name": "a"}, {"kind": "photo", "name": "b"}])
    assert deaths(path) == {"a": 1}
    rows = [row for row in Journal(path).rows() if row]
    assert [row.get("deaths") for row in rows] == [None, 1, None]


def test_many_photos_cost_two_rows_each_and_no_memory(tmp_path: Path) -> None:
    path, names = tmp_path / "journal", [f"{index:05}.png" for index in range(3000)]
    journal = Journal(path)
    for name in names:
        journal.begin(name)
    begun = path.stat().st_size
    assert begun < 3000 * 50
    journal.end({"kind": "photo", "name": name} for name in names[1:])
    journal.stop()
    assert len(kinds(path)) == 2 * 3000
    assert not journal._begun
    assert not journal.deaths


def test_photos_of_many_dead_workers_get_one_row(tmp_path: Path) -> None:
    for _ in range(3):  # killed each time
        Journal.read(tmp_path / "journal").begin_all(["a", "b"])
    assert kinds(tmp_path / "journal") == [("begun", "a"), ("begun", "b")]
    journal = Journal.read(tmp_path / "journal")
    journal.begin_all(["a", "b", "c"])
    journal.end([{"kind": "photo", "name": "a"}])
    journal.stop()
    assert not deaths(tmp_path / "journal")


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_row_that_a_full_disk_has_torn_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    manifest = Manifest.start(tmp_path, {})
    manifest.begin("a.png")
    whole = (tmp_path / MANIFEST_NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # the row is there, and may not stay
        with pytest.raises(OSError, match="No space left"):
            manifest.append([PhotoRecord("a.png", "protected")])
    if step == "write":  # some of it is there
        with (tmp_path / MANIFEST_NAME).open("ab") as file:
            file.truncate(len(whole) + 10)
    assert manifest.records == {}
    manifest.stop()
    assert (tmp_path / MANIFEST_NAME).read_bytes().startswith(whole)
    assert kinds(tmp_path / MANIFEST_NAME) == [("run", None), ("begun", "a.png"), ("stopped", "a.png")]
    assert Manifest.resume(tmp_path, {}).records == {}


def test_the_rows_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = protect(photos(tmp_path / "in", 2), out)
    assert not result.failures
    rows = kinds(out / MANIFEST_NAME)
    assert rows[0] == ("run", None)
    for name in ("0.png", "1.png"):
        assert rows.index(("begun", name)) < rows.index(("photo", name))
    assert len(rows) == 5
    row = json.loads((out / MANIFEST_NAME).read_bytes().splitlines()[-1])
    assert list(row) == [
        *("kind", "name", "status", "reason", "output", "source_sha256", "output_sha256", "faces", "notes"),
        "seconds",
    ]
    assert list(row["faces"][0]) == [
        *(
            "box",
            "similarity_before",
            "similarity",
            "probability",
            "rounds",
            "unet_calls",
            "reached_threshold",
            "treatment",
            "reason",
            "attempts",
        )
    ]


def test_a_face_is_the_same_before_and_after_the_file(tmp_path: Path) -> None:
    numbers = (
        np.float32(0.5),
        np.float64(-0.25),
        np.float32(0.375),
        np.int64(2),
        np.int32(20),
        np.bool_(True),
    )
    box = tuple(np.array([1.5, 2, 3, 4], np.float32))
    done = ("blurred", "under 40 px", ("first", "another draw"))
    face = as_recorded(FaceResult(3, box, np.ones((51, 2)), *numbers, *done))
    Manifest.start(tmp_path, {}).append([PhotoRecord("a.png", "protected", faces=(face,))])
    (again,) = Manifest.resume(tmp_path, {}).records["a.png"].faces
    for each in (face, again):
        assert each.landmarks.shape == (0, 2)
        values = {name: value for name, value in vars(each).items() if name != "landmarks"}
        assert values == {
            "image_index": 0,
            "box": (1.5, 2.0, 3.0, 4.0),
            "similarity_before": 0.5,
            "similarity": -0.25,
            "probability": 0.375,
            "rounds": 2,
            "unet_calls": 20,
            "reached_threshold": True,
            "treatment": "blurred",
            "reason": "under 40 px",
            "attempts": ("first", "another draw"),
        }
        kinds_of = [type(value) for value in (*values.values(), *each.box)]
        assert kinds_of == [*(int, tuple, float, float, float, int, int, bool, str, str, tuple), *[float] * 4]


def as_before(out: Path) -> None:
    """The manifest as versions before the journal wrote it."""
    lines = (out / MANIFEST_NAME).read_bytes().splitlines(keepends=True)
    (out / MANIFEST_NAME).write_bytes(b"".join(line for line in lines if b'"begun"' not in line))


def test_what_earlier_versions_left_is_gone_on_with(tmp_path: Path) -> None:
    source, out = photos(tmp_path / "in", 5), tmp_path / "out"
    protect(source / "0.png", out)
    as_before(out)
    for name in ("1.png", "2.png"):
        (out / name).write_bytes(b"written by the run that was killed")
    events = [
        ["died", "2.png"],
        ["begun", "0.png"],
        ["begun", "1.png"],
        ["begun", "2.png"],
        ["ended", "9.png"],
    ]
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    (out / UNDER_WAY_NAME).write_bytes(b"".join(lines) + b'["begun", "4')
    assert names_under_way(out) == {"0.png", "1.png", "2.png"}
    run, seen = FolderRun([source], out, resume=True), list[str]()
    assert (out / UNDER_WAY_NAME).exists()  # a dry run ends here
    result = run.execute(FakePipeline(), on_done=lambda record: seen.append(record.name))
    assert (len(result.protected), result.resumed) == (5, 1)
    assert seen == ["1.png", "2.png", "3.png", "4.png"]
    assert not (out / UNDER_WAY_NAME).exists()
    assert not names_under_way(out)


def test_a_kill_while_the_earlier_file_is_moved_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Manifest.start(tmp_path, {})
    events = [["died", "a.png"], ["died", "a.png"], ["begun", "b.png"]]
    (tmp_path / UNDER_WAY_NAME).write_text("".join(json.dumps(event) + "\n" for event in events))

    def killed(self: Path, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            Manifest.resume(tmp_path, {}).take_over(())
    assert (tmp_path / UNDER_WAY_NAME).exists()
    for _ in range(2):
        manifest = Manifest.resume(tmp_path, {})
        assert manifest.deaths == {"a.png": 2, "b.png": 1}
        manifest.take_over({"b.png"})
        assert not (tmp_path / UNDER_WAY_NAME).exists()


def test_a_torn_row_of_a_photo_that_was_only_begun_makes_no_file_ours(tmp_path: Path) -> None:
    source, out = photos(tmp_path / "in", 2), tmp_path / "out"
    protect(source / "0.png", out)
    with (out / MANIFEST_NAME).open("ab") as file:
        file.write(b'{"kind": "begun", "name": "1.png"')
    (out / "1.png").write_bytes(b"my own")
    with pytest.raises(ValueError, match=r"1\.png: would be replaced, and no run that"):
        FolderRun([source], out, resume=True)
    with (out / MANIFEST_NAME).open("ab") as file:
        file.write(b"}\n")
    assert FolderRun([source], out, resume=True).pending[0].name == "1.png"


def test_a_stop_is_told_of_those_under_way_alone(tmp_path: Path) -> None:
    source, out = photos(tmp_path / "in", 6), tmp_path / "out"

    def stop(record: PhotoRecord) -> None:
        raise KeyboardInterrupt

    out.mkdir()
    Manifest.start(out, asdict(RunSettings())).begin("5.png")  # in a run that was killed
    run = FolderRun([source], out, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run.execute(FakePipeline(), batch_size=1, on_done=stop)
    rows = Counter(kinds(out / MANIFEST_NAME))
    assert rows["photo", "5.png"] == 1  # it was done first, and alone
    assert not names_under_way(out)
    assert protect(source, out, resume=True).failures == ()
