"""What a face costs, method beside method on the same faces in the same run; print one JSON object.

    python -m benchmarks.speed --probes 20 --json FILE

Standard output holds the JSON object alone; progress goes to standard error.

``literal`` is Algorithm 2 as printed: one face, batch 1, float32, 100 timesteps a round. Its 100 rounds take an hour
and more for a few faces, so ``--literal-rounds`` rounds of one face are run and timed, and ``seconds_per_face`` is
their mean times the 100 rounds that a face runs which never falls below h; almost none does. ``paper`` is the same
method with this package's batching and number types; its photos get ``--paper-rounds`` rounds, the quality beside
it is that of these rounds, and the seconds inside them are again extrapolated. Whatever was cut says so:
``rounds_run``, ``extrapolated``. The other methods run to their end.

``batches``: one round on as many faces as stand there. ``faces_per_second`` is what that gives for the calls that a
face of this method needed on average. ``share_of_floor`` is the time that the arithmetic alone would take at the
rate of a large matrix product, measured just before, by the time it took. The panels show faces of the data set: keep
them out of git.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import main_job
from benchmarks._common import LFW, ROOT, SHARED, environment, make_parser, number, print_run
from benchmarks._measure import peak_memory
from benchmarks._rounds import crops_of, measure_batches, measure_literal, round_clock
from benchmarks._run import WHITE, add_run_options, read_people
from diffusers_dedim.encoders import Recogniser, load_recogniser
from diffusers_dedim.evaluation import Gallery, Probe, evaluate_probes
from diffusers_dedim.evaluation.methods import make_method, seeded
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.pipeline.presets import PRESETS

METHODS = tuple(name for name in ("paper", "fast", "strong") if name in PRESETS)
TIP_IM = "tip-im"
TARGETS = 10  # people TIP-IM moves towards, as in its paper


@dataclass(frozen=True)
class Experiment:
    """What is the same for every method: the photos, and who searches."""

    probes: list[Probe]
    gallery: Gallery
    recognisers: list[Recogniser]
    detector: FaceDetector


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[..., Any] | None = None) -> None:
    """Run the benchmark and print its JSON object.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: ``dtype -> pipeline`` (None: the default one); the bundled `DeDiMPipeline` by default.
    """
    load = load_pipeline or _load_bundled
    print_run("benchmarks.speed", _parse, lambda options: run_speed(options, load), arguments)


def run_speed(options: argparse.Namespace, load_pipeline: Callable[..., Any]) -> dict[str, Any]:
    """Measure every method; returns what the JSON object holds."""
    begin = time.perf_counter()
    pipe = load_pipeline(None).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    experiment = _prepare(pipe, options)
    methods: dict[str, Any] = {}
    for name in options.methods:
        _say(name)
        methods[name] = _measure_preset(name, pipe, experiment, options)
        _say(f"{name}: {methods[name]}")  # a run that is stopped has not measured for nothing
    if options.tip_im:
        _say(TIP_IM)
        methods[TIP_IM] = _measure_tip_im(pipe, experiment, options)
    _say("literal")
    exact = load_pipeline(torch.float32).to(options.device)
    literal = measure_literal(exact, crops_of(experiment.probes, 1), options.literal_rounds)
    for values in methods.values():
        seconds = values.get("seconds_per_face")
        values["literal_over_this"] = number(literal["seconds_per_face"] / seconds, 1) if seconds else None
    return {
        "probes": len(experiment.probes),
        "gallery": len(experiment.gallery.persons),
        "methods": {"literal": literal, **methods},
        "seed": options.seed,
        "device": options.device,
        "seconds": number(time.perf_counter() - begin, 1),
        **environment(),
    }


def _prepare(pipe: Any, options: argparse.Namespace) -> Experiment:
    _say("gallery and probes")
    recognisers = [Recogniser.of(WHITE, pipe.face_encoder), *map(load_recogniser, options.black_box)]
    detector = FaceDetector(device=options.device)
    probes, gallery = read_people(options, recognisers, detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one step is not meant to protect anybody
        # MTCNN and kernels are set up on first use, which no method's clock is to count
        pipe(probes[0].photo, max_rounds=1, num_inference_steps=1, small_faces="skip", output_type="np")
    return Experiment(probes, gallery, recognisers, detector)


def _measure_preset(
    name: str, pipe: Any, experiment: Experiment, options: argparse.Namespace
) -> dict[str, Any]:
    """Quality and seconds over the probes, then the rate at each batch size."""
    preset = PRESETS[name]
    cut = min(options.paper_rounds, preset.max_rounds) if name == "paper" else preset.max_rounds
    protect = partial(pipe, preset=name, max_rounds=cut, small_faces="skip", output_type="np")
    with round_clock(pipe) as in_rounds:
        values = _evaluate(name, seeded(protect, options.seed), experiment, options)
    extrapolated = cut < preset.max_rounds
    calls, seconds = values["unet_calls_per_face"], values["seconds_per_face"]
    if extrapolated:
        calls = float(preset.max_rounds * preset.unet_calls_per_round)
    if extrapolated and values["faces"]:
        # the rounds alone: faces are found, aligned and pasted once, however many rounds there are
        seconds = number(seconds + (preset.max_rounds / cut - 1) * sum(in_rounds) / values["faces"])
    batches = {}
    if calls is not None:
        batches = measure_batches(pipe, preset, experiment.probes, options.batch_sizes, calls)
    return {
        **values,
        "seconds_per_face": seconds,
        "seconds_per_face_in_rounds_run": number(sum(in_rounds) / values["faces"])
        if values["faces"]
        else None,
        "unet_calls_per_face": calls,
        "rounds_run": cut,
        "extrapolated": extrapolated,
        "batches": batches,
    }


def _measure_tip_im(pipe: Any, experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks._pairs import read_pairs

    pairs = read_pairs(options.pairs)
    used = {*experiment.gallery.persons, *(probe.person for probe in experiment.probes)}
    others = [index for index in pairs.one_per_person(len(pairs.persons)) if pairs.persons[index] not in used]
    if len(others) < TARGETS:
        raise ValueError(f"--pairs: expected {TARGETS} people outside the experiment, got {len(others)}.")
    method = make_method(TIP_IM, pipe, seed=options.seed, targets=pairs.crops(others[:TARGETS]))
    return {**_evaluate(TIP_IM, method, experiment, options), "extrapolated": False}


def _evaluate(
    name: str, method: Callable[..., Any], experiment: Experiment, options: argparse.Namespace
) -> dict[str, Any]:
    """The values of `benchmarks.main_job` for one method, its peak memory, and a panel."""
    with peak_memory(torch.device(options.device)) as memory:
        protection, scores = evaluate_probes(
            method,
            experiment.probes,
            experiment.gallery,
            experiment.recognisers,
            experiment.detector,
            batch_size=options.photos,
        )
    panel = options.panels / f"speed_{name}.png"
    main_job.write_panel(experiment.probes, scores, panel)
    black = {key: number(rate) for key, rate in scores.rank1.items() if key != WHITE}
    return {
        "rank1_white": number(scores.rank1[WHITE]),
        "rank1_black": black,
        **main_job.summary(protection, scores),
        **memory,
        "panel": str(panel),
    }


def _say(text: str) -> None:
    print(f"speed: {text}", file=sys.stderr, flush=True)


def _load_bundled(dtype: torch.dtype | None) -> Any:
    from diffusers_dedim import DeDiMPipeline

    return DeDiMPipeline.from_pretrained(**({} if dtype is None else {"dtype": dtype}))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.speed", __doc__)
    add = parser.add_argument
    add("--probes", type=int, default=20, help="first N probes of the data (default 20)")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="presets (default: all)")
    add("--no-tip-im", dest="tip_im", action="store_false", help="leave TIP-IM out")
    add("--literal-rounds", type=int, default=2, help="rounds of Algorithm 2 to time (default 2)")
    add("--paper-rounds", type=int, default=1, help="rounds of the preset paper (default 1 of 100)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    add("--photos", type=int, default=8, help="photos per call where quality is measured (default 8)")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--pairs", type=Path, default=SHARED / "data" / "lfw", help="folder of TIP-IM's target people")
    add("--panels", type=Path, default=ROOT / "out", help="folder for the before/after pictures")
    add_run_options(add, main_job.BLACK_BOXES, cached="gallery embeddings", nargs="+")
    options = parser.parse_args(words)
    for name in ("literal_rounds", "paper_rounds", "photos"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    if min(options.batch_sizes) < 1:
        parser.error(f"--batch-sizes: expected at least 1 each, got {options.batch_sizes}")
    return options


if __name__ == "__main__":
    main()
