"""Decisions D1 and D2 of docs/paper.md by measurement: the noise of line 3, and sigma or sigma squared in line 7.

    python -m benchmarks.decisions --faces 8 --rounds 2

Runs the preset "paper", cut to a few rounds, on development faces (LFW probes 351 onwards, which are not among
the 100 of benchmarks.main_job) in all four combinations of the two readings of each line, or those that are
named. Standard output holds the JSON object alone; progress goes to standard error. One seed and a few faces: it
tells apart what differs a lot, and no more.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from diffusers import DDPMScheduler
from torch import Tensor

from benchmarks._common import LFW, environment, make_parser, number
from benchmarks._run import add_run_options, run_benchmark
from benchmarks.main_job import BLACK_BOXES
from diffusers_dedim import IdentityGuidance
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import (
    ArrayCache,
    Gallery,
    Probe,
    embed_gallery,
    evaluate_probes,
    prepare_probes,
    read_protocol,
)
from diffusers_dedim.evaluation.methods import seeded
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.pipeline.presets import PRESETS

FIRST = 350  # the probes before it are not used for decisions; `dedim evaluate` on all 500 has these too
NOISES = ("alphas_cumprod", "printed")
SIGMA_POWERS = (1, 2)


class PrintedNoiseScheduler(DDPMScheduler):  # type: ignore[misc]  # diffusers ships no types
    """Line 3 as it is printed: variance 1 - alpha_t0 = beta_t0, a fiftieth of that of q(x_t | x_0)."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(ac) x_0 + sqrt(beta) noise, at each image's timestep."""
        kind = {"device": original_samples.device, "dtype": original_samples.dtype}
        mean, variance = (
            schedule.to(**kind)[timesteps].reshape(-1, 1, 1, 1)
            for schedule in (self.alphas_cumprod, self.betas)
        )
        noisy: Tensor = mean.sqrt() * original_samples + variance.sqrt() * noise
        return noisy


@dataclass(frozen=True, eq=False)
class Faces:
    """Whom to protect, and where the searcher looks for them."""

    probes: Sequence[Probe]
    gallery: Gallery
    recognisers: Sequence[Recogniser]
    detector: FaceDetector

    def measure(self, protect: Callable[..., Any], batch_size: int) -> dict[str, Any]:
        """Means over the faces after one method.

        Returns:
            ``match_probability`` (Eq. 4 by the white box, of the returned photo with the original), what the method
            spent, quality, and by each recogniser ``rank1`` and ``similarity``, the cosine with the person's
            other photo in the gallery.
        """
        done, scores = evaluate_probes(
            protect, self.probes, self.gallery, self.recognisers, self.detector, batch_size
        )
        persons = np.array([probe.person for probe in self.probes])
        own = persons[:, None] == np.asarray(self.gallery.persons)[None]
        best = {name: np.where(own, found, -np.inf).max(1) for name, found in scores.similarities.items()}
        return {
            "match_probability": _mean(done.faces, "probability"),
            "below_threshold": _mean(done.faces, "reached_threshold"),
            "unet_calls_per_face": _mean(done.faces, "unet_calls"),
            "seconds_per_face": number(done.seconds / len(done.faces), 2) if done.faces else None,
            "psnr": number(scores.psnr.mean(), 2),
            "ssim": number(scores.ssim.mean()),
            "haarpsi": number(scores.haarpsi.mean()),
            "undetected_after": scores.undetected,
            "rank1": {name: number(rate) for name, rate in scores.rank1.items()},
            "similarity": {name: number(found[np.isfinite(found)].mean()) for name, found in best.items()},
        }


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.decisions", _parse, run_decisions, arguments, load_pipeline)


def run_decisions(
    pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure all four combinations; returns what the JSON object holds."""
    protocol = read_protocol(options.data)
    records = protocol.probes[options.first : options.first + options.faces]
    if len(records) < options.faces:
        raise ValueError(
            f"--first, --faces: {options.data} has {len(protocol.probes)} probes, too few for {options.faces} after "
            f"the first {options.first}."
        )
    detector, cache = FaceDetector(device=options.device), ArrayCache(options.cache)
    gallery = embed_gallery(protocol.gallery, recognisers, detector, cache)
    faces = Faces(prepare_probes(records, detector, cache), gallery, recognisers, detector)
    unprotected = faces.measure(lambda photos: SimpleNamespace(images=photos, faces=[]), options.batch_size)
    variants = []
    for noise, power in itertools.product(options.noises, options.sigma_powers):
        variants.append(measure_variant(pipe, noise, power, faces, options))
        print(variants[-1], file=sys.stderr)  # a run that is stopped has not measured for nothing
    return {
        "faces": len(faces.probes),
        "first_probe": options.first + 1,
        "gallery": len(gallery.persons),
        "rounds": options.rounds,
        "guidance_scale": options.scale,
        "unprotected": {key: unprotected[key] for key in ("rank1", "similarity")},
        "variants": variants,
        "seed": options.seed,
        "device": options.device,
        **environment(),
    }


def measure_variant(
    pipe: Any, noise: str, sigma_power: int, faces: Faces, options: argparse.Namespace
) -> dict[str, Any]:
    """Protect the faces by one reading of the two lines and say what came out.

    Args:
        pipe: its scheduler is put back afterwards.
        noise: out of `NOISES`. sigma_power: out of `SIGMA_POWERS`.
        faces: whom to protect and where to look for them.
        options: of the command line.
    """
    preset = replace(PRESETS["paper"], max_rounds=options.rounds)
    protect = partial(
        pipe,
        preset=preset,
        guidance=IdentityGuidance(options.scale, sigma_power),
        small_faces="skip",
        output_type="np",
    )
    scheduler = pipe.scheduler
    if noise == "printed":
        pipe.scheduler = PrintedNoiseScheduler.from_config(scheduler.config)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* stayed above the threshold")  # cut short on purpose
            found = faces.measure(seeded(protect, options.seed), options.batch_size)
    finally:
        pipe.scheduler = scheduler
    return {"noise": noise, "sigma_power": sigma_power, **found}


def _mean(records: Sequence[Any], name: str) -> float | None:
    return number(float(np.mean([getattr(record, name) for record in records]))) if records else None


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.decisions", __doc__)
    add = parser.add_argument
    add("--faces", type=int, default=8, help="photos (default 8)")
    add(
        "--rounds",
        type=int,
        default=2,
        help="rounds of 100 denoiser calls a face (default 2; the paper's 100)",
    )
    add("--noises", nargs="+", choices=NOISES, default=NOISES, help="of line 3 (default: both)")
    add(
        "--sigma-powers",
        nargs="+",
        type=int,
        choices=SIGMA_POWERS,
        default=SIGMA_POWERS,
        help="(default: both)",
    )
    scale = PRESETS["paper"].guidance_scale
    add("--scale", type=float, default=scale, help=f"s (default {scale}); 0 is the denoiser alone")
    add("--first", type=int, default=FIRST, help=f"probes left out before them (default {FIRST})")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--weights", help="pipeline to measure (default: the bundled one)")
    add("--batch-size", type=int, default=8, help="photos per call of the pipeline (default 8)")
    add_run_options(add, BLACK_BOXES, cached="gallery embeddings")
    options = parser.parse_args(words)
    for name in ("faces", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    if options.first < 0:
        parser.error(f"--first: expected 0 or more, got {options.first}")
    return options


if __name__ == "__main__":
    main()
