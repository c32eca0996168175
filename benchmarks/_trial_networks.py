"""Trials of `benchmarks.trials` on the networks: number types, memory layouts, compiled, on a part of the crop."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import number
from benchmarks._measure import now
from benchmarks._trial_stream import fastest
from diffusers_dedim.diffusion.denoisers import window_denoiser, window_for
from diffusers_dedim.diffusion.schedule import predict_x_0
from diffusers_dedim.faces import MIN_FACE_SIZE, align_face
from diffusers_dedim.images.files import decode_photo
from diffusers_dedim.pipeline.presets import PRESETS

CALLS = 4  # of a network, timed together


@torch.no_grad()
def run_denoiser(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a call on ``--places`` crops, and how far its x_0 estimate is from that of the whole crop."""
    x_org, mask = _crops(pipe, photos, options)
    timestep = PRESETS[options.preset].start_timestep - 1
    noise = torch.randn(x_org.shape, generator=torch.Generator().manual_seed(0)).to(x_org)
    x_t = pipe.scheduler.add_noise(x_org, noise, torch.tensor([timestep]))
    unet = pipe.unet
    forms = {name: copy.deepcopy(unet) for name in ("channels_last_weights", "float32", "compiled")}
    forms["channels_last_weights"].to(memory_format=torch.channels_last)
    forms["float32"].float()
    forms["compiled"].compile(dynamic=True)

    def predict(network: Any, x_t: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
        steps = torch.full((len(x_t),), timestep, device=x_t.device)
        eps: Tensor = network(x_t.to(network.dtype, memory_format=layout), steps).sample
        return eps.float()

    size = window_for(unet, (x_t.shape[2], x_t.shape[3]))
    windowed = window_denoiser(lambda x_t, _: predict(unet, x_t), pipe.scheduler, size, x_org, mask)
    calls: dict[str, Callable[[], Tensor]] = {
        "whole": partial(predict, unet, x_t),
        "window": lambda: windowed(x_t, timestep),
        "contiguous_crops": partial(predict, unet, x_t, torch.contiguous_format),
        **{name: partial(predict, network, x_t) for name, network in forms.items()},
    }
    set_up = {name: _seconds(call, pipe.device) for name, call in calls.items()}
    seconds = fastest({name: _often(call) for name, call in calls.items()}, options.repeats, pipe.device)
    estimates = {name: call() for name, call in calls.items()}
    inside = mask > 0

    def x_0(name: str) -> Tensor:
        estimate: Tensor = predict_x_0(pipe.scheduler, estimates[name], torch.tensor(timestep), x_t)
        return estimate

    rows = {
        name: {
            "milliseconds_per_crop": number(value / CALLS / len(x_t) * 1000, 2),
            "psnr_in_mask": _psnr(x_0(name), x_org, inside),
            "psnr_in_mask_to_whole": _psnr(x_0(name), x_0("whole"), inside),
        }
        for name, value in seconds.items()
    }
    return {
        "crops": len(x_t),
        "dtype": str(unet.dtype),
        "timestep": timestep,
        "window_size": size,
        "seconds_to_compile": number(set_up["compiled"], 1),
        **rows,
    }


def run_recogniser(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the gradient of the cosine, for the face and its mirror image, as it is and compiled."""
    x_org, _ = _crops(pipe, photos, options)
    encoder = pipe.face_encoder
    compiled = copy.deepcopy(encoder)
    compiled.compile(dynamic=True)
    with torch.no_grad():
        reference = encoder(x_org)

    def gradient(network: nn.Module) -> Tensor:
        crops = (0.9 * x_org).requires_grad_()
        embeddings = network(torch.cat([crops, crops.flip(3)]))
        cosine = (embeddings * torch.cat([reference, reference])).sum()
        return torch.autograd.grad(cosine, crops)[0]

    calls = {"as_shipped": lambda: gradient(encoder), "compiled": lambda: gradient(compiled)}
    set_up = {name: _seconds(call, pipe.device) for name, call in calls.items()}
    seconds = fastest({name: _often(call) for name, call in calls.items()}, options.repeats, pipe.device)
    alike = torch.cosine_similarity(calls["as_shipped"]().flatten(1), calls["compiled"]().flatten(1))
    return {
        "crops": len(x_org),
        **{
            f"milliseconds_per_crop_{name}": number(v / CALLS / len(x_org) * 1000, 2)
            for name, v in seconds.items()
        },
        "seconds_to_compile": number(set_up["compiled"], 1),
        "cosine_of_gradients": number(float(alike.min()), 5),
    }


def aligned_crops(pipe: Any, photos: list[bytes], most: int | None = None) -> Tensor:
    """``[N, 3, 112, 112]`` in [-1, 1]: the first faces of the photos that are large enough to be protected.

    Raises:
        ValueError: there is none.
    """
    crops: list[Tensor] = []
    for data in photos:
        pixels = decode_photo(data).pixels
        faces = [face for face in pipe.face_detector(pixels) if face.size >= MIN_FACE_SIZE]
        crops += [align_face(pixels, face).crop for face in faces]
        if most is not None and len(crops) >= most:
            break
    if not crops:
        raise ValueError(f"--data: no face was found in the first {len(photos)} photos.")
    return torch.stack(crops[:most]).to(pipe.device)


def _crops(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """``--places`` aligned faces ``[N, 3, 112, 112]`` and their masks ``[N, 1, 112, 112]``."""
    x_org, settings = aligned_crops(pipe, photos, options.places), PRESETS[options.preset]
    with torch.no_grad():
        return x_org, settings.make_mask(pipe.landmarker(x_org))


def _often(call: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    begin = now(device)
    call()
    return now(device) - begin


def _psnr(image: Tensor, reference: Tensor, inside: Tensor) -> float | None:
    """PSNR in dB over the pixels inside a mask, for images in [-1, 1]; None where they are equal."""
    error = (image.clamp(-1, 1) - reference.clamp(-1, 1)).square()[inside.expand_as(image)].mean()
    return number(float(10 * torch.log10(4 / error)), 2)
