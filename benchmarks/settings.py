"""Compare settings of the sampler on faces that are not LFW: what they hide, change and cost; one JSON object.

    python -m benchmarks.settings dedim dedim@h=0.47 dedim@num_inference_steps=5+s=0.025 --panel out/settings

This is how a preset is chosen (docs/paper.md, D9), so that the LFW probes that are reported on stay unseen. Faces:
adults of the UTKFace validation crops that their photo fills. ``similarity`` is the mean cosine of the protected
crop with the original, lower is better; each recogniser has its own scale, and only differences of the same one
mean anything. Standard output holds the JSON object alone; a line a method goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import CROP_RECOGNISERS, SHARED, environment, make_parser, number
from benchmarks._crops import crop_probes, to_crops, whole_crops
from benchmarks._pairs import spread
from benchmarks._run import add_run_options, run_benchmark
from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import Probe, protect_probes
from diffusers_dedim.evaluation.fairness import read_labels
from diffusers_dedim.evaluation.methods import make_method
from diffusers_dedim.evaluation.panels import make_panel
from diffusers_dedim.metrics.quality import mean_ssim, psnr
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
        print(measured[-1], file=sys.stderr)  # a run that is stopped has not measured for nothing
    return {
        "faces": len(probes),
        "methods": measured,
        "seed": options.seed,
        "device": options.device,
        **environment(),
    }


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
    faces, originals = [probe.face for probe in probes], [probe.photo for probe in probes]
    before, after = to_crops(originals), to_crops(done.photos)
    similarity = {
        recogniser.name: embed_faces(recogniser.encoder, originals, faces)
        * embed_faces(recogniser.encoder, done.photos, faces)
        for recogniser in recognisers
    }
    cosines = {who: products.sum(1) for who, products in similarity.items()}
    if options.panel:
        options.panel.mkdir(parents=True, exist_ok=True)
        words = [", ".join(f"{who} {of[i]:.2f}" for who, of in cosines.items()) for i in range(len(probes))]
        make_panel(before, after, words).save(options.panel / f"{name.replace(':', '-')}.png")
    return {
        "method": name,
        "similarity": {who: number(values.mean(), 3) for who, values in cosines.items()},
        "psnr": number(psnr(before, after).mean(), 2),
        "ssim": number(mean_ssim(before, after).mean()),
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
    add(
        "--white-box",
        nargs="+",
        metavar="FILE.onnx",
        help="guides instead of the pipeline's own; own: that one beside",
    )
    add("--data", type=Path, default=SHARED / "data" / "faces", help="folder of val*.parquet with labels")
    add("--batch-size", type=int, default=16, help="faces per call of the pipeline (default 16)")
    add("--panel", type=Path, help="folder for a before/after picture a method")
    add_run_options(add, CROP_RECOGNISERS)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
