"""Input diversity: the recogniser sees a slightly warped face each step, so that the noise fits it less closely."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A pixel counts as inside when bilinear sampling took nothing from beyond the border; less is rounding.
_FULL_COVER = 0.9999


def random_warps(generators: list[torch.Generator], spread: tuple[float, float]) -> Tensor:
    """Draw a random linear warp and a random rotation for each face.

    Both standard deviations are drawn anew, uniformly from ``spread``: one for the six numbers added to the
    identity ``[[1, 0, 0], [0, 1, 0]]`` (in units of half the image), one for the angle in radians.

    Args:
        generators: one per face, on the CPU.
        spread: lowest and highest standard deviation.

    Returns:
        ``[2, N, 2, 3]`` float64, output -> input in [-1, 1] coordinates: the warps, then the rotations.
    """
    return torch.stack([_random_warp(generator, spread) for generator in generators], dim=1)


def _random_warp(generator: torch.Generator, spread: tuple[float, float]) -> Tensor:
    low, high = spread
    drawn = torch.rand(2, generator=generator, dtype=torch.float64)
    linear_std, angle_std = (low + (high - low) * drawn).tolist()
    noise = torch.randn(7, generator=generator, dtype=torch.float64)
    linear = torch.eye(2, 3, dtype=torch.float64) + linear_std * noise[:6].reshape(2, 3)
    angle = angle_std * noise[6]
    cos, sin, zero = angle.cos(), angle.sin(), angle.new_zeros(())
    rotation = torch.stack([torch.stack([cos, sin, zero]), torch.stack([-sin, cos, zero])])
    return torch.stack([linear, rotation])  # [2, 2, 3]


def warp_images(images: Tensor, warps: Tensor) -> Tensor:
    """Warp each image; what the image does not reach is 0 (black in 0..255).

    Args:
        images: ``[N, C, H, W]``.
        warps: ``[N, 2, 3]``, output -> input in [-1, 1] coordinates.

    Example:
        >>> warp_images(torch.ones(1, 1, 2, 2), torch.eye(2, 3)[None]).sum()
        tensor(4.)
    """
    grid = functional.affine_grid(warps.to(images), list(images.shape), align_corners=False)
    warped = functional.grid_sample(images, grid, align_corners=False)
    cover = functional.grid_sample(torch.ones_like(images[:, :1]), grid, align_corners=False)
    return warped * (cover >= _FULL_COVER)
