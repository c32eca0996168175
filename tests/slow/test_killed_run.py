"""`dedim run` with the bundled weights, killed at random moments and gone on with: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from diffusers_dedim.images.files import read_photo
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS
from diffusers_dedim.runs.manifest import MANIFEST_NAME

pytestmark = pytest.mark.slow
ASTRONAUT = pytest.importorskip("skimage.data").astronaut()
PHOTOS, KILLS = (200, 20) if "DEDIM_SOAK" in os.environ else (20, 4)


def portraits(folder: Path) -> list[str]:
    """The face at other places, sizes and sides, so that no two crops are the same; in two formats."""
    folder.mkdir()
    moves = random.Random(1)
    names = []
    for index in range(PHOTOS):
        left, top = moves.randrange(100, 141), moves.randrange(0, 31)
        photo = Image.fromarray(ASTRONAUT).crop((left, top, left + 210, top + 210))
        side = moves.randrange(150, 260)
        photo = photo.resize((side, side), Image.Resampling.LANCZOS)
        if index % 2:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        names.append(f"{index:02}.{'png' if index % 4 else 'jpg'}")
        photo.save(folder / names[-1])
    return names


def start(source: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    """One short round a face: what is killed here is the run, not the sampler."""
    program = "from diffusers_dedim.cli.main import main; main()"
    settings = ("--seed", "0", "--max-rounds", "1", "--threshold", "0.99")
    environment = {**os.environ, "PYTHONPATH": str(BUNDLED_WEIGHTS.parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", program, "run", str(source), "-o", str(out), *settings, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} - {MANIFEST_NAME} if out.exists() else set()


def recorded(out: Path) -> list[str]:
    """Names in the manifest; a last line may be torn by the kill."""
    manifest = out / MANIFEST_NAME
    whole = manifest.read_bytes().rpartition(b"\n")[0] if manifest.exists() else b""
    return [row["name"] for row in map(json.loads, whole.splitlines()) if row["kind"] == "photo"]


def kill_in_mid_work(process: subprocess.Popen[bytes], out: Path, done: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after `done` photos stand in the manifest; False where the run ended before."""
    end = time.monotonic() + 120
    while len(recorded(out)) < done and process.poll() is None:
        assert time.monotonic() < end, f"{done} photos were not done in two minutes"
        time.sleep(0.02)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        return True
    return False


def test_a_run_killed_at_random_moments_ends_with_every_photo_once(tmp_path: Path) -> None:
    names, moments = portraits(tmp_path / "in"), random.Random(0)
    out, done = tmp_path / "out", list[int]()
    for part in range(KILLS):  # in each quarter of the photos, however fast the machine is
        process = start(tmp_path / "in", out, *(["--resume"] if (out / MANIFEST_NAME).exists() else []))
        target = part * PHOTOS // KILLS + moments.randrange(PHOTOS // KILLS - 1)
        if not kill_in_mid_work(process, out, target, moments.random() / 4):
            break  # the last few photos were written at once
        done.append(len(recorded(out)))
        for name in files(out):
            if not name.startswith(".dedim-"):  # the lock, the names under way, a file half written
                read_photo(out / name)  # whole, or not there
        assert {*recorded(out)} <= files(out)
    assert len(done) >= 3, f"killed with {done} photos done"
    assert any(0 < count < PHOTOS for count in done), f"killed with {done} photos done: none in mid-work"

    assert start(tmp_path / "in", out, "--resume").wait() == 0
    assert files(out) == set(names)  # and nothing else is left
    assert sorted(recorded(out)) == sorted(names)  # each once: none was done twice
    for name in names:
        before, after = read_photo(tmp_path / "in" / name).pixels, read_photo(out / name).pixels
        assert after.shape == before.shape
        assert (after != before).any()
