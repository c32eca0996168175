"""Keep what the denoiser cannot redraw: its error on the original, put right in the face that is sampled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, int], Tensor]


class CorrectedDenoiser:
    """Predict the noise of a round, less a share of the error made on the original under the same noise.

    A denoiser of a few million parameters loses of a face what it cannot redraw: pores, wrinkles, the frame of a
    pair of glasses. How much it loses is known for the original, because there the true noise is known. The original
    therefore goes the same way beside the face, with the same random numbers, and the error of its prediction is
    taken off the face's. With a share of 1 an unguided round returns the original itself; with 0 it is the
    denoiser's alone. What guidance has changed is no part of the original, so the denoiser still redraws that.

    Each call stands for one timestep, in the scheduler's order, and costs the denoiser twice the images.

    Args:
        unet: epsilon prediction (x_t ``[2 n, 3, H, W]``, timestep) -> ``[2 n, 3, H, W]``.
        scheduler: with the timesteps of the round set (`prepare_scheduler`); it is copied, its memory is not touched.
        share: of the error that is taken off, in [0, 1].
        x_org: originals ``[n, 3, H, W]`` in [-1, 1].
        noise: what the faces were diffused with, ``[n, 3, H, W]``.
        generators: those of the faces, as they stand when the round's first step is due; copied, nothing is drawn
            from them.

    Source:
        Ours, not the paper's: D16 in docs/paper.md. Related: the noise maps of "edit-friendly" DDPM inversion
        (Huberman-Spiegelglas et al. 2024), which keep everything of an image.

    Raises:
        ValueError: ``share`` is out of its range.

    Example:
        >>> from diffusers_dedim.schedule import make_scheduler
        >>> scheduler, x_org = make_scheduler(), torch.zeros(1, 3, 8, 8)
        >>> scheduler.set_timesteps(timesteps=[99, 49])
        >>> noise = torch.ones_like(x_org)
        >>> denoise = CorrectedDenoiser(lambda x_t, t: 0 * x_t, scheduler, 1.0, x_org, noise, [torch.Generator()])
        >>> x_t = scheduler.add_noise(x_org, noise, torch.tensor([99]))
        >>> bool(torch.allclose(denoise(x_t, 99), noise))  # whatever the denoiser says
        True
    """

    def __init__(
        self,
        unet: Denoiser,
        scheduler: Any,
        share: float,
        x_org: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: expected a number in [0, 1], got {share}.")
        self._unet, self._scheduler, self._share, self._x_org = unet, copy.deepcopy(scheduler), share, x_org
        self._original = scheduler.add_noise(x_org, noise, scheduler.timesteps[:1])  # x_t of the original
        self._twins = [_twin(generator) for generator in generators]

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """Predict the noise in ``x_t`` ``[n, 3, H, W]``, and take the original one timestep on."""
        eps, eps_original = self._unet(torch.cat([x_t, self._original]), timestep).chunk(2)
        ac_t = self._scheduler.alphas_cumprod[timestep].to(x_t.device, x_t.dtype)
        noise = (self._original - ac_t.sqrt() * self._x_org) / (1 - ac_t).sqrt()
        step = self._scheduler.step(noise, timestep, self._original, generator=self._twins)
        self._original = step.prev_sample
        corrected: Tensor = eps + self._share * (noise - eps_original)
        return corrected


def correct_denoiser(
    unet: Denoiser,
    scheduler: Any,
    share: float,
    x_org: Tensor,
    noise: Tensor,
    generators: Sequence[torch.Generator],
) -> Denoiser:
    """Return a `CorrectedDenoiser` for one round, or the denoiser itself where the share is 0."""
    return unet if share == 0 else CorrectedDenoiser(unet, scheduler, share, x_org, noise, generators)


def _twin(generator: torch.Generator) -> torch.Generator:
    """A generator of its own that will draw the same numbers."""
    return torch.Generator(generator.device).set_state(generator.get_state())
