"""What a face costs, method beside method on the same photos in the same run; print one JSON object.

    python -m benchmarks.speed --probes 20 --json out/speed.json

Standard output holds the JSON object alone; progress goes to standard error. How well a method protects, and what it
changes, is `benchmarks.main_job`'s and ``dedim evaluate``'s to say.

``literal`` is Algorithm 2 as printed: one face, batch 1, float32, 100 timesteps a round. Its 100 rounds take an hour
and more for a few faces, so ``--literal-rounds`` rounds of one face are run and timed, and ``seconds_per_face`` is
their mean times the 100 rounds that a face runs which never falls below h; almost none does. ``paper`` is the same
method with this package's batching and number types; its photos get ``--paper-rounds`` rounds, and the seconds inside
them are again extrapolated. Whatever was cut says so: ``rounds_run``, ``extrapolated``. The other methods run to their
end.

``batches``: a few rounds on as many faces as stand there. ``faces_per_second`` is what they give for the rounds that a
face of this method needed on average. ``matmul_gflops``, the rate of a large matrix product, tells a busy or another
machine.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._clock import RoundClock, matmul_gflops, now, peak_memory
from benchmarks._command import LFW, at_least, make_parser, number, print_run, read_probes, say
from diffusers_dedim.diffusion.sampling import sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.evaluation import Probe, protect_probes, read_protocol
from diffusers_dedim.evaluation.experiment import target_crops
from diffusers_dedim.evaluation.methods import make_method, seeded
from diffusers_dedim.faces import FaceDetector, align_face
from diffusers_dedim.pipeline.inputs import to_pixel_list
from diffusers_dedim.pipeline.presets import PRESETS, DeDiMPreset

METHODS = tuple(name for name in ("paper", "fast", "strong") if name in PRESETS)
TIP_IM = "tip-im"
MOST_STEPS = 10  # of a round that is timed on batches: a call costs the same at every timestep
ROUNDS = 4  # that are timed on batches, about as many as a face has: later ones may cost less than the first
NEVER = 0.001  # a threshold that no face falls below, so that every face stays for the whole round


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
    pipe = load_pipeline(None).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    rates = {str(dtype): matmul_gflops(dtype, pipe.device) for dtype in {torch.float32, pipe.unet.dtype}}
    detector = FaceDetector(device=options.device)
    probes = read_probes(options, detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one step is not meant to protect anybody
        # MTCNN and kernels are set up on first use, which no method's clock is to count
        pipe(probes[0].photo, max_rounds=1, num_inference_steps=1, small_faces="skip")
    methods: dict[str, Any] = {}
    for name in options.methods:
        methods[name] = measure_preset(name, pipe, probes, options)
        say("speed", f"{name}: {methods[name]}")
    if options.tip_im:
        targets = target_crops(_others(options.data, probes), detector)
        method = make_method(TIP_IM, pipe, seed=options.seed, targets=targets)
        methods[TIP_IM] = {**_spend(method, probes, options), "extrapolated": False}
        say("speed", f"{TIP_IM}: {methods[TIP_IM]}")
    exact = load_pipeline(torch.float32).to(options.device)
    literal = measure_literal(exact, crops_of(probes, 1), options.literal_rounds)
    for values in methods.values():
        seconds = values.get("seconds_per_face")
        values["literal_over_this"] = number(literal["seconds_per_face"] / seconds, 1) if seconds else None
    return {
        "probes": len(probes),
        "methods": {"literal": literal, **methods},
        "matmul_gflops": {dtype: number(rate, 1) for dtype, rate in rates.items()},
    }


def _others(data: Path, probes: Sequence[Probe]) -> list[Any]:
    """Gallery photos of people who are no probe: those TIP-IM moves faces towards."""
    persons = {probe.person for probe in probes}
    return [record for record in read_protocol(data).gallery if record.person not in persons]


def crops_of(probes: Sequence[Probe], count: int) -> Tensor:
    """``[count, 3, 112, 112]`` in [-1, 1]: the probes' faces, over again where there are fewer."""
    crops = [align_face(probe.photo, probe.face).crop for probe in itertools.islice(probes, count)]
    return torch.stack(list(itertools.islice(itertools.cycle(crops), count)))


def measure_preset(
    name: str, pipe: Any, probes: Sequence[Probe], options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds and calls over the probes, then the rate at each batch size."""
    preset = PRESETS[name]
    cut = min(options.paper_rounds, preset.max_rounds) if name == "paper" else preset.max_rounds
    with RoundClock(pipe) as clock:
        protect = partial(pipe, preset=name, max_rounds=cut, small_faces="skip", callback_on_step_end=clock)
        values = _spend(seeded(protect, options.seed), probes, options)
    faces, extrapolated = values["faces"] or 1, cut < preset.max_rounds
    if extrapolated and values["faces"]:
        values["unet_calls_per_face"] = preset.max_rounds * preset.unet_calls_per_round
        values["rounds_per_face"] = preset.max_rounds
        # the rounds alone: faces are found, aligned and pasted once, however many rounds there are
        more = (preset.max_rounds / cut - 1) * clock.steps / faces
        values["seconds_per_face"] = number(values["seconds_per_face"] + more)
    rounds = values["rounds_per_face"]
    return {
        **values,
        "seconds_per_face_in_rounds_run": number(clock.steps / faces),
        "rounds_run": cut,
        "extrapolated": extrapolated,
        "batches": measure_batches(pipe, preset, probes, options.batch_sizes, rounds) if rounds else {},
    }


def _spend(
    method: Callable[..., Any], probes: Sequence[Probe], options: argparse.Namespace
) -> dict[str, Any]:
    """What one method spends on the photos of the probes; faces in the background count too."""
    with peak_memory(torch.device(options.device)) as memory:
        done = protect_probes(method, probes, options.photos)
    count = len(done.faces)

    def mean(name: str) -> float | None:
        return number(np.mean([getattr(face, name) for face in done.faces])) if count else None

    return {
        "faces": count,
        "seconds_per_face": number(done.seconds / count) if count else None,
        "rounds_per_face": mean("rounds"),
        "unet_calls_per_face": mean("unet_calls"),
        "reached_threshold": mean("reached_threshold"),
        **memory,
    }


def measure_batches(
    pipe: Any, preset: DeDiMPreset, probes: Sequence[Probe], batch_sizes: Sequence[int], rounds: float
) -> dict[str, Any]:
    """Time rounds on batches of aligned faces; the rate is for faces that need so many ``rounds`` each."""
    steps = min(preset.num_inference_steps, MOST_STEPS)
    timed = replace(
        preset, num_inference_steps=steps, max_rounds=ROUNDS, threshold=NEVER, threshold_margin=0.0, retries=0
    )
    results = {}
    for size in batch_sizes:
        faces = to_pixel_list((crops_of(probes, size) + 1) / 2)
        time_rounds(pipe, replace(timed, num_inference_steps=1), faces)  # sets up kernels for this size
        with peak_memory(pipe.device) as memory:
            total, in_steps, judging = time_rounds(pipe, timed, faces)
        outside = total - ROUNDS * (in_steps + judging)
        round_seconds = in_steps * preset.num_inference_steps / steps + judging
        seconds = (round_seconds * rounds + outside) / size
        results[str(size)] = {
            "seconds_per_step_per_face": number(in_steps / steps / size, 6),
            "seconds_per_face": number(seconds),
            "faces_per_second": number(1 / seconds, 5),
            **memory,
        }
    return results


def time_rounds(pipe: Any, preset: DeDiMPreset, faces: list[NDArray[np.uint8]]) -> tuple[float, float, float]:
    """Seconds of a call of the pipeline for `ROUNDS` rounds; of a round's steps; and of judging what came out."""
    with warnings.catch_warnings(), RoundClock(pipe) as clock:
        warnings.filterwarnings("ignore", message=".* stayed above the threshold")  # as they are meant to
        begin = now(pipe.device)
        pipe(
            faces,
            preset=preset,
            aligned=True,
            batch_size=len(faces),
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=clock,
        )
        total = now(pipe.device) - begin
    return total, clock.steps / ROUNDS, clock.between / (ROUNDS - 1)


def measure_literal(pipe: Any, x_org: Tensor, rounds: int) -> dict[str, Any]:
    """Run and time rounds of Algorithm 2 as printed on one face, and say what all of them would take.

    Args:
        pipe: a pipeline whose networks are all float32.
        x_org: the face ``[1, 3, 112, 112]`` in [-1, 1].
        rounds: how many to run.
    """
    preset, device = PRESETS["paper"], pipe.device
    x_org, steps = x_org.to(device), preset.num_inference_steps
    with torch.no_grad():
        mask = preset.make_mask(pipe.landmarker(x_org))

    def run(steps: int, count: int) -> float:
        scheduler, begin = copy.deepcopy(pipe.scheduler), now(device)
        scheduler.set_timesteps(timesteps=dedim_timesteps(preset.start_timestep, steps))
        sample_dedim(
            x_org,
            mask,
            unet=lambda x_t, timestep: pipe.unet(x_t, timestep).sample,
            scheduler=scheduler,
            face_encoder=pipe.face_encoder,
            threshold=NEVER,
            max_rounds=count,
            generators=[torch.Generator().manual_seed(0)],
            guidance=preset.make_guidance(),
            pipeline=SimpleNamespace(face_encoder=pipe.face_encoder, scheduler=scheduler),
        )
        return now(device) - begin

    run(2, 1)  # the first calls set up kernels
    with peak_memory(device) as memory:
        seconds = run(steps, rounds) / rounds
    return {
        "rounds_run": rounds,
        "rounds_assumed": preset.max_rounds,
        "extrapolated": rounds < preset.max_rounds,
        "seconds_per_round": number(seconds),
        "seconds_per_call": number(seconds / steps, 5),
        "unet_calls_per_face": preset.max_rounds * steps,
        "seconds_per_face": number(seconds * preset.max_rounds, 2),
        **memory,
    }


def _load_bundled(dtype: torch.dtype | None) -> Any:
    from diffusers_dedim import DeDiMPipeline

    return DeDiMPipeline.from_pretrained(**({} if dtype is None else {"dtype": dtype}))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.speed", __doc__)
    add, positive = parser.add_argument, at_least(1)
    add("--probes", type=int, default=20, help="first N probes of the data (default 20)")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="presets (default: all)")
    add("--no-tip-im", dest="tip_im", action="store_false", help="leave TIP-IM out")
    add("--literal-rounds", type=positive, default=2, help="rounds of Algorithm 2 to time (default 2)")
    add("--paper-rounds", type=positive, default=1, help="rounds of the preset paper (default 1 of 100)")
    add("--batch-sizes", type=positive, nargs="+", default=[1, 4, 16, 64])
    add("--photos", type=positive, default=8, help="photos per call of a method (default 8)")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--cache", type=Path, help="folder for faces found (default ~/.cache/diffusers-dedim/bench)")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
