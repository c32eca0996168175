"""Where the page's files lie, and when they go."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import diffusers_dedim
from diffusers_dedim.demo import files

SERVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from diffusers_dedim.demo.files import end_by_signals, make_private_folder
end_by_signals()
folder = make_private_folder()
(folder / "photo.jpg").write_bytes(b"a face")
print(folder, flush=True)
if sys.argv[1] == "waits":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["by itself", "SIGINT", "SIGTERM", "SIGHUP"])
def test_the_folder_is_private_and_goes_with_the_server(tmp_path: Path, end: str) -> None:
    source = str(Path(diffusers_dedim.__file__).parents[1])
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "new"), "PYTHONPATH": source}
    words = [sys.executable, "-c", SERVER, "ends" if end == "by itself" else "waits"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout
        folder = Path(server.stdout.readline().strip())
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith(f"dedim-demo-{server.pid}-")
        if end != "by itself":
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert (folder / "photo.jpg").is_file()
            server.send_signal(getattr(signal, end))
    assert not folder.exists()


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = (
        "import signal; from diffusers_dedim.demo.files import end_by_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); end_by_signals()\n"  # as nohup starts it
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    source = str(Path(diffusers_dedim.__file__).parents[1])
    out = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, text=True
    )
    assert out.strip() == "True"


def test_folders_that_killed_servers_left_go_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    day_ago = time.time() - 86_500
    ages = {
        f"dedim-demo-{gone.pid}-ab_1": 0.0,
        f"dedim-demo-{os.getpid()}-abc": 0.0,
        f"dedim-demo-{10**30}-abc": 0.0,
        f"dedim-demo-{os.getppid()}-abc": 0.0,
        f"dedim-demo-{os.getppid()}-old": day_ago,
        "dedim-demo-12345678": 0.0,
        "dedim-demo-abcdefgh": day_ago,  # as earlier versions named them
        "dedim-demo-my-notes": day_ago,
        "other": day_ago,
    }
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(b"a face")
        os.utime(tmp_path / name, (age or time.time(),) * 2)
    (tmp_path / f"dedim-demo-{gone.pid}-link").symlink_to(tmp_path / "other")
    left = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "getuid": lambda: os.getuid() + 1}))
    files.delete_left_folders(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == left, "another user's"
    monkeypatch.setattr(files, "os", os)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first = files.make_private_folder()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    second = files.make_private_folder()
    stay = {f"dedim-demo-{os.getppid()}-abc", "dedim-demo-12345678", "dedim-demo-my-notes", "other"}
    stay |= {f"dedim-demo-{gone.pid}-link", first.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == stay
    assert (tmp_path / "other" / "photo.jpg").exists()


def test_a_folder_that_goes_away_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request deletes its own folder at any time; the thread must go on to the others."""
    for name in ("one", "two", "three"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "photo.jpg").write_bytes(b"a face")
    scandir = os.scandir

    def slow(path: Any) -> Any:
        if isinstance(path, str | Path) and Path(path).name == "two":
            shutil.rmtree(path, ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", slow)
    assert files.delete_old_files(tmp_path, -1) == 2


def test_a_task_that_fails_is_done_again_and_its_words_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    done = threading.Event()

    def fails(folder: Path, age: float) -> None:
        calls.append(folder.name)
        if len(calls) == 3:
            done.set()
        raise RuntimeError("holiday.jpg")

    clock = SimpleNamespace(sleep=lambda seconds: time.sleep(0.01 if len(calls) < 3 else 3600))
    monkeypatch.setattr(files, "time", clock)
    monkeypatch.setattr(files, "delete_old_files", fails)
    files.keep_deleting(Path("photos"), 300, 60)
    assert done.wait(30)
    assert "dedim-delete failed: RuntimeError" in caplog.text
    assert "holiday" not in caplog.text


def test_files_go_by_their_age_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "photo.jpg").write_bytes(b"a face")
    assert files.delete_old_files(tmp_path, 60) == 0
    os.utime(tmp_path, (0, 0))
    clock = SimpleNamespace(sleep=lambda seconds: time.sleep(0.01), time=lambda: time.time() + 61)
    monkeypatch.setattr(files, "time", clock)
    files.keep_deleting(tmp_path, 300, 60)
    deadline = time.monotonic() + 30
    while (tmp_path / "deep" / "photo.jpg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "deep" / "photo.jpg").exists()
    assert tmp_path.stat().st_mtime > 0, "another server would take it for left"
    monkeypatch.setattr(
        clock, "sleep", lambda seconds: time.sleep(3600)
    )  # the thread lives as long as this process
