"""Heads turned so far that a part of them is out of sight, over the same smooth shape as `turn_heads`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusers_dedim.faces.align import ARCFACE_TEMPLATE
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.training.augment import HEAD_CENTRE, head_depth, move_alike

_STEPS = 3  # samples a pixel of the unturned head: no gap opens where the turned one is drawn out
_CANVAS = 160  # px: width of the plane on which the turned head is drawn
_HALF_AXES = (46.0, 60.0)  # px: of the ellipse, around (56, 58), beyond which nothing is taken for the head
_DEPTHS = 1024  # steps in which depths are compared, a sixteenth of a pixel


def turn_far(layers: Tensor, backgrounds: Tensor, generator: torch.Generator) -> Tensor:
    """Turn heads 30 to 75 degrees to a side, drawing only what is still in sight.

    Each row is drawn from many samples of the unturned one; where several fall on a place, the nearest is seen. What
    lies beside the far cheek is the background: of the other photo for half of the heads.

    Args:
        layers: ``[N, 5, 112, 112]``: picture 0..255, face 0 or 1, and whether that is known (`face_region`).
        backgrounds: ``[N, 3, 112, 112]`` other pictures.
        generator: source of the randomness.

    Returns:
        The layers of the turned heads, aligned to the five-point template by where its points would be.
    """
    count = len(layers)
    side = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1.0, 1.0)
    yaw = side * (30 + 45 * torch.rand(count, 1, generator=generator)).deg2rad()
    column, beyond = _seen_columns(yaw)
    centre = torch.tensor(HEAD_CENTRE)
    template = torch.tensor(ARCFACE_TEMPLATE, dtype=torch.float32).expand(count, -1, -1) - centre
    turned = torch.stack([_across(template, yaw), template[..., 1]], -1)
    row = torch.arange(CROP_SIZE, dtype=torch.float32)
    pixels = torch.stack(torch.meshgrid(row, row, indexing="xy"), -1).reshape(1, -1, 2) - centre
    seen = move_alike(template, turned, pixels.expand(count, -1, -1)) + centre
    y = seen[..., 1].reshape(count, CROP_SIZE, CROP_SIZE)
    canvas = (seen[..., 0] + (_CANVAS - CROP_SIZE) / 2).round().long().clamp(0, _CANVAS - 1).flatten(1)
    places = (seen[..., 1].round().long().clamp(0, CROP_SIZE - 1) * _CANVAS).flatten(1) + canvas
    x = column.flatten(1).gather(1, places).reshape(count, CROP_SIZE, CROP_SIZE)
    grid = torch.stack([(2 * x + 1) / CROP_SIZE - 1, (2 * y + 1) / CROP_SIZE - 1], -1)
    drawn = nn.functional.grid_sample(layers, grid, padding_mode="border", align_corners=False)
    hidden = beyond.flatten(1).gather(1, places).reshape(count, 1, CROP_SIZE, CROP_SIZE)
    replaced = hidden & (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    empty = torch.cat([backgrounds, torch.zeros_like(layers[:, :1]), torch.ones_like(layers[:, :1])], 1)
    return torch.where(replaced, empty, drawn)


def _across(points: Tensor, yaw: Tensor) -> Tensor:
    """Where points ``[N, K, 2]`` (px from the centre) of the head are seen across after the turn, ``[N, K]``."""
    return points[..., 0] * yaw.cos() + head_depth(points) * yaw.sin()


def _seen_columns(yaw: Tensor) -> tuple[Tensor, Tensor]:
    """For each place of the canvas the column of the unturned head that is seen there, and whether it is beyond it.

    Returns:
        ``[N, 112, 160]`` px, and bool of the same shape.
    """
    count = len(yaw)
    x = torch.arange(CROP_SIZE * _STEPS, dtype=torch.float32) / _STEPS
    y = torch.arange(CROP_SIZE, dtype=torch.float32)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, -1, 2)
    local = (points - torch.tensor(HEAD_CENTRE)).expand(count, -1, -1)
    across = _across(local, yaw)
    depth = head_depth(local) * yaw.cos() - local[..., 0] * yaw.sin()
    place = (across + HEAD_CENTRE[0] + (_CANVAS - CROP_SIZE) / 2).round().long().clamp(0, _CANVAS - 1)
    target = local.new_tensor(range(CROP_SIZE)).long().repeat_interleave(len(x)) * _CANVAS + place
    nearness = ((depth + 128).clamp(0, 255) / 256 * _DEPTHS).long()
    steps = len(x)
    key = nearness * steps + torch.arange(steps).repeat(CROP_SIZE)
    best = torch.full((count, CROP_SIZE * _CANVAS), -1).scatter_reduce(1, target, key, "amax")
    best = best.reshape(count, CROP_SIZE, _CANVAS)
    for _ in range(3):  # single places between two samples
        wider = nn.functional.max_pool2d(best.float(), (1, 3), 1, (0, 1)).long()
        best = torch.where(best < 0, wider, best)
    column = (best.clamp_min(0) % steps) / _STEPS
    return column, _beyond_the_head(column, yaw)


def _beyond_the_head(column: Tensor, yaw: Tensor) -> Tensor:
    """Mark what is seen past the far end of the head's outline in each row."""
    y = torch.arange(CROP_SIZE)[:, None]
    wide, high = _HALF_AXES
    on_head = ((column - 56) / wide).square() + ((y - 58) / high).square() < 1
    place = torch.arange(_CANVAS)
    right = torch.where(on_head, place, -1).amax(2, keepdim=True)
    left = torch.where(on_head, place, _CANVAS).amin(2, keepdim=True)
    return torch.where(yaw[:, :, None] > 0, place > right, place < left)
