"""Where the page's files lie, and when they go."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import diffusers_dedim
from diffusers_dedim.demo import files

SERVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from diffusers_dedim.demo.files import make_private_folder
folder = make_private_folder()
(folder / "photo.jpg").write_bytes(b"a face")
print(folder, flush=True)
if sys.argv[1] == "waits":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["by itself", "Ctrl+C"])
def test_the_folder_is_private_and_goes_with_the_server(tmp_path: Path, end: str) -> None:
    source = str(Path(diffusers_dedim.__file__).parents[1])
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "new"), "PYTHONPATH": source}
    words = [sys.executable, "-c", SERVER, "waits" if end == "Ctrl+C" else "ends"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout
        folder = Path(server.stdout.readline().strip())
        assert folder.parent == tmp_path / "new"
        assert folder.name.startswith("dedim-demo-")
        if end == "Ctrl+C":
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert (folder / "photo.jpg").is_file()
            server.send_signal(signal.SIGINT)
    assert not folder.exists()


def test_files_go_by_their_age_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "photo.jpg").write_bytes(b"a face")
    assert files.delete_old_files(tmp_path, 60) == 0
    clock = SimpleNamespace(sleep=lambda seconds: time.sleep(0.01), time=lambda: time.time() + 61)
    monkeypatch.setattr(files, "time", clock)
    files.keep_deleting(tmp_path, 300, 60)
    deadline = time.monotonic() + 30
    while (tmp_path / "deep" / "photo.jpg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "deep" / "photo.jpg").exists()
    monkeypatch.setattr(
        clock, "sleep", lambda seconds: time.sleep(3600)
    )  # the thread lives as long as this process
