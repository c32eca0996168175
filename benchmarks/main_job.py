"""The main job in numbers: protect LFW probes, search for them in the gallery, print one JSON object.

    python -m benchmarks.main_job --probes 100

Standard output holds the JSON object alone; progress goes to standard error. Rates count a probe as found
when no gallery image of another person is strictly more similar than its own person's (ties go to the
searcher). The panel shows faces of the data set: keep it out of git.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._command import (
    BLACK_BOXES,
    LFW,
    ROOT,
    add_black_boxes,
    make_parser,
    number,
    read_people,
    run_benchmark,
)
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import (
    Probe,
    ProbeScores,
    Protection,
    evaluate_probes,
    make_panel,
    search_gallery,
)
from diffusers_dedim.evaluation.methods import seeded
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.metrics.retrieval import rank_k_rate
from diffusers_dedim.pipeline.guides import is_guide

PANEL_FACES = 20


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.main_job", _parse, run_main_job, arguments, load_pipeline)


def run_main_job(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Protect, search and measure; writes the panel and returns what the JSON object holds."""
    detector = FaceDetector(device=options.device)
    probes, gallery = read_people(options, recognisers, detector)
    protect = seeded(partial(pipe, preset=options.preset, small_faces="skip"), options.seed)
    protection, scores = evaluate_probes(
        protect, probes, gallery, recognisers, detector, batch_size=options.batch_size
    )
    photos, faces = [probe.photo for probe in probes], [probe.face for probe in probes]
    before = search_gallery(probes, photos, faces, gallery, recognisers)
    persons = [probe.person for probe in probes]
    original = {name: rank_k_rate(found, persons, gallery.persons) for name, found in before.items()}
    write_panel(probes, scores, options.panel)
    rank1 = {name: number(rate) for name, rate in scores.rank1.items()}
    return {
        "probes": len(probes),
        "gallery": len(gallery.persons),
        "preset": options.preset,
        "rank1_white": {name: rate for name, rate in rank1.items() if is_guide(name)},
        "rank1_black": {name: rate for name, rate in rank1.items() if not is_guide(name)},
        "rank1_original": {name: number(rate) for name, rate in original.items()},
        **summary(protection, scores),
        "undetected_before": options.probes - len(probes),
        "undetected_gallery": gallery.undetected,
        "batch_size": options.batch_size,
        "panel": str(options.panel),
    }


def summary(protection: Protection, scores: ProbeScores) -> dict[str, Any]:
    """Means over probes (quality) and over protected faces (effort); faces in the background count too."""
    faces = protection.faces
    return {
        "psnr": number(scores.psnr.mean()),
        "ssim": number(scores.ssim.mean()),
        "haarpsi": number(scores.haarpsi.mean()),
        "faces": len(faces),
        "unet_calls_per_face": number(_mean([face.unet_calls for face in faces])),
        "seconds_per_face": number(protection.seconds / len(faces) if faces else math.nan),
        "rounds_mean": number(_mean([face.rounds for face in faces])),
        "reached_threshold": number(_mean([face.reached_threshold for face in faces])),
        "undetected_after": scores.undetected,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def write_panel(probes: Sequence[Probe], scores: ProbeScores, path: Path) -> None:
    """Draw the first faces; the label gives the rank of the own person for each recogniser."""
    count = min(PANEL_FACES, len(probes))
    labels = [
        f"{index}  PSNR {scores.psnr[index]:.1f}  SSIM {scores.ssim[index]:.2f}  rank: "
        + ", ".join(f"{name} {ranks[index]}" for name, ranks in scores.ranks.items())
        for index in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    make_panel(scores.crops_before[:count], scores.crops_after[:count], labels).save(path)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.main_job", __doc__)
    add = parser.add_argument
    add("--probes", type=int, default=100, help="first N probes of the data (default 100)")
    add("--preset", default="fast", help="preset of the pipeline (default fast)")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--panel", type=Path, default=ROOT / "out" / "main_job_panel.png", help="before/after picture")
    add("--batch-size", type=int, default=8, help="photos per call of the pipeline (default 8)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, BLACK_BOXES, nargs="+", kept="gallery embeddings")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
