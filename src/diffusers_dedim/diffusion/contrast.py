"""Faces of little contrast (dark, hazy, flat) are sampled at an ordinary one, and what changed is scaled back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusers_dedim.diffusion.sampling import SampleResult

_MAX_GAIN = 16.0  # a face of 0 to 15 levels; beyond it there is nothing but the steps of 8 bits
_MIDDLE = 0.3  # mean brightness that a face of little contrast is brought to lies within this of mid-grey


@dataclass(frozen=True, eq=False)
class Exposure:
    """How much brighter and how much richer in contrast each face is sampled than it is.

    A push has one size, and a denoiser knows faces of ordinary photos: on a face of 0 to 17 levels both leave bright
    smears. At an ordinary contrast they fit, and scaled back the change has the size that the photo has room for.

    Attributes:
        x_org: the faces as they are ``[N, 3, H, W]`` in [-1, 1].
        base: the same at the contrast at which they are sampled.
        gain: ``[N, 1, 1, 1]``, 1 or more; 1 leaves a face as it is, to the last bit.

    Example:
        >>> dark = torch.linspace(-1, -0.9, 100).reshape(1, 1, 10, 10).expand(1, 3, 10, 10)
        >>> exposure = Exposure.of(dark, torch.ones(1, 1, 10, 10), least=0.25)
        >>> round(float(exposure.base.std()), 2), round(float(exposure.gain), 1)
        (0.25, 8.6)
    """

    x_org: Tensor
    base: Tensor
    gain: Tensor

    @classmethod
    def of(cls, x_org: Tensor, mask: Tensor, least: float) -> Exposure:
        """Measure faces.

        Args:
            x_org: ``[N, 3, H, W]`` in [-1, 1].
            mask: ``[N, 1, H, W]`` in [0, 1]; what counts.
            least: standard deviation of the grey values, in [-1, 1] units, below which a face is raised to it.
        """
        grey = x_org.mean(1, keepdim=True)
        weight = mask / mask.sum((2, 3), keepdim=True).clamp_min(1e-6)
        mean = (weight * grey).sum((2, 3), keepdim=True)
        contrast = (weight * (grey - mean).square()).sum((2, 3), keepdim=True).sqrt()
        gain = (least / contrast.clamp_min(1e-6)).clamp(1, _MAX_GAIN)
        # the brightness follows as the gain rises from 1 to 2, so that no face jumps
        middle = mean + (mean.clamp(-_MIDDLE, _MIDDLE) - mean) * (gain - 1).clamp(max=1)
        raised = ((x_org - mean) * gain + middle).clamp(-1, 1)
        return cls(x_org, torch.where(gain > 1, raised, x_org), gain)

    def raise_(self, x_0: Tensor) -> Tensor:
        """Changed faces ``[N, 3, H, W]`` as they are sampled."""
        return torch.where(self.gain > 1, self.base + (x_0 - self.x_org) * self.gain, x_0)

    def lower(self, x_0: Tensor) -> Tensor:
        """Sampled faces ``[N, 3, H, W]`` as they belong into the photo."""
        return torch.where(self.gain > 1, self.x_org + (x_0 - self.base) / self.gain, x_0)


def at_least_contrast(sample: Callable[..., SampleResult], least: float) -> Callable[..., SampleResult]:
    """`sample_dedim` for faces of any contrast: those below ``least`` are raised to it, and the result lowered.

    Args:
        sample: takes ``x_org``, ``mask`` and, by name, ``x_0`` and the rest of `sample_dedim`'s arguments.
        least: see `Exposure.of`; 0 returns ``sample`` itself.
    """
    if least == 0:
        return sample

    def sample_raised(
        x_org: Tensor, mask: Tensor, *, x_0: Tensor | None = None, **options: Any
    ) -> SampleResult:
        exposure = Exposure.of(x_org, mask, least)
        begin = None if x_0 is None else exposure.raise_(x_0)
        result = sample(exposure.base, mask, x_0=begin, **options)
        return replace(result, crops=exposure.lower(result.crops))

    return sample_raised
