"""Small moves of training crops, and of points with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def random_similarity(
    images: Tensor, points: Tensor, generator: torch.Generator,
    max_shift: float, max_scale: float, max_degrees: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Shift, scale and turn each image a little, and its landmarks with it.

    Args:
        images: ``[N, C, H, W]``; pixels from outside repeat the border.
        points: ``[N, K, 2]`` pixels; K may be 0.
        generator: source of the randomness.
        max_shift: pixels. max_scale: share of 1. max_degrees: degrees.

    Returns:
        Warped images and points, in their own types inside a region of autocast too.
    """
    count, size = len(images), images.shape[-1]

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(max_degrees).deg2rad(), 1 + uniform(max_scale)
    shift = uniform(max_shift, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # output -> input
    linear, shift = linear.to(images), shift.to(images)
    theta = torch.cat([linear, shift[:, :, None] * 2 / size], dim=2)
    # the loop's autocast would take grid and points to bfloat16, which tells places above 64 px apart by half a pixel
    with torch.autocast(images.device.type, enabled=False):
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        warped = nn.functional.grid_sample(
            images, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        centre, shift, linear = (size - 1) / 2, shift.to(points), linear.to(points)
        moved = (points - centre - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2) + centre
    return warped, moved
