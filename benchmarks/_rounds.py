"""Time rounds of Algorithm 2: as printed, and as the pipeline runs them on batches of faces."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._common import number
from benchmarks._measure import count_flops, now, peak_memory
from diffusers_dedim.evaluation import Probe
from diffusers_dedim.faces import align_face, landmark_mask
from diffusers_dedim.photo_inputs import to_pixel_list
from diffusers_dedim.presets import PRESETS, DeDiMPreset
from diffusers_dedim.sampling import sample_dedim
from diffusers_dedim.schedule import dedim_timesteps

MOST_STEPS = 10  # of a round that is timed on batches: a call costs the same at every timestep
NEVER = 0.001  # a threshold that no face falls below, so that every face stays for the whole round


def crops_of(probes: Sequence[Probe], count: int) -> Tensor:
    """``[count, 3, 112, 112]`` in [-1, 1]: the probes' faces, over again where there are fewer."""
    crops = [align_face(probe.photo, probe.face).crop for probe in itertools.islice(probes, count)]
    return torch.stack(list(itertools.islice(itertools.cycle(crops), count)))


def measure_literal(pipe: Any, x_org: Tensor, rounds: int, rates: dict[torch.dtype, float]) -> dict[str, Any]:
    """Run and time rounds of Algorithm 2 as printed on one face, and say what all of them would take.

    Args:
        pipe: a pipeline whose networks are all float32.
        x_org: the face ``[1, 3, 112, 112]`` in [-1, 1].
        rounds: how many to run.
        rates: operations a second by number type.
    """
    preset = PRESETS["paper"]
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(timesteps=dedim_timesteps(preset.start_timestep, preset.num_inference_steps))
    x_org = x_org.to(pipe.device)
    with torch.no_grad():
        mask = landmark_mask(pipe.landmarker(x_org), preset.mask_radius, preset.mask_feather)

    def run(timesteps: int, count: int) -> None:
        few = copy.deepcopy(scheduler)
        few.timesteps = few.timesteps[:timesteps]
        sample_dedim(
            x_org, mask, unet=lambda x_t, timestep: pipe.unet(x_t, timestep).sample, scheduler=few,
            face_encoder=pipe.face_encoder, threshold=NEVER, max_rounds=count,
            generators=[torch.Generator().manual_seed(0)], guidance=preset.make_guidance(),
            pipeline=SimpleNamespace(face_encoder=pipe.face_encoder, scheduler=scheduler),
        )  # fmt: skip

    steps = preset.num_inference_steps
    run(2, 1)  # the first calls set up kernels
    flops = count_flops(lambda: run(2, 1)) - count_flops(lambda: run(1, 1))  # of one step
    with peak_memory(pipe.device) as memory:
        begin = now(pipe.device)
        run(steps, rounds)
        seconds = (now(pipe.device) - begin) / rounds
    floor = (
        flops * steps / rates[torch.float32]
    )  # two calls of the recogniser too many a round: nothing beside 100
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
        **memory,
    }


def measure_batches(
    pipe: Any, preset: DeDiMPreset, probes: Sequence[Probe], batch_sizes: Sequence[int], calls: float,
    rates: dict[torch.dtype, float],
) -> dict[str, Any]:  # fmt: skip
    """Time one round on batches of aligned faces; the rate is for faces that need ``calls`` denoiser calls each."""
    steps = min(preset.num_inference_steps, MOST_STEPS)
    timed = replace(preset, num_inference_steps=steps, max_rounds=1, threshold=NEVER, threshold_margin=0.0)
    floor = _floor(pipe, timed, to_pixel_list(crops_of(probes, 1))[0], rates)
    results = {}
    for size in batch_sizes:
        faces = to_pixel_list(crops_of(probes, size))
        _run(pipe, replace(timed, num_inference_steps=1), faces)  # sets up kernels for this size
        with peak_memory(pipe.device) as memory:
            total, in_round = _run(pipe, timed, faces)
        seconds = (in_round * calls / steps + (total - in_round)) / size
        results[str(size)] = {
            "seconds_per_call_per_face": number(in_round / steps / size, 6),
            "seconds_per_face": number(seconds),
            "faces_per_second": number(1 / seconds, 3),
            "share_of_floor": number(floor * size / in_round),
            **memory,
        }
    return results


def _run(pipe: Any, preset: DeDiMPreset, faces: list[NDArray[np.uint8]]) -> tuple[float, float]:
    """Seconds of a call of the pipeline, and of these from the first denoiser call to the last step's end."""
    device, clock = pipe.device, {"first": 0.0, "last": 0.0}

    def step_begins(*_: Any) -> None:
        clock["first"] = clock["first"] or now(device)

    def step_ends(view: Any, index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        clock["last"] = now(device)
        return tensors

    hook = pipe.unet.register_forward_pre_hook(step_begins)
    try:
        begin = now(device)
        _protect(pipe, preset, faces, callback_on_step_end=step_ends)
        return now(device) - begin, clock["last"] - clock["first"]
    finally:
        hook.remove()


def _protect(pipe: Any, preset: DeDiMPreset, faces: list[NDArray[np.uint8]], **more: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* stayed above the threshold")  # as they are meant to
        pipe(
            faces, preset=preset, aligned=True, batch_size=len(faces), output_type="np",
            generator=torch.Generator().manual_seed(0), **more,
        )  # fmt: skip


def _floor(pipe: Any, preset: DeDiMPreset, face: NDArray[np.uint8], rates: dict[torch.dtype, float]) -> float:
    """Seconds the arithmetic of one face's round takes at the rate of a large matrix product of each type."""
    x_t = torch.zeros(1, 3, *face.shape[:2], device=pipe.device, dtype=pipe.unet.dtype)
    with torch.no_grad():
        denoiser = count_flops(lambda: pipe.unet(x_t, 0)) * preset.num_inference_steps
    everything = count_flops(lambda: _protect(pipe, preset, [face]))
    rate = rates.get(pipe.unet.dtype, rates[torch.float32])
    # what is outside the round (landmarks, two more calls of the recogniser) is counted too: a hundredth of it
    return denoiser / rate + max(everything - denoiser, 0) / rates[torch.float32]
