"""`dedim run` killed at random moments and gone on with: nothing lost, nothing doubled, nothing half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import face_at, toy_pipeline

from diffusers_dedim.images.files import read_photo
from diffusers_dedim.runs.manifest import MANIFEST_NAME

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here"),
]
PHOTOS, KILLS = 200, 20


def protect(words: list[str]) -> None:
    """`dedim run` in a process of its own, with toys for networks: what is killed here is the run."""
    from diffusers_dedim.cli import common
    from diffusers_dedim.cli.main import main

    pipe = toy_pipeline()
    pipe.face_detector = lambda photo: [face_at(20, 20, 112)]
    common.load_pipeline = lambda *arguments: pipe  # type: ignore[assignment]
    sys.argv = ["dedim", "run", *words]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main()


def noise_photos(folder: Path) -> list[str]:
    """No two the same; in two formats."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = []
    for index in range(PHOTOS):
        photo = Image.fromarray(rng.integers(60, 190, (160, 160, 3), dtype=np.uint8))
        names.append(f"{index:03}.{'png' if index % 4 else 'jpg'}")
        photo.save(folder / names[-1])
    return names


def start(source: Path, out: Path, *words: str) -> ForkServerProcess:
    """A copy of a process that has imported everything, which else would take most of the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["diffusers_dedim.runs.run", "diffusers_dedim.pipeline.pipeline_dedim", "toys"]
    )
    settings = ("--seed", "0", "--max-rounds", "1", "--threshold", "0.999")
    process = context.Process(target=protect, args=([str(source), "-o", str(out), *settings, *words],))
    process.start()
    return process


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} - {MANIFEST_NAME} if out.exists() else set()


def recorded(out: Path) -> list[str]:
    """Names in the manifest; a last line may be torn by the kill."""
    manifest = out / MANIFEST_NAME
    whole = manifest.read_bytes().rpartition(b"\n")[0] if manifest.exists() else b""
    return [row["name"] for row in map(json.loads, whole.splitlines()) if row["kind"] == "photo"]


def kill_in_mid_work(process: ForkServerProcess, out: Path, done: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after `done` photos stand in the manifest; False where the run ended before."""
    end = time.monotonic() + 300
    while len(recorded(out)) < done and process.is_alive():
        assert time.monotonic() < end, f"{done} photos were not done in five minutes"
        time.sleep(0.01)
    process.join(delay)
    if not process.is_alive():
        return False
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return True


def test_a_run_killed_at_random_moments_ends_with_every_photo_once(tmp_path: Path) -> None:
    names, moments = noise_photos(tmp_path / "in"), random.Random(0)
    out, done = tmp_path / "out", list[int]()
    for part in range(KILLS):  # in each twentieth of the photos, however fast the machine is
        process = start(tmp_path / "in", out, *(["--resume"] if (out / MANIFEST_NAME).exists() else []))
        target = part * PHOTOS // KILLS + moments.randrange(PHOTOS // KILLS - 1)
        if not kill_in_mid_work(process, out, target, moments.random() / 20):
            break  # the last few photos were written at once
        done.append(len(recorded(out)))
        for name in files(out):
            if not name.startswith(".dedim-"):  # the lock, the names under way, a file half written
                read_photo(out / name)  # whole, or not there
        assert {*recorded(out)} <= files(out)
    assert len(done) >= KILLS - 3, f"killed with {done} photos done"
    assert sum(0 < count < PHOTOS for count in done) >= KILLS // 2, f"killed with {done} photos done"

    last = start(tmp_path / "in", out, "--resume")
    last.join()
    assert last.exitcode == 0
    assert files(out) == set(names)  # and nothing else is left
    assert sorted(recorded(out)) == sorted(names)  # each once: none was done twice
    for name in names:
        before, after = read_photo(tmp_path / "in" / name).pixels, read_photo(out / name).pixels
        assert after.shape == before.shape
        assert (after != before).any()
