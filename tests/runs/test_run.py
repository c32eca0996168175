from __future__ import annotations

import errno
import importlib
import json
import os
import random
import shutil
import signal
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import fake_pipeline as fake
import numpy as np
import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image

from diffusers_dedim import __version__
from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.images import files as image_io
from diffusers_dedim.images.files import read_photo
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult
from diffusers_dedim.runs.jobs import RunError, plan_jobs
from diffusers_dedim.runs.journal import Journal
from diffusers_dedim.runs.manifest import (
    LOCK_NAME,
    MANIFEST_NAME,
    MOST_DEATHS,
    UNDER_WAY_NAME,
    Manifest,
    lock_folder,
    names_under_way,
)
from diffusers_dedim.runs.ray.stages import ATTEMPTS_NAME
from diffusers_dedim.runs.records import PhotoRecord, RunResult, RunSettings
from diffusers_dedim.runs.report import REPORT_NAME
from diffusers_dedim.runs.run import FolderRun


def write_photo(path: Path, flag: tuple[int, int, int] = (90, 90, 90)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_array(flag)).save(path)
    return path


def photo_folder(folder: Path, count: int = 3) -> Path:
    for index in range(count):
        write_photo(folder / f"{index:02}.png", (90, 90, index))
    return folder


def written(out: Path) -> list[str]:
    return sorted(
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME
    )


def die_with(out: Path, *names: str) -> None:
    """What a run leaves that is killed while these photos are under way."""
    for name in names:
        Journal(out / MANIFEST_NAME).begin(name)


def deaths(out: Path) -> dict[str, int]:
    return Journal.read(out / MANIFEST_NAME).deaths


def forget(out: Path, text: bytes) -> None:
    """Remove the lines with this text from the manifest."""
    lines = (out / MANIFEST_NAME).read_bytes().splitlines(keepends=True)
    (out / MANIFEST_NAME).write_bytes(b"".join(line for line in lines if text not in line))


def protect(
    inputs: Path | list[Path], out: Path, pipe: FakePipeline | None = None, **options: object
) -> RunResult:
    run_options = {key: options.pop(key) for key in ("resume", "overwrite") if key in options}
    batch_size = options.pop("batch_size", 4)
    paths = inputs if isinstance(inputs, list) else [inputs]
    run = FolderRun(paths, out, RunSettings(**options), **run_options)
    return run.execute(pipe or FakePipeline(), batch_size=batch_size)


def test_tree_is_kept_and_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", ".hidden.png", ".cache/d.png"):
        write_photo(source / name)
    (source / "notes.txt").write_text("no photo")
    result = protect(source, tmp_path / "out")
    assert written(tmp_path / "out") == ["a.PNG", "b.jpg", "deep/er/c.webp"]
    assert [record.name for record in result.records] == ["a.PNG", "b.jpg", "deep/er/c.webp"]
    assert result.other_files == 1
    assert result.failures == ()
    assert Image.open(tmp_path / "out" / "b.jpg").format == "JPEG"


def test_protected_pixels_are_the_pipelines(tmp_path: Path) -> None:
    source = write_photo(tmp_path / "a.png")
    result = protect(source, tmp_path / "out")
    before, after = read_photo(source).pixels, read_photo(tmp_path / "out" / "a.png").pixels
    assert np.array_equal(before[:8], after[:8])
    assert (after[16, 24] == before[16, 24] + 40).all()
    face = result.records[0].faces[0]
    assert (face.similarity, face.reached_threshold, face.box) == (-0.1, True, (12.0, 8.0, 36.0, 24.0))


BAD = {
    "no_face.png": (fake.NO_FACE, "no_face", "no face was found, so nothing was protected"),
    "small.png": (fake.TOO_SMALL, "face_too_small", "a face is 20 px, and 40 px are needed"),
    "left.png": (fake.NOT_REACHED, "not_protected", "1 of 1 faces still match (similarity 0.40)"),
    "crash.png": (fake.CRASH, "error", "RuntimeError: out of memory"),
    "same.png": (fake.UNCHANGED, "not_protected", "no pixel changed"),
}


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_bad_photos_are_named_and_do_not_take_others_down(tmp_path: Path, batch_size: int) -> None:
    source = photo_folder(tmp_path / "in", 4)
    for name, (flag, _, _) in BAD.items():
        write_photo(source / name, flag)
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("dear diary")
    (source / "cut.png").write_bytes((source / "00.png").read_bytes()[:200])
    (source / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    result = protect(source, tmp_path / "out", batch_size=batch_size)
    assert written(tmp_path / "out") == ["00.png", "01.png", "02.png", "03.png"]
    failures = {record.name: (record.status, record.reason) for record in result.failures}
    for name, (_, status, reason) in BAD.items():
        assert failures.pop(name) == (status, reason)
    assert failures.pop("empty.jpg") == ("unreadable", "the file is empty (0 bytes)")
    assert failures.pop("phone.heic")[1].startswith("damaged or truncated")
    assert failures.pop("text.jpg")[1].startswith("not a photo in a known format")
    assert failures.pop("cut.png")[1].startswith("damaged or truncated")
    assert failures == {}


def test_settings_reach_the_pipeline_and_seeds_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in", 3)
    one, three = FakePipeline(), FakePipeline()
    options = {"preset": "paper", "threshold": 0.3, "max_rounds": 7, "small_faces": "skip", "seed": 5}
    protect(source, tmp_path / "one", one, batch_size=1, **options)
    protect(source, tmp_path / "three", three, batch_size=3, **options)
    assert (one.calls, three.calls) == ([1, 1, 1], [3])
    shared = {key: value for key, value in three.keywords[0].items() if key not in ("generator", "album")}
    chosen = {"fallback": "leave-out", "select_faces": None}
    assert shared == {"preset": "paper", "threshold": 0.3, "max_rounds": 7, "small_faces": "skip", **chosen}
    seeds = [keywords["generator"][0].initial_seed() for keywords in one.keywords]
    assert seeds == [generator.initial_seed() for generator in three.keywords[0]["generator"]]
    assert len(set(seeds)) == 3


def test_skipping_small_faces_does_not_call_their_photo_protected(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "small.png", fake.TOO_SMALL)
    result = protect(tmp_path / "in", tmp_path / "out", small_faces="skip")
    assert result.records[0].reason == "no face that is large enough to be protected"
    assert written(tmp_path / "out") == []


def test_partly_protected_photo_is_written_only_on_request_under_a_name_that_says_so(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "left.png", fake.NOT_REACHED)
    write_photo(tmp_path / "in" / "same.png", fake.UNCHANGED)
    result = protect(tmp_path / "in", tmp_path / "out", allow_partial=True)
    assert written(tmp_path / "out") == ["left.not-protected.png"]
    assert [(record.status, record.output) for record in result.records] == [
        ("not_protected", "left.not-protected.png"),
        ("not_protected", None),
    ]


def test_wrong_size_from_the_pipeline_is_not_written(tmp_path: Path) -> None:
    class Shrinking(FakePipeline):
        def __call__(self, photos: list[StreamPhoto], **keywords: object) -> list[StreamResult]:
            results = super().__call__(photos, **keywords)
            return [replace(result, pixels=result.pixels[:10, :10]) for result in results]

    result = protect(write_photo(tmp_path / "a.png"), tmp_path / "out", Shrinking())
    assert result.records[0].reason == "the pipeline returned shape (10, 10, 3) for (32, 48, 3)"
    assert written(tmp_path / "out") == []


def test_gif_gets_a_png_name(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.gif")
    result = protect(tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out") == ["a.gif.png"]
    assert "GIF is written as PNG" in result.records[0].notes[0]


def test_output_that_would_meet_the_input_is_refused_before_any_work(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in", 1)
    cases = [
        ([source], source, "output equals input"),
        ([source], source / "out", "the output folder lies in the input folder"),
        ([source / "00.png"], source, "the input lies in the output folder"),
        ([source], tmp_path, "the input lies in the output folder"),
        ([source], source / "00.png", "the output must be a folder, and a file is there"),
        ([source / "00.png"], tmp_path / "b.png", "the output is a folder, and this is the name of a photo"),
        ([source, tmp_path / "gone"], tmp_path / "out", "gone: no such file or folder"),
        ([], tmp_path / "out", "no photos in an empty list of inputs"),
    ]
    for inputs, out, text in cases:
        with pytest.raises(RunError, match=text):
            FolderRun(inputs, out)
    link = tmp_path / "link"
    link.symlink_to(source, target_is_directory=True)
    with pytest.raises(RunError, match="output equals input"):
        FolderRun([source], link)
    assert written(tmp_path) == ["in/00.png"]


def test_output_linked_to_an_input_is_refused(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in" / "sub", 1).parent
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(source / "sub", target_is_directory=True)
    Manifest.start(tmp_path / "out", {})
    with pytest.raises(RunError, match="would overwrite an input"):
        FolderRun([source], tmp_path / "out", overwrite=True)


def test_folder_without_photos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no photo")
    with pytest.raises(RunError, match=r"no photos in .*in \(looked for .*\.jpg"):
        FolderRun([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_inputs_for_one_output_are_refused_and_repeated_ones_taken_once(tmp_path: Path) -> None:
    first, second = write_photo(tmp_path / "x" / "a.png"), write_photo(tmp_path / "y" / "A.png")
    with pytest.raises(RunError, match=r"x/a\.png and .*y/A\.png would both be written to .*out/A\.png"):
        plan_jobs([first, second], tmp_path / "out")
    assert len(plan_jobs([first, tmp_path / "x", first], tmp_path / "out").jobs) == 1


def test_overlapping_inputs_give_each_file_once_and_a_link_beside_it_another(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    whole, inner = write_photo(folder / "x.png"), write_photo(folder / "b" / "x.png")
    for inputs in ([folder, folder / "b"], [folder, folder / "b", inner, whole], [folder, inner]):
        assert [job.name for job in plan_jobs(inputs, tmp_path / "out").jobs] == ["b/x.png", "x.png"]
    (folder / "c.png").symlink_to(whole)
    names = [job.name for job in plan_jobs([folder, folder / "b"], tmp_path / "out").jobs]
    assert names == ["b/x.png", "c.png", "x.png"]
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "x.png").symlink_to(whole)  # the same file under the same name
    jobs = plan_jobs([whole, tmp_path / "album"], tmp_path / "out").jobs
    assert [job.source for job in jobs] == [whole]


def test_resuming_with_fewer_photos_forgets_no_file_of_a_killed_run(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    protect(source, out)
    forget(out, b'"name": "02.png"')
    die_with(out, "02.png")  # it was on disk, and the run was killed before its record
    FolderRun([source / "00.png"], out, resume=True).execute(FakePipeline())
    result = FolderRun([source], out, resume=True).execute(FakePipeline())
    assert (len(result.protected), result.resumed) == (3, 2)
    assert not names_under_way(out)


@pytest.mark.parametrize("left", ["02.not-protected.png", "02.png"])
def test_overwriting_knows_all_that_a_killed_run_may_have_left(tmp_path: Path, left: str) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    protect(source / "00.png", out)
    die_with(out, "02.png")
    (out / left).write_bytes(b"not recorded")
    Manifest.start(out, asdict(RunSettings()))  # and the run that overwrites is killed too
    result = FolderRun([source], out, resume=True).execute(FakePipeline())
    assert len(result.protected) == 3


def test_filled_output_folder_needs_a_word(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in", 2)
    protect(source, tmp_path / "out")
    with pytest.raises(RunError, match=r"is not empty; go on with a stopped run \(--resume\)"):
        FolderRun([source], tmp_path / "out")
    with pytest.raises(RunError, match="exclude each other"):
        FolderRun([source], tmp_path / "out", resume=True, overwrite=True)
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    for word in ("resume", "overwrite"):
        with pytest.raises(RunError, match=f"has no {MANIFEST_NAME}, so there is no run to "):
            FolderRun([source], tmp_path / "out", **{word: True})


def test_overwriting_takes_no_file_that_no_run_has_written(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    write_photo(source / "torn.png").write_bytes(b"")
    write_photo(out / "torn.png")  # somebody's own photos, with the names that cameras give
    write_photo(out / "00.png")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError, match="so there is no run to replace; choose another folder"):
        FolderRun([source], out, overwrite=True)
    protect(source / "01.png", tmp_path / "run")
    shutil.move(tmp_path / "run" / MANIFEST_NAME, out)  # nor beside the results of a run
    with pytest.raises(RunError, match=r"00\.png and 1 more: would be replaced, and no run that"):
        FolderRun([source], out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != MANIFEST_NAME} == before


def test_overwriting_takes_the_results_of_every_run_before(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    protect(source, out)
    protect(source / "00.png", out, overwrite=True)
    shutil.copy(out / "00.png", out / "02.not-protected.png")
    die_with(out, "02.png")  # between its file and its record
    assert len(protect(source, out, overwrite=True).protected) == 3
    assert written(out) == ["00.png", "01.png", "02.png"]


def test_overwriting_does_not_leave_an_older_result_that_passes_for_the_new_one(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in", 2)
    protect(source, tmp_path / "out")
    write_photo(source / "01.png", fake.NOT_REACHED)
    protect(source, tmp_path / "out", overwrite=True)
    assert written(tmp_path / "out") == ["00.png"]


def test_resume_does_only_what_is_missing_changed_or_broken(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 6), tmp_path / "out"
    write_photo(source / "noface.png", fake.NO_FACE)
    write_photo(source / "crash.png", fake.CRASH)
    protect(source, out)
    (out / "01.png").unlink()
    (out / "02.png").write_bytes((out / "02.png").read_bytes()[:100])
    write_photo(source / "03.png", (90, 91, 92))
    (out / f"{TEMPORARY_PREFIX}0123").write_bytes(b"half")
    run = FolderRun([source], out, resume=True)
    assert [job.name for job in run.pending] == ["01.png", "02.png", "03.png", "crash.png"]
    result = run.execute(FakePipeline())
    assert written(out) == [f"{index:02}.png" for index in range(6)]
    assert (result.resumed, len(result.records)) == (4, 8)
    assert [record.name for record in result.failures] == ["crash.png", "noface.png"]
    assert "1 result was not as an earlier run had written it, and was made anew" in result.notes  # 02.png
    assert FolderRun([source], out, resume=True).pending[0].name == "crash.png"


def test_a_resume_with_other_inputs_says_what_it_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert protect(write_photo(tmp_path / "1" / "a.png"), out).notes == ()
    note = "1 result of an earlier run was replaced or removed: its input has changed"
    assert protect(write_photo(tmp_path / "2" / "a.png", (90, 90, 1)), out, resume=True).notes == (note,)
    assert protect(tmp_path / "2", out, resume=True).notes == ()
    assert protect(write_photo(tmp_path / "3" / "a.png", fake.NO_FACE), out, resume=True).notes == (note,)
    assert written(out) == []
    assert protect(write_photo(tmp_path / "4" / "a.png"), out, resume=True).notes == ()  # nothing was there


def test_resume_takes_no_file_that_no_run_has_written(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    protect(source / "00.png", out)
    for name in ("01.png", "02.not-protected.png"):
        (out / name).write_bytes(b"my own")
    with pytest.raises(
        RunError, match=r"01\.png and 1 more: would be replaced, and no run that .*move it away"
    ):
        FolderRun([source], out, resume=True)
    assert (out / "01.png").read_bytes() == b"my own"
    die_with(out, "01.png", "02.png")  # between its file and its record
    assert len(protect(source, out, resume=True).protected) == 3
    assert written(out) == ["00.png", "01.png", "02.png"]


def test_what_a_killed_run_wrote_is_no_strangers_to_the_run_after_the_next(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    protect(source / "00.png", out)
    shutil.copy(out / "00.png", out / "01.png")
    die_with(out, "01.png")  # before its record
    protect(source / "00.png", out, overwrite=True)  # does not get there
    assert len(protect(source, out, resume=True).protected) == 2


def test_a_photo_that_cannot_be_recorded_leaves_no_file_that_would_be_a_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "append", full)
    with pytest.raises(RunError, match="No space left on device"):
        protect(source, out)
    monkeypatch.undo()
    assert written(out) == []
    assert len(protect(source, out, resume=True).protected) == 2


def test_what_a_file_manager_leaves_does_not_fill_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    assert len(protect(photo_folder(tmp_path / "in"), tmp_path / "out").protected) == 3


def test_resume_into_a_missing_folder_begins(tmp_path: Path) -> None:
    assert len(protect(photo_folder(tmp_path / "in"), tmp_path / "out", resume=True).protected) == 3


def test_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 1), tmp_path / "out"
    protect(source, out, threshold=0.4)
    with pytest.raises(
        RunError, match=r"other settings \(preset was 'fast' and is now 'paper'; threshold was 0.4"
    ):
        FolderRun([source], out, RunSettings(preset="paper"), resume=True)


def test_torn_last_line_is_cut_off_and_a_damaged_one_refused(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    protect(source, out)
    manifest = out / MANIFEST_NAME
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    run = FolderRun([source], out, resume=True)
    assert manifest.read_bytes() == whole[:-20]  # a dry run ends here, and another run may hold the folder
    assert [job.name for job in run.pending] == ["02.png"]
    run.execute(FakePipeline())
    rows = [json.loads(line) for line in manifest.read_bytes().splitlines()]
    assert [row.get("name") for row in rows if row["kind"] != "begun"] == [None, "00.png", "01.png", "02.png"]
    lines = whole.splitlines(keepends=True)
    manifest.write_bytes(lines[0] + b"\0\0\0\n" + lines[2])
    with pytest.raises(RunError, match=r"line 2 is damaged; start again with --overwrite"):
        FolderRun([source], out, resume=True)
    manifest.write_bytes(b'{"kind": "other"}\n')
    with pytest.raises(RunError, match="not a manifest of this version"):
        FolderRun([source], out, resume=True)


def test_another_version_does_not_go_on(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    protect(source / "00.png", out)
    manifest = out / MANIFEST_NAME
    header, *records = manifest.read_bytes().splitlines(keepends=True)
    row = json.loads(header)
    assert row["package"] == __version__

    def give(**changed: object) -> None:
        manifest.write_bytes(json.dumps(changed).encode() + b"\n" + b"".join(records))

    give(**{**row, "package": "0.0.9"})
    with pytest.raises(RunError, match=rf"was made by dedim 0\.0\.9, and this is {__version__}"):
        FolderRun([source], out, resume=True)
    del row["package"]
    give(**row)  # a manifest of before
    result = protect(source, out, resume=True)
    assert result.resumed == 1
    assert result.notes[0].startswith("the manifest does not say which version of dedim began this run")


def test_record_survives_the_manifest_with_any_name(tmp_path: Path) -> None:
    record = PhotoRecord("sub/\udcff\n\u00e4.png", "protected", notes=("a",), seconds=1.5)
    Manifest.start(tmp_path, {"seed": 1}).append([record])
    assert Manifest.resume(tmp_path, {"seed": 1}).records == {record.name: record}


def test_undecodable_file_name_works(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(photo_array()).save(tmp_path / "plain.png")
    try:
        shutil.move(tmp_path / "plain.png", tmp_path / "in" / name)
    except OSError:
        pytest.skip("the file system takes only valid UTF-8")
    protect(tmp_path / "in", tmp_path / "out", seed=1)
    assert written(tmp_path / "out") == [name]
    assert FolderRun([tmp_path / "in"], tmp_path / "out", RunSettings(seed=1), resume=True).pending == ()


def test_photo_that_cannot_be_written_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "00.png":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(image_io.Path, "replace", refuse)
    result = protect(source, out)
    assert result.failures[0].reason == "cannot be written (No space left on device)"
    assert written(out) == ["01.png"]
    monkeypatch.undo()
    protect(source, out, overwrite=True)
    monkeypatch.setattr(image_io.Path, "replace", refuse)
    result = protect(source, out, overwrite=True)
    assert [record.name for record in result.failures] == ["00.png"]
    assert written(out) == ["01.png"]  # nor does the older one pass for this run's


def test_an_error_of_the_system_is_told_of_the_file_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    guide = tmp_path / "guide.onnx"

    class Lost(FakePipeline):
        def __call__(self, photos: list[StreamPhoto], **keywords: object) -> list[StreamResult]:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(guide))

    with pytest.raises(RunError) as told:
        FolderRun([source], out).execute(Lost())
    assert str(told.value) == f"{guide}: No such file or directory"

    def leave(record: PhotoRecord) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(
        RunError, match=r"^the run was ended by .* names no file \(Broken pipe\); go on with --res"
    ):
        FolderRun([source], out, resume=True).execute(FakePipeline(), on_done=leave)
    for written in (0, 1):  # at the header, at the first row
        fsync, left = os.fsync, iter(range(written))

        def full(file: int, fsync: Callable[[int], None] = fsync, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(file)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError) as told:
            FolderRun([source], out, overwrite=True).execute(FakePipeline())
        monkeypatch.undo()
        assert str(told.value) == f"{out / MANIFEST_NAME}: cannot be written (No space left on device)"


def test_a_photo_whose_earlier_result_cannot_be_removed_is_listed(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    write_photo(source / "torn.png")
    protect(source, out)
    (source / "torn.png").write_bytes(b"")
    (out / "torn.png").unlink()
    (out / "torn.png").mkdir()  # in place of a file that may not be removed
    result = protect(source, out, overwrite=True)
    assert len(result.protected) == 2
    (failure,) = result.failures
    assert failure.status == "error"
    assert failure.reason.startswith(
        "the file is empty (0 bytes); a result of an earlier run cannot be removed ("
    )


def test_a_file_larger_than_memory_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read_bytes = photo_folder(tmp_path / "in", 3), Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "01.png":
            raise MemoryError
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = protect(source, tmp_path / "out")
    assert [(record.name, record.status, record.reason) for record in result.failures] == [
        ("01.png", "error", "the file does not fit into memory")
    ]


def test_a_photo_whose_pixels_are_larger_than_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr(image_io, "split_rgb_alpha", refuse)
    result = protect(photo_folder(tmp_path / "in", 1), tmp_path / "out")
    assert [(record.status, record.reason) for record in result.failures] == [
        ("error", "the photo does not fit into memory")
    ]
    with pytest.raises(MemoryError):
        read_photo(tmp_path / "in" / "00.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_with_the_name_of_a_photo_blocks_nobody(tmp_path: Path) -> None:
    source = photo_folder(tmp_path / "in", 1)
    os.mkfifo(source / "pipe.jpg")
    (source / "link.jpg").symlink_to(source / "00.png")
    (source / "broken.jpg").symlink_to(source / "gone.png")
    result = protect(source, tmp_path / "out")
    assert [(record.name, record.status) for record in result.records] == [
        ("00.png", "protected"),
        ("broken.jpg", "unreadable"),
        ("link.jpg", "protected"),
    ]
    assert result.other_files == 1


def test_a_photo_with_two_names_is_two_photos_and_links_to_folders_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_photo(source / "real.png")
    (source / "alias.png").symlink_to("real.png")
    write_photo(tmp_path / "elsewhere" / "two.png")
    (source / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (source / ".hidden").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    result = protect(source, tmp_path / "out")
    assert written(tmp_path / "out") == ["alias.png", "real.png"]
    assert [record.status for record in result.records] == ["protected"] * 2
    assert result.other_files == 1


def test_the_files_of_an_earlier_run_are_passed_over(tmp_path: Path) -> None:
    old, out = tmp_path / "old", tmp_path / "out"
    protect(photo_folder(tmp_path / "in", 2), old)
    for name in (REPORT_NAME, UNDER_WAY_NAME, LOCK_NAME, f"{TEMPORARY_PREFIX}01", f"{ATTEMPTS_NAME}x"):
        (old / name).write_text("{}")
    inputs = sorted(old.iterdir())
    assert len(inputs) == 8
    result = protect(inputs, out)  # dedim run OLD/* -o OUT
    assert [record.name for record in result.protected] == ["00.png", "01.png"]
    assert result.other_files == 6
    assert len(result.records) == 2
    assert len(FolderRun(inputs, out, resume=True).finished) == 2  # its manifest is there
    with pytest.raises(RunError, match="no photos in"):
        FolderRun([old / MANIFEST_NAME], out)


def test_names_that_only_unicode_tells_apart_are_refused(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        write_photo(tmp_path / "in" / unicodedata.normalize(form, "\u00e9.png"))
    if len(list((tmp_path / "in").iterdir())) == 1:
        pytest.skip("the file system takes both for one")
    with pytest.raises(
        RunError, match=r"would both be written to .* nor ways to write an accent; rename one"
    ):
        plan_jobs([tmp_path / "in"], tmp_path / "out")


RAW = ["a.jxl", "b.nrw", "c.pef", "d.srw", "e.crw", "f.psd"]


def test_rarer_endings_are_read_or_listed(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in RAW:
        (source / name).write_bytes(b"some camera's own format")
    photo, other = Image.fromarray(photo_array()), Image.fromarray(photo_array((90, 90, 1)))
    photo.save(source / "k.nef", "TIFF")  # the preview that such a file begins with
    photo.save(source / "g.mpo", "MPO", save_all=True, append_images=[other])
    photo.save(source / "h.pjpeg", "JPEG", progressive=True)
    photo.save(source / "i.apng", "PNG")
    result = protect(source, tmp_path / "out")
    assert [record.name for record in result.protected] == ["g.mpo.jpg", "h.pjpeg", "i.apng"]
    assert written(tmp_path / "out") == ["g.mpo.jpg", "h.pjpeg", "i.apng"]
    formats = [Image.open(tmp_path / "out" / name).format for name in written(tmp_path / "out")]
    assert formats == ["JPEG", "JPEG", "PNG"]
    failures = {record.name: record.reason for record in result.failures}
    assert list(failures) == [*RAW, "k.nef"]
    assert failures["k.nef"].startswith("raw photos are not supported: only a preview")
    assert result.other_files == 0


class Deadly(FakePipeline):
    """Is killed by one photo, as a decoder or a kernel with a bug would be."""

    def _protect(self, pixels: np.ndarray, *rest: object) -> tuple[np.ndarray, list[object]]:
        if tuple(pixels[0, 0]) == (90, 90, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._protect(pixels, *rest)


def dies(source: Path, out: Path) -> bool:
    """Whether a run does that, tried in a process of its own."""
    child = os.fork()
    if not child:
        try:
            protect(source, out, Deadly(), resume=True, batch_size=2)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_photo_that_kills_every_run_is_left_out_and_no_other(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 8), tmp_path / "out"
    names = [f"{index:02}.png" for index in range(8)]
    assert dies(source, out)
    assert deaths(out).keys() >= {"02.png", "03.png"}
    for times in range(2, MOST_DEATHS + 1):
        assert dies(source, out)  # the same photo, now alone
        assert deaths(out)["03.png"] == times
    expected = [name for name in names if name != "03.png"]
    for _ in range(2):  # it stays left out
        result = protect(source, out, Deadly(), resume=True)
        assert [record.name for record in result.protected] == expected
        (failure,) = result.failures
        assert (failure.name, failure.status) == ("03.png", "error")
        assert failure.reason == (
            "4 runs died while it was under way, all but the first with it alone; to have it tried again, remove "
            "the lines with its name from dedim-manifest.jsonl"
        )
        assert written(out) == expected
        assert deaths(out) == {"03.png": MOST_DEATHS}
    forget(out, b'"03.png"')
    assert len(protect(source, out, resume=True).protected) == 8
    assert not names_under_way(out)


def test_photos_once_under_way_are_tried_alone_and_first(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    protect(source / "00.png", out)
    dead = Manifest.resume(out, asdict(RunSettings()))
    for name in ("03.png", "02.png", "01.png"):
        dead.begin(name)
    dead.append([PhotoRecord("01.png", "error")])
    with (out / MANIFEST_NAME).open("ab") as file:
        file.write(b'{"kind": "begun", "name": "04')  # torn by the kill
    pipe, seen = FakePipeline(), list[str]()
    run = FolderRun([source], out, resume=True)
    run.execute(pipe, batch_size=4, on_done=lambda record: seen.append(record.name))
    assert pipe.calls == [1, 1, 2]
    assert seen == ["02.png", "03.png", "01.png", "04.png"]
    assert not names_under_way(out)


def test_a_run_that_is_stopped_blames_no_photo(tmp_path: Path) -> None:
    def stop(record: PhotoRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FolderRun([photo_folder(tmp_path / "in", 9)], tmp_path / "out").execute(FakePipeline(), on_done=stop)
    assert not names_under_way(tmp_path / "out")


def test_a_written_photo_is_recorded_before_the_next_is_done(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 2), tmp_path / "out"
    under_way: set[str] = set()

    class StoppedInTheSecond(FakePipeline):
        def _protect(self, pixels: np.ndarray, *rest: object) -> tuple[np.ndarray, list[object]]:
            if tuple(pixels[0, 0]) == (90, 90, 1):
                for _ in range(500):  # the first is written meanwhile
                    if b'"photo"' in (out / MANIFEST_NAME).read_bytes():
                        break
                    time.sleep(0.01)
                under_way.update(names_under_way(out))
                raise KeyboardInterrupt
            return super()._protect(pixels, *rest)

    with pytest.raises(KeyboardInterrupt):
        protect(source, out, StoppedInTheSecond(), batch_size=1)
    assert under_way == {"01.png"}
    assert [job.name for job in FolderRun([source], out, resume=True).pending] == ["01.png"]


def test_the_longest_names_are_protected(tmp_path: Path) -> None:
    name = "x" * 241 + ".png"  # the mark of an unprotected photo takes 14 more: above 255
    write_photo(tmp_path / "in" / name)
    write_photo(tmp_path / "in" / f"y{name[1:]}", fake.NOT_REACHED)
    result = protect(tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out") == [name]
    (failure,) = result.failures
    assert failure.reason == "1 of 1 faces still match (similarity 0.40)"


def test_two_runs_do_not_share_an_output_folder(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    begun_before = FolderRun([source], out)
    refused: list[str] = []

    def second(record: PhotoRecord) -> None:
        with pytest.raises(RunError) as error:
            protect(source, out, resume=True)
        refused.append(str(error.value))

    result = FolderRun([source], out).execute(FakePipeline(), on_done=second)
    assert (
        refused
        == [f"{out}: another run is writing to this folder; wait for its end, or choose another folder"] * 3
    )
    assert len(result.protected) == 3
    assert written(out) == ["00.png", "01.png", "02.png"]
    # it was set up when the folder was empty, and would begin from nothing
    with pytest.raises(RunError, match=r"another run has written to it in the meantime; go on with --resume"):
        begun_before.execute(FakePipeline())
    assert len(protect(source, out, resume=True).records) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    child = os.fork()
    if not child:
        with lock_folder(out):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert (out / LOCK_NAME).exists()
    assert len(protect(source, out).protected) == 1  # nor does it make the folder count as filled
    assert written(out) == ["00.png"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": 0.0}, "threshold must be a probability between 0 and 1, got 0.0"),
        ({"threshold": 1.0}, "threshold must be a probability"),
        ({"threshold": float("nan")}, "threshold must be a probability"),
        ({"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
        ({"small_faces": "drop"}, "small_faces must be one of blur, pixelate, skip, error, got 'drop'"),
        ({"fallback": "drop"}, "fallback must be one of leave-out, blur, pixelate, got 'drop'"),
        ({"only": ("a",), "all_but": ("b",)}, "only and all_but exclude each other; give one of them"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RunSettings(**options)


class Slow(FakePipeline):
    def __call__(self, *arguments: object, **keywords: object) -> object:
        time.sleep(0.01)
        return super().__call__(*arguments, **keywords)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_runs_go_on_and_lose_and_double_nothing(tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 50), tmp_path / "out"
    importlib.import_module(
        "diffusers_dedim.runs.run"
    )  # else the copies would be killed while they import it
    clock, manifest = random.Random(0), out / MANIFEST_NAME
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                FolderRun([source], out, resume=True).execute(Slow(), batch_size=3)
            finally:
                os._exit(1)
        before = manifest.stat().st_size if manifest.exists() else 0
        ended = False  # or killed in the middle of its work, however slow the machine is
        while not ended and not (manifest.exists() and manifest.stat().st_size > before + 1000):
            time.sleep(0.001)
            ended = os.waitpid(child, os.WNOHANG)[0] == child
        if not ended:
            time.sleep(clock.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for name in (path for path in written(out) if not path.startswith(".dedim-")):
            assert read_photo(out / name).pixels.shape == (32, 48, 3)
    # the kills came from outside: one is left to each photo, for its file may be on disk without a record
    under_way = deaths(out)
    forget(out, b'"begun"')
    journal = Journal.read(out / MANIFEST_NAME)  # behind a torn line
    for name in under_way:
        journal.begin(name)
    run = FolderRun([source], out, resume=True)
    done = len(run.finished)
    assert done > 0
    pipe = FakePipeline()
    result = run.execute(pipe)
    assert sum(pipe.calls) == 50 - done
    assert written(out) == [f"{index:02}.png" for index in range(50)]
    assert [record.status for record in result.records] == ["protected"] * 50
    lines = [json.loads(line) for line in (out / MANIFEST_NAME).read_bytes().splitlines()]
    names = [line["name"] for line in lines if line.get("status") == "protected"]
    assert sorted(names) == [f"{index:02}.png" for index in range(50)]
    for name in names:
        assert read_photo(out / name).pixels.shape == (32, 48, 3)
