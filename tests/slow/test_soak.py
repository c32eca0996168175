"""Odd and broken files, full disks and folders that cannot be written: nothing lost, doubled or half written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fake_pipeline import FakePipeline, photo_array
from mutations import mutate, sound_files
from PIL import Image

from diffusers_dedim import atomic
from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.files import decode_photo, encode_photo
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.records import RunResult, RunSettings
from diffusers_dedim.runs.run import FolderRun

pytestmark = pytest.mark.slow

# DEDIM_SOAK=20000 for a longer soak; its seed is said, so that what it finds can be made again.
FILES, SEED = int(os.environ.get("DEDIM_SOAK", "2000")), int(os.environ.get("DEDIM_SOAK_SEED", "0"))
RUN_FILES = 60


def mutated(count: int) -> Iterator[tuple[str, bytes]]:
    """The first of them sound, then sound ones gone wrong."""
    rng = np.random.default_rng(SEED)
    sound = sound_files(rng)
    yield from sound.items()
    names = list(sound)
    for number in range(count):
        name = names[number % len(names)]
        yield f"{number:05}-{name}", mutate(sound[name], rng)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        yield


def test_no_file_gives_a_foreign_error(tmp_path: Path) -> None:
    read = 0
    for name, data in mutated(FILES):
        try:
            photo = decode_photo(data, 10**6)
        except UnreadablePhotoError:
            assert "-" in name, f"{name} is sound"
            continue
        except Exception as error:
            (tmp_path / name).write_bytes(data)
            raise AssertionError(f"seed {SEED}: {tmp_path / name} gives {error!r}") from error
        read += 1
        assert photo.pixels.dtype == np.uint8
        again = decode_photo(encode_photo(photo, photo.pixels, keep_metadata=True))
        assert again.pixels.shape == photo.pixels.shape, name
    assert read > FILES // 10


def check_whole(source: Path, out: Path, result: RunResult) -> None:
    """Each photo has one record; what is on disk is what the records say, whole; nothing else is there."""
    assert [record.name for record in result.records] == [job.name for job in result.jobs]
    written = {record.output for record in result.records if record.output}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found - {MANIFEST_NAME} == written
    for name in written:
        decode_photo((out / name).read_bytes())
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    photos = [json.loads(line) for line in (out / MANIFEST_NAME).read_text().splitlines()]
    names = [row["name"] for row in photos if row["kind"] == "photo"]
    assert set(names) == {record.name for record in result.records}


def test_a_run_over_them_lists_or_writes_each(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, data in mutated(RUN_FILES):
        (source / name).write_bytes(data)
    result = FolderRun([source], tmp_path / "out").execute(FakePipeline())
    check_whole(source, tmp_path / "out", result)
    assert {record.status for record in result.records} <= {"protected", "unreadable", "not_protected"}
    assert all(record.reason for record in result.failures)


def folder(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        Image.fromarray(photo_array((90, 90, number), (160, 120))).save(path / f"{number:02}.png")
    return path


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folder(tmp_path / "in", 12), tmp_path / "out"
    write, calls = atomic.write_pieces, []

    def full(path: Path, pieces: object, times: object = None, **options: bool) -> None:
        calls.append(path)
        if len(calls) in (4, 5, 9):
            Path(path).with_name(f"{TEMPORARY_PREFIX}half").write_bytes(b"half")
            Path(path).with_name(f"{TEMPORARY_PREFIX}half").unlink()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, pieces, times, **options)

    monkeypatch.setattr(atomic, "write_pieces", full)
    result = FolderRun([source], out, RunSettings(seed=0)).execute(FakePipeline())
    check_whole(source, out, result)
    assert [record.reason for record in result.failures] == [
        "cannot be written (No space left on device)"
    ] * len(result.failures)
    assert 1 <= len(result.failures) <= 3
    monkeypatch.setattr(atomic, "write_pieces", write)
    again = FolderRun([source], out, RunSettings(seed=0), resume=True).execute(FakePipeline())
    check_whole(source, out, again)
    assert len(again.protected) == 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of one megabyte, where one may be had; else a folder."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False, capture_output=True
    ).returncode
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=False)


def test_an_output_on_another_and_small_disk(tmp_path: Path, small_disk: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 200, (30, 100, 160, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(source / f"{number:02}.png")  # 48 kB each, 1.4 MB in all
    out = small_disk / "out"
    with suppress(RunError):  # where the manifest itself has no room left, the run ends
        result = FolderRun([source], out, RunSettings(seed=0)).execute(FakePipeline())
        assert {record.reason for record in result.failures} <= {
            "cannot be written (No space left on device)"
        }
    for path in out.glob("*.png"):
        decode_photo(path.read_bytes())  # whole
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=False, capture_output=True)
    again = FolderRun([source], out, RunSettings(seed=0), resume=True).execute(FakePipeline())
    check_whole(source, out, again)
    assert len(again.protected) == 30


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 2)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"the output folder cannot be made, because .*file is a file"):
        FolderRun([source], tmp_path / "file" / "out").execute(FakePipeline())
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # not for root, who may write everywhere
        with pytest.raises(RunError, match="cannot be written"):
            FolderRun([source], locked / "out").execute(FakePipeline())
    assert sorted(path.name for path in source.iterdir()) == ["00.png", "01.png"]


def test_a_disk_that_becomes_read_only_is_told_and_gone_on_with(tmp_path: Path, small_disk: Path) -> None:
    source, out = folder(tmp_path / "in", 3), small_disk / "out"
    FolderRun([source / "00.png"], out, RunSettings(seed=0)).execute(FakePipeline())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False, capture_output=True)
    if not os.access(out, os.W_OK):  # else there is no disk of its own
        for place, resume in ((out, True), (small_disk / "new", False)):
            run = FolderRun([source], place, RunSettings(seed=0), resume=resume)
            with pytest.raises(RunError, match=r"cannot be written \(Read-only file system\)"):
                run.execute(FakePipeline())
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        FolderRun([out / "00.png"], tmp_path / "again").execute(FakePipeline())  # what only is read
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=False, capture_output=True)
    again = FolderRun([source], out, RunSettings(seed=0), resume=True).execute(FakePipeline())
    check_whole(source, out, again)
    assert len(again.protected) == 3
    assert (out / "00.png").read_bytes() == before["00.png"]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = folder(tmp_path / "in", 6), tmp_path / "out"
    os.utime(source / "00.png", (4e9, 4e9))  # of the future
    os.utime(source / "01.png", (0, 0))
    settings = RunSettings(seed=0, keep_times=True)
    FolderRun([source], out, settings).execute(FakePipeline())
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    os.utime(out / MANIFEST_NAME, (0, 0))
    again = FolderRun([source], out, settings, resume=True)
    assert not again.pending
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before
