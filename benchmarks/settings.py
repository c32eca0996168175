"""Compare settings of the sampler on faces that are not LFW: what they hide, change and cost; one JSON object.

    python -m benchmarks.settings dedim dedim@h=0.47 dedim@num_inference_steps=5+s=0.025 --panel out/settings

This is how a preset is chosen (docs/paper.md, D9), so that the LFW probes that are reported on stay unseen. Faces:
adults of the UTKFace validation crops that their photo fills. ``similarity`` is the mean cosine of the protected
crop with the original, lower is better; each recogniser has its own scale, and only differences of the same one
mean anything. Standard output holds the JSON object alone; a line a method goes to standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._command import (
    CROP_RECOGNISERS,
    FACES,
    add_black_boxes,
    make_parser,
    number,
    run_benchmark,
    say,
)
from benchmarks._faces import measure_change, spread, to_crops
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import Probe, protect_probes
from diffusers_dedim.evaluation.crops import crop_probes, whole_crops
from diffusers_dedim.evaluation.fairness import read_labels
from diffusers_dedim.evaluation.methods import make_method
from diffusers_dedim.evaluation.panels import make_panel
from diffusers_dedim.training.data import FaceCrops

ADULT = 18  # years
FILLED = 0.64  # share of a crop that its photo reaches; the repeated edges of tighter ones are no face


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.settings", _parse, run_settings, arguments, load_pipeline)


def run_settings(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Protect the same faces by every method; returns what the JSON object holds."""
    probes = crop_probes(FaceCrops(options.data, "val"), choose_faces(options.data, options.faces))
    measured = []
    for name in options.methods:
        measured.append(measure_method(name, pipe, probes, recognisers, options))
        say("settings", measured[-1])
    return {"faces": len(probes), "methods": measured}


def choose_faces(data: Path, count: int) -> list[int]:
    """Rows of ``count`` adults whose crop is filled, evenly spaced over the validation set.

    Raises:
        ValueError: there are fewer.
    """
    ages = read_labels(sorted(data.glob("val*.parquet")))["age"]
    crops = FaceCrops(data, "val")
    adults = np.flatnonzero(ages >= ADULT)
    rows = [int(row) for row in adults if float(crops[int(row)]["known"].float().mean()) >= FILLED]
    if len(rows) < count:
        raise ValueError(f"--faces: {data} has {len(rows)} filled crops of adults, too few for {count}.")
    return [rows[index] for index in spread(len(rows), count)]


def measure_method(
    name: str,
    pipe: Any,
    probes: Sequence[Probe],
    recognisers: Sequence[Recogniser],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What one method hides, changes and costs: means over the faces; with ``--panel`` a picture too."""
    with whole_crops(pipe):
        done = protect_probes(make_method(name, pipe, seed=options.seed), probes, options.batch_size)
    change = measure_change(probes, done.photos, recognisers)
    if options.panel:
        options.panel.mkdir(parents=True, exist_ok=True)
        cosines = change.similarity.items()
        words = [", ".join(f"{who} {of[i]:.2f}" for who, of in cosines) for i in range(len(probes))]
        pair = (to_crops([probe.photo for probe in probes]), to_crops(done.photos))
        make_panel(*pair, words).save(options.panel / f"{name.replace(':', '-')}.png")
    return {
        "method": name,
        "similarity": {who: number(values.mean(), 3) for who, values in change.similarity.items()},
        "psnr": number(change.psnr.mean(), 2),
        "ssim": number(change.ssim.mean()),
        "reached_threshold": number(np.mean([face.reached_threshold for face in done.faces]), 2),
        "unet_calls_per_face": number(np.mean([face.unet_calls for face in done.faces]), 1),
        "seconds_per_face": number(done.seconds / len(probes), 2),
    }


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.settings", __doc__)
    add = parser.add_argument
    add("methods", nargs="+", metavar="METHOD", help="such as dedim:strong or dedim@h=0.47+s=0.018")
    add("--faces", type=int, default=24)
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    text = "guides instead of the pipeline's own; own: that one beside"
    add("--white-box", nargs="+", metavar="FILE.onnx", help=text)
    add("--data", type=Path, default=FACES, help="folder of val*.parquet with labels")
    add("--batch-size", type=int, default=16, help="faces per call of the pipeline (default 16)")
    add("--panel", type=Path, help="folder for a before/after picture a method")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, CROP_RECOGNISERS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
