"""What a kill leaves of a private file goes, and what is being written stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusers_dedim.atomic import TEMPORARY_PREFIX, remove_unfinished, write_atomic

WRITE = """
import os, sys
from diffusers_dedim.atomic import write_pieces

def pieces():
    yield b"who it was" * 10000
    print("begun", flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    else:
        os._exit(9)

write_pieces(sys.argv[1], pieces(), private=True)
"""


def writer(path: Path, then: str) -> subprocess.Popen[str]:
    """A process that has half written a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{TEMPORARY_PREFIX}*"))


def test_what_a_kill_left_is_removed_for_that_file_alone(tmp_path: Path) -> None:
    mine, other = tmp_path / "me.album", tmp_path / "me.album2"
    for path in (mine, other):
        writer(path, "die").communicate()
    (tmp_path / f"{TEMPORARY_PREFIX}0123456789abcdef").write_bytes(b"a run's photo")
    assert len(temporaries(tmp_path)) == 3
    assert remove_unfinished(mine) == 1
    assert len(temporaries(tmp_path)) == 2
    assert remove_unfinished(mine) == 0
    assert remove_unfinished(other) == 1
    assert remove_unfinished(tmp_path / "none" / "a") == 0


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "me.album"
    process = writer(path, "wait")
    (unfinished,) = temporaries(tmp_path)
    os.utime(unfinished, (0, 0))  # however long it takes
    assert remove_unfinished(path) == 0
    process.communicate()
    assert process.returncode == 0
    assert path.read_bytes() == b"who it was" * 10000
    assert temporaries(tmp_path) == []


def test_what_is_about_to_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "me.album"
    touch, found = Path.touch, list[int]()

    def made(file: Path, *arguments: int, **options: bool) -> None:
        touch(file, *arguments, **options)
        found.append(remove_unfinished(path))

    monkeypatch.setattr(Path, "touch", made)
    write_atomic(path, b"x", private=True)
    monkeypatch.undo()
    assert (found, path.read_bytes()) == ([0], b"x")
    name = temporary_name(path, tmp_path)
    (tmp_path / name).touch()
    assert remove_unfinished(path) == 0
    os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    assert remove_unfinished(path) == 1  # nobody comes back to it


def temporary_name(path: Path, folder: Path) -> str:
    writer(path, "die").communicate()
    (unfinished,) = temporaries(folder)
    unfinished.unlink()
    return unfinished.name
