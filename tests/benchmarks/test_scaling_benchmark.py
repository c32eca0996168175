from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experiment as toy
from fake_pipeline import FakePipeline
from numpy.typing import NDArray

from benchmarks import scaling
from diffusers_dedim.faces import Face


class Lazy(FakePipeline):
    """Refuses to work before its detector has been set up, which a clock would count."""

    ready = False

    def face_detector(self, photo: NDArray[np.uint8]) -> list[Face]:
        self.ready = True
        return []

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        assert self.ready
        return super().__call__(*arguments, **keywords)


def load_fake(device: str) -> Lazy:
    return Lazy()


def test_each_number_of_photos_and_workers_is_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = ["red", "green", "blue"]
    data = toy.write_experiment(tmp_path / "e.parquet", people, people)
    # a process for each worker would import PyTorch for ten seconds: the same calls in threads
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    words = ["--counts", "2", "5", "--workers", "1", "2", "--data", str(data)]
    scaling.main(words, load_pipeline=load_fake)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["photos"], row["workers"]) for row in rows] == [(2, 1), (2, 2), (5, 1), (5, 2)]
    assert [row["protected"] for row in rows] == [2, 2, 5, 5]
    assert all(row["faces"] == row["photos"] for row in rows)
    assert all(row["peak_memory_mb"] > 0 for row in rows)


def test_more_photos_than_there_are_is_named(tmp_path: Path) -> None:
    data = toy.write_experiment(tmp_path / "e.parquet", ["red"], ["red"])
    with pytest.raises(ValueError, match="--counts: expected at most 2 photos, got 3"):
        scaling.main(["--counts", "3", "--data", str(data)], load_pipeline=load_fake)


@pytest.mark.slow
def test_a_worker_ends_when_its_benchmark_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from benchmarks.scaling import _end_with_parent\n"
        "def child():\n"
        "    _end_with_parent()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(120)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=child)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    rest, _ = parent.communicate(timeout=30)  # the worker holds the pipe open as long as it lives
    assert rest == ""
