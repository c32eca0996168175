"""Keep what the denoiser cannot redraw: its error on the original, put right in the face that is sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, int], Tensor]

# What is lost in two rounds with the same noise adds up, with two draws its squares do: so much of it makes them equal.
_AGAIN = math.sqrt(2) - 1


class CorrectedDenoiser:
    """Predict the noise of a round, less a share of the error made on the original under the same noise.

    A denoiser of a few million parameters loses of a face what it cannot redraw: pores, wrinkles, the frame of a
    pair of glasses. How much it loses is known for the original, because there the true noise is known. The original
    therefore goes the same way beside the face, with the same random numbers, and the error of its prediction is
    taken off the face's. With a share of 1 an unguided round returns the original itself; with 0 it is the
    denoiser's alone. What guidance has changed is no part of the original, so the denoiser still redraws that.

    Each call stands for one timestep, in the scheduler's order, and costs the denoiser twice the images; less for
    faces whose errors are known from the round before, with the same noise (`FaceNoise`). Of those a larger share is
    taken off: what is lost twice in the same way adds up, so that the loss would be seen more than under new noise.

    Args:
        unet: epsilon prediction (x_t ``[n + m, 3, H, W]``, timestep) -> ``[n + m, 3, H, W]``; the m images behind
            the n faces are the originals of those whose errors are not known, in their order.
        scheduler: with the timesteps of the round set (`prepare_scheduler`); it is copied, its memory is not touched.
        share: of the error that is taken off, in [0, 1].
        x_org: originals ``[n, 3, H, W]`` in [-1, 1].
        noise: what the faces were diffused with, ``[n, 3, H, W]``.
        generators: those of the faces, as they stand when the round's first step is due; copied, nothing is drawn
            from them.
        known: the errors ``[S, 3, H, W]`` of each face under this noise in the S steps of a round, None where they
            are not known; None for all of them.

    Attributes:
        images: how many of each face the denoiser is called on in a step: itself, and its original where that must be.
        errors: of each face ``[S, 3, H, W]``, once all steps are taken.

    Source:
        Ours, not the paper's: D16 in docs/paper.md. Related: the noise maps of "edit-friendly" DDPM inversion
        (Huberman-Spiegelglas et al. 2024), which keep everything of an image.

    Raises:
        ValueError: ``share`` is out of its range.

    Example:
        >>> from diffusers_dedim.diffusion.schedule import make_scheduler
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
        known: Sequence[Tensor | None] | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: expected a number in [0, 1], got {share}.")
        self._unet, self._scheduler = unet, copy.deepcopy(scheduler)
        self._known = [None] * len(x_org) if known is None else list(known)
        self._new = unknown(self._known)
        self.images: list[int] = [2 if each is None else 1 for each in self._known]
        rows = torch.tensor(self._new, device=x_org.device, dtype=torch.long)
        self._x_org = x_org[rows]
        # x_t of the originals
        self._original = scheduler.add_noise(self._x_org, noise[rows], scheduler.timesteps[:1])
        self._twins = [_twin(generators[face]) for face in self._new]
        again = 1 - _AGAIN * (1 - share)
        shares = [share if each is None else again for each in self._known]
        self._shares = torch.tensor(shares, dtype=x_org.dtype, device=x_org.device).reshape(-1, 1, 1, 1)
        self._steps: list[Tensor] = []

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """Predict the noise in ``x_t`` ``[n, 3, H, W]``, and take the originals one timestep on."""
        eps = self._unet(torch.cat([x_t, self._original]), timestep)
        error = self._error(eps[len(x_t) :], timestep)
        self._steps.append(error)
        corrected: Tensor = eps[: len(x_t)] + self._shares * error
        return corrected

    @property
    def errors(self) -> list[Tensor]:
        return list(torch.stack(self._steps, dim=1))

    def _error(self, eps: Tensor, timestep: int) -> Tensor:
        """The error on each face's original, known or from what is predicted for those that are not."""
        step = len(self._steps)
        error = [None if each is None else each[step] for each in self._known]
        if self._new:
            ac_t = self._scheduler.alphas_cumprod[timestep].to(eps.device, eps.dtype)
            noise = (self._original - ac_t.sqrt() * self._x_org) / (1 - ac_t).sqrt()
            after = self._scheduler.step(noise, timestep, self._original, generator=self._twins)
            self._original = after.prev_sample
            for face, each in zip(self._new, noise - eps, strict=True):
                error[face] = each
        return torch.stack([each for each in error if each is not None])


def unknown(known: Sequence[Tensor | None]) -> list[int]:
    """Places of what is not known."""
    return [place for place, each in enumerate(known) if each is None]


def _twin(generator: torch.Generator) -> torch.Generator:
    """A generator of its own that will draw the same numbers."""
    return torch.Generator(generator.device).set_state(generator.get_state())


Size = tuple[int, int]

# Rows and columns that held the mask of each of 341 faces of LFW, profiles among them; 67 % of a crop of 112 px.
FACE_WINDOW: Size = (88, 96)


class WindowedDenoiser:
    """Predict the noise within a window around each face's mask; outside it, what leads back to the original.

    Line 9 of Algorithm 2 puts the original back outside the mask, so what the denoiser says there is never seen. All
    windows are of one size, so that faces go through the networks together; each lies around the middle of its face's
    mask. A face whose mask is larger is denoised whole, so that its result does not depend on who is beside it.

    Args:
        unet: epsilon prediction (x_t ``[n, 3, h, w]``, timestep) -> ``[n, 3, h, w]``; not far from its window's
            edges it should say what it says of a whole crop.
        scheduler: its ``alphas_cumprod`` is read.
        size: rows and columns of the windows, for this denoiser (`window_for`).
        x_org: originals ``[N, 3, H, W]`` in [-1, 1] of the images that it is called on.
        mask: ``[N, 1, H, W]``; 0 = original.

    Source:
        Ours, not the paper's: D18 in docs/paper.md; what it saves is in docs/experiments.md.

    Example:
        >>> from diffusers_dedim.diffusion.schedule import make_scheduler
        >>> mask = torch.zeros(1, 1, 112, 112)
        >>> mask[..., 30:108, 16:98] = 1
        >>> unet = lambda x_t, t: print(list(x_t.shape)) or 0 * x_t
        >>> denoise = WindowedDenoiser(unet, make_scheduler(), FACE_WINDOW, torch.zeros(1, 3, 112, 112), mask)
        >>> eps = denoise(torch.zeros(1, 3, 112, 112), 99)
        [1, 3, 88, 96]
    """

    def __init__(self, unet: Denoiser, scheduler: Any, size: Size, x_org: Tensor, mask: Tensor) -> None:
        self._unet, self._scheduler, self._x_org = unet, scheduler, x_org
        tops, rows_fit = _place(mask.amax((1, 3)) > 0, size[0])
        lefts, columns_fit = _place(mask.amax((1, 2)) > 0, size[1])
        self._rows = tops[:, None] + torch.arange(size[0], device=mask.device)  # [N, h]
        self._columns = lefts[:, None] + torch.arange(size[1], device=mask.device)  # [N, w]
        fits = rows_fit & columns_fit
        # looked up once a round: each look waits for the device
        self._windowed, self._whole = fits.nonzero()[:, 0], (~fits).nonzero()[:, 0]

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """Predict the noise in ``x_t`` ``[N, 3, H, W]``."""
        alpha = self._scheduler.alphas_cumprod[timestep].to(x_t.device, x_t.dtype)
        eps: Tensor = (x_t - alpha.sqrt() * self._x_org) / (1 - alpha).sqrt()
        if len(self._windowed):
            window = (
                self._windowed[:, None, None, None],
                torch.arange(x_t.shape[1], device=x_t.device)[:, None, None],
                self._rows[self._windowed][:, None, :, None],
                self._columns[self._windowed][:, None, None, :],
            )
            eps[window] = self._unet(x_t[window], timestep)
        if len(self._whole):
            eps[self._whole] = self._unet(x_t[self._whole], timestep)
        return eps


def round_denoiser(
    unet: Denoiser,
    scheduler: Any,
    x_org: Tensor,
    mask: Tensor,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    known: Sequence[Tensor | None],
    share: float,
    window: Size | None,
) -> Denoiser:
    """The denoiser of one round: on windows where there is a size for them, and corrected where there is a share.

    Args:
        unet: epsilon prediction (x_t ``[n, 3, h, w]``, timestep) -> ``[n, 3, h, w]``.
        scheduler, x_org, noise, generators, known, share: of `CorrectedDenoiser`.
        mask: ``[n, 1, H, W]``, see `WindowedDenoiser`.
        window: its size; None for whole crops.
    """
    faces = list(range(len(x_org)))
    images = [*faces, *unknown(known)] if share else faces
    if window is not None:
        unet = WindowedDenoiser(unet, scheduler, window, x_org[images], mask[images])
    if share:
        return CorrectedDenoiser(unet, scheduler, share, x_org, noise, generators, known)
    return unet


def window_for(unet: Any, crop: Size) -> Size | None:
    """`FACE_WINDOW`, made larger where the denoiser halves its images so often that they would not come out even.

    Args:
        unet: its ``config.block_out_channels``, if it has any, names a width for each of its resolutions.
        crop: rows and columns of the crops that it gets.

    Returns:
        Rows and columns, or None where nothing would be saved or nobody knows what fits.

    Example:
        >>> from types import SimpleNamespace
        >>> unet = SimpleNamespace(config=SimpleNamespace(block_out_channels=(32, 64, 128, 128)))
        >>> window_for(unet, (112, 112)), window_for(unet, (64, 64))
        ((88, 96), None)
    """
    widths = getattr(getattr(unet, "config", None), "block_out_channels", ())
    if not widths:
        return None
    multiple = 2 ** (len(widths) - 1)
    rows, columns = (-(-side // multiple) * multiple for side in FACE_WINDOW)
    saves = rows <= crop[0] and columns <= crop[1] and rows * columns < crop[0] * crop[1]
    return (rows, columns) if saves else None


def _place(used: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where windows of a length begin so that they hold what is used ``[N, side]``; and whether they hold it all."""
    side = used.shape[1]
    any_used = used.any(1)
    first = torch.where(any_used, used.int().argmax(1), side // 2)
    last = torch.where(any_used, side - 1 - used.flip(1).int().argmax(1), side // 2)
    begin = ((first + last + 1 - length) // 2).clamp(0, side - length)
    return begin, (begin <= first) & (last < begin + length)
