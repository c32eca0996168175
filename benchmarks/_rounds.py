"""Time rounds of Algorithm 2: as printed, and as the pipeline runs them on batches of faces."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._common import number
from benchmarks._measure import count_flops, matmul_rate, now, peak_memory
from diffusers_dedim.diffusion.denoisers import window_for
from diffusers_dedim.diffusion.sampling import sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.evaluation import Probe
from diffusers_dedim.faces import align_face
from diffusers_dedim.pipeline.inputs import to_pixel_list
from diffusers_dedim.pipeline.presets import PRESETS, DeDiMPreset

MOST_STEPS = 10  # of a round that is timed on batches: a call costs the same at every timestep
NEVER = 0.001  # a threshold that no face falls below, so that every face stays for the whole round


def crops_of(probes: Sequence[Probe], count: int) -> Tensor:
    """``[count, 3, 112, 112]`` in [-1, 1]: the probes' faces, over again where there are fewer."""
    crops = [align_face(probe.photo, probe.face).crop for probe in itertools.islice(probes, count)]
    return torch.stack(list(itertools.islice(itertools.cycle(crops), count)))


@contextmanager
def round_clock(pipe: Any) -> Iterator[list[float]]:
    """Collect the seconds of each call of the sampler, from its first denoiser call to its end.

    These are the rounds, with the judging at the end of each. What is done once for a face is outside: finding,
    aligning, the reference, pasting and measuring.
    """
    seconds: list[float] = []
    first = 0.0

    def step_begins(*_: Any) -> None:
        nonlocal first
        first = first or now(pipe.device)

    def make_sampler(*arguments: Any) -> Any:
        sample = make(*arguments)

        def timed(*faces: Any, **settings: Any) -> Any:
            nonlocal first
            first = 0.0
            result = sample(*faces, **settings)
            seconds.append(now(pipe.device) - first)
            return result

        return timed

    make, pipe._sampler = pipe._sampler, make_sampler
    hook = pipe.unet.register_forward_pre_hook(step_begins)
    try:
        yield seconds
    finally:
        del pipe._sampler  # the class's method shows again
        hook.remove()


def measure_literal(pipe: Any, x_org: Tensor, rounds: int) -> dict[str, Any]:
    """Run and time rounds of Algorithm 2 as printed on one face, and say what all of them would take.

    Args:
        pipe: a pipeline whose networks are all float32.
        x_org: the face ``[1, 3, 112, 112]`` in [-1, 1].
        rounds: how many to run.
    """
    preset = PRESETS["paper"]
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(timesteps=dedim_timesteps(preset.start_timestep, preset.num_inference_steps))
    x_org = x_org.to(pipe.device)
    with torch.no_grad():
        mask = preset.make_mask(pipe.landmarker(x_org))

    def run(timesteps: int, count: int) -> None:
        few = copy.deepcopy(scheduler)
        few.timesteps = few.timesteps[:timesteps]
        sample_dedim(
            x_org,
            mask,
            unet=lambda x_t, timestep: pipe.unet(x_t, timestep).sample,
            scheduler=few,
            face_encoder=pipe.face_encoder,
            threshold=NEVER,
            max_rounds=count,
            generators=[torch.Generator().manual_seed(0)],
            guidance=preset.make_guidance(),
            pipeline=SimpleNamespace(face_encoder=pipe.face_encoder, scheduler=scheduler),
        )

    steps = preset.num_inference_steps
    run(2, 1)  # the first calls set up kernels
    flops = count_flops(lambda: run(2, 1)) - count_flops(lambda: run(1, 1))  # of one step
    rate = matmul_rate(
        torch.float32, pipe.device
    )  # just before: a machine's speed varies from minute to minute
    with peak_memory(pipe.device) as memory:
        begin = now(pipe.device)
        run(steps, rounds)
        seconds = (now(pipe.device) - begin) / rounds
    floor = flops * steps / rate  # two calls of the recogniser too many a round: nothing beside 100
    return {
        "batch_size": 1,
        "dtype": "float32",
        "rounds_run": rounds,
        "rounds_assumed": preset.max_rounds,
        "extrapolated": rounds < preset.max_rounds,
        "unet_calls_per_round": steps,
        "seconds_per_round": number(seconds),
        "seconds_per_call": number(seconds / steps, 5),
        "unet_calls_per_face": preset.max_rounds * steps,
        "seconds_per_face": number(seconds * preset.max_rounds, 2),
        "share_of_floor": number(floor / seconds),
        "matmul_gflops": _in_gflops({torch.float32: rate}),
        **memory,
    }


def measure_batches(
    pipe: Any, preset: DeDiMPreset, probes: Sequence[Probe], batch_sizes: Sequence[int], calls: float
) -> dict[str, Any]:
    """Time one round on batches of aligned faces; the rate is for faces that need ``calls`` denoiser calls each."""
    steps = min(preset.num_inference_steps, MOST_STEPS)
    timed = replace(preset, num_inference_steps=steps, max_rounds=1, threshold=NEVER, threshold_margin=0.0)
    flops = _flops(pipe, timed, to_pixel_list(crops_of(probes, 1))[0])
    results = {}
    for size in batch_sizes:
        faces = to_pixel_list(crops_of(probes, size))
        _run(pipe, replace(timed, num_inference_steps=1), faces)  # sets up kernels for this size
        # just before: a machine's speed varies from minute to minute
        rates = {dtype: matmul_rate(dtype, pipe.device) for dtype in {torch.float32, pipe.unet.dtype}}
        with peak_memory(pipe.device) as memory:
            total, in_steps, judging = _run(pipe, timed, faces)
        outside = total - in_steps - judging
        rounds = calls / preset.unet_calls_per_round
        seconds = (in_steps * calls / timed.unet_calls_per_round + judging * rounds + outside) / size
        floor = sum(operations / rates[dtype] for dtype, operations in flops)
        results[str(size)] = {
            "seconds_per_call_per_face": number(in_steps / timed.unet_calls_per_round / size, 6),
            "seconds_per_face": number(seconds),
            "faces_per_second": number(1 / seconds, 3),
            "share_of_floor": number(floor * size / (in_steps + judging)),
            "matmul_gflops": _in_gflops(rates),
            **memory,
        }
    return results


def _run(pipe: Any, preset: DeDiMPreset, faces: list[NDArray[np.uint8]]) -> tuple[float, float, float]:
    """Seconds of a call of the pipeline for one round; of these in its steps; and in judging what came out."""
    device, ends, begins = pipe.device, list[float](), list[float]()

    def step_ends(view: Any, index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        ends.append(now(device))
        return tensors

    hook = pipe.unet.register_forward_pre_hook(lambda *_: begins.append(now(device)))
    try:
        begin = now(device)
        with round_clock(pipe) as in_rounds:
            _protect(pipe, preset, faces, callback_on_step_end=step_ends)
        total, in_steps = now(device) - begin, ends[-1] - begins[0]
        return total, in_steps, max(0.0, sum(in_rounds) - in_steps)
    finally:
        hook.remove()


def _protect(pipe: Any, preset: DeDiMPreset, faces: list[NDArray[np.uint8]], **more: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* stayed above the threshold")  # as they are meant to
        pipe(
            faces,
            preset=preset,
            aligned=True,
            batch_size=len(faces),
            output_type="np",
            generator=torch.Generator().manual_seed(0),
            **more,
        )


def _flops(pipe: Any, preset: DeDiMPreset, face: NDArray[np.uint8]) -> list[tuple[torch.dtype, int]]:
    """Number type and operations of the denoiser, and of everything else, in one face's round."""
    whole = (face.shape[0], face.shape[1])
    size = (preset.denoise_window and window_for(pipe.unet, whole)) or whole
    x_t = torch.zeros(1, 3, *size, device=pipe.device, dtype=pipe.unet.dtype)
    with torch.no_grad():
        denoiser = count_flops(lambda: pipe.unet(x_t, 0)) * preset.unet_calls_per_round
    everything = count_flops(lambda: _protect(pipe, preset, [face]))
    # what is outside the round (landmarks, two more calls of the recogniser) is counted too: a hundredth of it
    return [(pipe.unet.dtype, denoiser), (torch.float32, max(everything - denoiser, 0))]


def _in_gflops(rates: dict[torch.dtype, float]) -> dict[str, Any]:
    return {str(dtype): number(rate / 1e9, 1) for dtype, rate in rates.items()}
