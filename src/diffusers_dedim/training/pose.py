"""Turned heads from frontal faces, and faces of other proportions, by moving pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusers_dedim.faces.align import ARCFACE_TEMPLATE

_ITERATIONS = 4  # of the fixed point; beside the nose, where the slope is above 1, a pixel or two is left
_CENTRE = (56.0, 66.0)  # of the head in the 112-px crop
_HEAD = (40.0, 34.0, 44.0)  # pixels: height, and spread along x and y, of a smooth bump
_NOSE = (7.0, 8.0, 9.0, 5.0)  # height, spreads, and how far below the centre the tip lies


def turn_heads(
    images: Tensor, generator: torch.Generator, *, share: float, yaw: float, pitch: float,
    bend_share: float = 0.0, bend: float = 0.0,
) -> Tensor:  # fmt: skip
    """Turn and tilt heads as if the camera had moved, and align them to the five-point template again.

    Training crops of strongly turned heads are missing from the data; photos hold many. The depth is the same
    smooth bump for everyone, so a turned face is not that person's true other view: right for learning how a
    teacher answers to such views, and nothing to learn labels from. Bent faces have the proportions of nobody in
    the data: eyes further apart, a longer nose, a fuller mouth.

    Args:
        images: ``[N, C, 112, 112]``, aligned.
        generator: source of the randomness.
        share: of the images that are turned, 0..1.
        yaw, pitch: standard deviations in degrees; draws are cut at two of them.
        bend_share: of the images that are bent, 0..1.
        bend: standard deviation in pixels of the smooth moves that bend a face, at places 37 px apart.

    Returns:
        Images of the same shape; pixels from outside mirror the photo at its border.
    """
    count = len(images)
    draw = torch.randn(count, 2, generator=generator).clamp(-2, 2) * torch.tensor([yaw, pitch]).deg2rad()
    draw = draw * (torch.rand(count, 1, generator=generator) < share)
    size = images.shape[-1]
    points = torch.tensor(ARCFACE_TEMPLATE, dtype=torch.float32).expand(count, -1, -1) - torch.tensor(_CENTRE)
    turned = _rotate(points, draw)
    row = torch.linspace(0, size - 1, size // 2 + 1)  # the field is smooth: every other pixel is enough
    pixels = torch.stack(torch.meshgrid(row, row, indexing="xy"), -1).reshape(1, -1, 2) - torch.tensor(
        _CENTRE
    )
    seen = _similarity(points, turned, pixels.expand(count, -1, -1))
    source = (_unrotate(seen, draw) + torch.tensor(_CENTRE)).reshape(count, len(row), len(row), 2)
    if bend_share:
        source = source + _bends(count, len(row), generator, bend_share, bend)
    field = nn.functional.interpolate(
        source.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=True
    )
    grid = ((2 * field + 1) / size - 1).permute(0, 2, 3, 1).to(images)
    return nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _bends(count: int, size: int, generator: torch.Generator, share: float, bend: float) -> Tensor:
    """Smooth moves ``[N, size, size, 2]`` in pixels, zero where a face is not bent."""
    moves = smooth_noise(count, 2, size, generator) * bend
    return moves.permute(0, 2, 3, 1) * (torch.rand(count, 1, 1, 1, generator=generator) < share)


def smooth_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw ``[N, channels, size, size]``: 4x4 normal values, about 1 in standard deviation there, cubic in between."""
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def _depth(points: Tensor) -> Tensor:
    """Height of the head over the image plane at ``[N, K, 2]`` pixels from the centre, ``[N, K]``."""
    x, y = points.unbind(-1)
    height, wide, high = _HEAD
    nose, nose_wide, nose_high, below = _NOSE
    head = height * torch.exp(-((x / wide) ** 2 + (y / high) ** 2) / 2)
    return head + nose * torch.exp(-((x / nose_wide) ** 2 + ((y - below) / nose_high) ** 2) / 2)


def _rotate(points: Tensor, angles: Tensor) -> Tensor:
    """Where points of the head are seen after the turn."""
    yaw, pitch = angles[:, :1], angles[:, 1:]
    (x, y), z = points.unbind(-1), _depth(points)
    high, deep = y * pitch.cos() - z * pitch.sin(), y * pitch.sin() + z * pitch.cos()
    return torch.stack([x * yaw.cos() + deep * yaw.sin(), high], -1)


def _unrotate(seen: Tensor, angles: Tensor) -> Tensor:
    """Points of the head that are seen at ``seen`` after the turn, by fixed-point iteration."""
    yaw, pitch = angles[:, :1], angles[:, 1:]
    points = seen
    for _ in range(_ITERATIONS):
        z = _depth(points)
        y = (seen[..., 1] + z * pitch.sin()) / pitch.cos()
        x = (seen[..., 0] - (y * pitch.sin() + z * pitch.cos()) * yaw.sin()) / yaw.cos()
        points = torch.stack([x, y], -1)
    return points


def _similarity(source: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """Move points by the least-squares similarity that takes ``source`` to ``target``, all ``[N, K, 2]``."""
    here, there, moved = (torch.view_as_complex(value.contiguous()) for value in (source, target, points))
    start, end = here.mean(1, keepdim=True), there.mean(1, keepdim=True)
    factor = ((here - start).conj() * (there - end)).sum(1, keepdim=True)
    factor = factor / (here - start).abs().square().sum(1, keepdim=True)
    return torch.view_as_real((moved - start) * factor + end)
