"""How a run grows with the number of photos and of workers; print one JSON object.

    python -m benchmarks.scaling --counts 10 100 1000 --workers 1 2

Standard output holds the JSON object alone; progress goes to standard error. Each worker is a process of its own with
its share of the processor's threads and every n-th photo; photos are LFW's as they are in the data, in a temporary
folder that goes with the run. ``seconds`` is from the first worker's start to the last one's end and
``seconds_loading`` the part of the slowest worker that no photo was done in (imports, weights, the face detector): a
large run pays it once. ``peak_memory_mb`` is the largest worker's; flat over the counts is what is wanted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._clock import peak_memory
from benchmarks._command import LFW, at_least, make_parser, number, open_pipeline, print_run, say
from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.runs.records import RunSettings
from diffusers_dedim.runs.run import FolderRun


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[str], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: device -> pipeline, importable by name in another process; the bundled one by default.
    """
    load = load_pipeline or load_bundled
    print_run("benchmarks.scaling", _parse, lambda options: run_scaling(options, load), arguments)


def run_scaling(options: argparse.Namespace, load_pipeline: Callable[[str], Any]) -> dict[str, Any]:
    """Measure every combination; returns what the JSON object holds."""
    protocol = read_protocol(options.data)
    records = [*protocol.probes, *protocol.gallery]
    if max(options.counts) > len(records):
        raise ValueError(f"--counts: expected at most {len(records)} photos, got {max(options.counts)}.")
    rows = []
    for count, workers in ((count, workers) for count in options.counts for workers in options.workers):
        photos = [record.read_bytes() for record in records[:count]]
        rows.append(_measure(photos, workers, options, load_pipeline))
        say("scaling", rows[-1])
    return {"rows": rows, "preset": options.preset, "max_rounds": options.max_rounds}


def _measure(
    photos: Sequence[bytes], workers: int, options: argparse.Namespace, load_pipeline: Callable[[str], Any]
) -> dict[str, Any]:
    settings = RunSettings(
        options.preset, max_rounds=options.max_rounds, small_faces="skip", seed=options.seed
    )
    threads = max(1, torch.get_num_threads() // workers)
    with tempfile.TemporaryDirectory(prefix="dedim-scaling-") as folder:
        root = Path(folder)
        for index, data in enumerate(photos):
            source = root / f"in{index % workers}"
            source.mkdir(exist_ok=True)
            write_atomic(source / f"{index:07}.jpg", data)
        begin = time.perf_counter()
        # spawned, not forked: a process that has begun to compute cannot be copied safely
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            work = partial(_work, root, settings, threads, options.device, load_pipeline)
            results = list(pool.map(work, range(min(workers, len(photos)))))
        seconds = time.perf_counter() - begin
    faces, working = sum(result["faces"] for result in results), max(result["seconds"] for result in results)
    return {
        "photos": len(photos),
        "workers": workers,
        "threads_per_worker": threads,
        "protected": sum(result["protected"] for result in results),
        "faces": faces,
        "seconds": number(seconds, 2),
        "seconds_loading": number(seconds - working, 2),
        "seconds_per_photo": number(working / len(photos)),
        "faces_per_second": number(faces / working),
        "peak_memory_mb": max(result["peak_memory_mb"] for result in results),
        "peak_memory_of": results[0]["peak_memory_of"],
    }


def _work(
    root: Path,
    settings: RunSettings,
    threads: int,
    device: str,
    load_pipeline: Callable[[str], Any],
    share: int,
) -> dict[str, Any]:
    """One worker's share, in its own process."""
    _end_with_parent()
    torch.set_num_threads(threads)
    pipe = load_pipeline(device)
    # MTCNN is imported and built on first use: that is loading, not work on a photo
    pipe.face_detector(np.zeros((64, 64, 3), dtype=np.uint8))
    with peak_memory(torch.device(device)) as memory:
        result = FolderRun([root / f"in{share}"], root / f"out{share}", settings).execute(pipe)
    faces = sum(len(record.faces) for record in result.records)
    return {"faces": faces, "protected": len(result.protected), "seconds": result.seconds, **memory}


def _end_with_parent() -> None:
    """A worker whose benchmark was killed would take the processor from the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def load_bundled(device: str) -> Any:
    """The bundled pipeline, silent."""
    return open_pipeline(argparse.Namespace(device=device), None)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.scaling", __doc__)
    add = parser.add_argument
    add("--counts", type=at_least(1), nargs="+", default=[10, 100, 1000], help="numbers of photos")
    add("--workers", type=at_least(1), nargs="+", default=[1, 2], help="numbers of processes")
    add("--preset", default="fast")
    add("--max-rounds", type=int, help="fewer rounds than the preset's, for a quick look at the growth alone")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
