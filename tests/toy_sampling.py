"""Faces of 12 px and the sampler around toy networks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from toys import ToyEncoder

from diffusers_dedim.diffusion.guidance import IdentityGuidance
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler

SIZE = 12


def scheduler_for(start: int, steps: int) -> DDPMScheduler:
    scheduler = make_scheduler()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(timesteps=dedim_timesteps(start, steps))
    return scheduler


def toy_unet(x_t: Tensor, timestep: int) -> Tensor:
    """Any smooth function of image and time, pixel by pixel, so that a face cannot depend on its batch."""
    return torch.sin(3 * x_t) + 0.001 * timestep


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def faces(count: int) -> tuple[Tensor, Tensor]:
    """Originals and a mask that is 1 in the middle, half at its rim, 0 outside."""
    generator = torch.Generator().manual_seed(7)
    x_org = torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) - 0.5
    mask = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.float64)
    mask[..., 2:-2, 2:-2] = 0.5
    mask[..., 3:-3, 3:-3] = 1
    return x_org, mask


def run(
    x_org: Tensor,
    mask: Tensor,
    seeds: tuple[int, ...],
    *,
    scale: float | None = 20.0,
    start: int = 30,
    steps: int = 5,
    encoder: nn.Module | None = None,
    unet: Callable[[Tensor, int], Tensor] = toy_unet,
    **changes: Any,
) -> SampleResult:
    encoder = encoder or ToyEncoder(SIZE).double().requires_grad_(False)
    scheduler = scheduler_for(start, steps)
    settings: dict[str, Any] = {"threshold": 0.2, "max_rounds": 3, "generators": seeded(*seeds), **changes}
    return sample_dedim(
        x_org,
        mask,
        unet=unet,
        scheduler=scheduler,
        face_encoder=encoder,
        guidance=None if scale is None else IdentityGuidance(scale),
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
        **settings,
    )
