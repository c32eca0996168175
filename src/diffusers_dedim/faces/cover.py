"""Make a face unrecognisable without changing who it looks like: blurred or pixelated, quiet at its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diffusers_dedim.faces.types import Face, check_photo

Cover = Literal["blur", "pixelate"]
COVERS: tuple[str, ...] = get_args(Cover)

# Half axes of the ellipse as a share of the box's sides: a detector's box ends at chin and forehead.
_HALF_AXIS = 0.56
# The five points lie within this share of the ellipse, or it grows: boxes of turned faces are off.
_POINTS_INSIDE = 0.85
# Where the cover ends, in radii of the ellipse; between 1 and here it fades.
_FADED = 1.25
# Measured, with the grid: python -m benchmarks.small_faces
_SIGMA = 0.16  # of the blur, as a share of the ellipse's longer axis
_OWN = 0.7  # radii: so far from its middle a covered face is covered whatever lies in front of it
_BLOCKS = 5  # along the ellipse's longer axis
_COARSE = 64  # px: what is blurred so far has no more detail than such a copy
_MOST_GRAIN = 6.0  # levels of 255: above it is texture, no noise
_QUIET = 0.25  # share of a face's surroundings without texture; 0.3186 is that quantile of a normal variable's size


def cover_face(
    photo: NDArray[np.uint8], face: Face, cover: Cover = "blur", beside: Sequence[Face] = ()
) -> NDArray[np.uint8]:
    """Cover a face's ellipse so that nobody, and no recogniser, reads it.

    The blur takes the colours of the face alone, so that none of the background flows in, fades at its rim and has the
    grain of what it covers. It is so strong, relative to the face, that eyes, nose and mouth are gone and light and
    skin stay. Each pixel depends on the photo alone: no draw of a generator.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB; not modified.
        face: its box and points in photo px; may reach beyond the photo, or lie outside.
        cover: "blur", or "pixelate": squares of one colour, a fifth of the face wide.
        beside: faces of the photo that are not covered. Those that are larger and do not hold the middle of this one
            are taken to be in front of it, and keep their bits well within their own ellipse, but for what lies so near
            the middle of the covered face that it may be that one's.

    Returns:
        A new photo; pixels farther than 1.25 radii from the middle keep their bits.

    Raises:
        ValueError: the cover is another one, or the photo has another shape.
        TypeError: the photo is not a uint8 array.

    Example:
        >>> from diffusers_dedim.faces import ARCFACE_TEMPLATE
        >>> face = Face((60.0, 60.0, 90.0, 100.0), 60 + ARCFACE_TEMPLATE / 3, 1.0)
        >>> photo = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        >>> changed = (cover_face(photo, face) != photo).any(axis=2)
        >>> bool(changed[80, 75]), bool(changed[80, 120])
        (True, False)
    """
    check_photo(photo)
    if cover not in COVERS:
        raise ValueError(f"cover: expected one of {list(COVERS)}, got {cover!r}.")
    result: NDArray[np.uint8] = photo.copy()
    centre, axes = _ellipse(face)
    low = np.floor(centre - _FADED * axes).astype(int)
    high = np.ceil(centre + _FADED * axes).astype(int) + 1
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, photo.shape[1::-1])
    if x0 >= x1 or y0 >= y1:
        return result
    radii = _radii(centre, axes, (int(x0), int(y0), int(x1), int(y1)))
    region = torch.from_numpy(photo[y0:y1, x0:x1].copy()).float().permute(2, 0, 1)  # [3, h, w]
    make = _blur if cover == "blur" else _pixelate
    # a user's autocast would round what is 8 bits to fewer
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        covered = make(region, radii, float(2 * axes.max()))
        if cover == "blur":
            covered += _fade(radii) * _grain(photo, centre, axes, region.shape[1:])
        for other in beside:
            centre_of, axes_of = _ellipse(other)
            if other.size > face.size and np.linalg.norm((centre - centre_of) / axes_of) > 1:
                theirs = _radii(centre_of, axes_of, (int(x0), int(y0), int(x1), int(y1)))
                kept = _fade(_FADED * theirs) * (1 - _fade(radii / _OWN))
                covered = torch.where(kept == 1, region, torch.lerp(covered, region, kept))
    result[y0:y1, x0:x1] = covered.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return result


def _ellipse(face: Face) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and half axes, photo px."""
    x0, y0, x1, y1 = face.box
    centre = np.array([x0 + x1, y0 + y1]) / 2
    axes = np.array([x1 - x0, y1 - y0]) * _HALF_AXIS
    farthest = float(np.linalg.norm((face.landmarks - centre) / axes, axis=1).max())
    return centre, axes * max(1.0, farthest / _POINTS_INSIDE)


def _radii(
    centre: NDArray[np.float64], axes: NDArray[np.float64], region: tuple[int, int, int, int]
) -> Tensor:
    """Distance of each pixel from the centre in radii of the ellipse, [h, w]."""
    x0, y0, x1, y1 = region
    x = (torch.arange(x0, x1, dtype=torch.float64) - centre[0]) / axes[0]
    y = (torch.arange(y0, y1, dtype=torch.float64) - centre[1]) / axes[1]
    radii: Tensor = (x[None].square() + y[:, None].square()).sqrt().float()
    return radii


def _fade(radii: Tensor) -> Tensor:
    """1 on the ellipse, falling to exactly 0 at `_FADED`, [h, w]."""
    weight: Tensor = 0.5 * (1 + torch.cos(math.pi * ((radii - 1) / (_FADED - 1)).clamp(0, 1)))
    weight[radii >= _FADED] = 0.0  # cos(pi) is a hair off -1 in float32
    return weight


def _blur(region: Tensor, radii: Tensor, length: float) -> Tensor:
    """The region [3, h, w] with its ellipse blurred; ``length``: longer axis, px."""
    weight = _fade(radii)
    height, width = radii.shape
    scale = min(1.0, _COARSE / max(height, width))
    coarse = (max(1, round(height * scale)), max(1, round(width * scale)))
    # premultiplied: what lies outside the ellipse has no say in the colours inside
    parts = torch.cat([region * weight, weight[None]])[None]
    parts = _gauss(functional.interpolate(parts, coarse, mode="area"), _SIGMA * length * scale)
    smooth = functional.interpolate(
        parts[:, :3] / parts[:, 3:].clamp_min(1e-6), (height, width), mode="bicubic", align_corners=False
    )[0]
    return region + weight * (smooth - region)


def _gauss(parts: Tensor, sigma: float) -> Tensor:
    """Blur [1, C, h, w]; beyond its edge there is nothing."""
    reach = math.ceil(3 * sigma)
    line = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    line = (line / line.sum()).expand(parts.shape[1], 1, 1, -1)
    parts = functional.conv2d(parts, line, padding=(0, reach), groups=len(line))
    return functional.conv2d(parts, line.mT, padding=(reach, 0), groups=len(line))


def _grain(
    photo: NDArray[np.uint8], centre: NDArray[np.float64], axes: NDArray[np.float64], shape: tuple[int, ...]
) -> Tensor:
    """Grey noise [1, h, w] as strong as that of the face and its surroundings, the same for the same size.

    Its strength is told by second differences in both directions (after Immerkaer 1996) of the quietest quarter:
    features and edges, which a small face is full of, are among the others.
    """
    x0, y0 = np.maximum(np.floor(centre - 3 * axes).astype(int), 0)
    x1, y1 = np.ceil(centre + 3 * axes).astype(int)
    step = max(
        1, int((y1 - y0) * (x1 - x0)) // 1_000_000
    )  # rows of a face of thousands of px: enough are left
    around = torch.from_numpy(photo[y0:y1, x0:x1].mean(2, dtype=np.float32))
    if min(around.shape) < 3:
        return around.new_zeros(1, *shape)
    difference = around.new_tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    answers = functional.conv2d(around[None, None], difference, stride=(step, 1)).abs().flatten()
    quiet = float(answers.kthvalue(1 + int(_QUIET * (len(answers) - 1))).values)
    draw = torch.Generator().manual_seed(shape[0] * 65_537 + shape[1])
    return min(quiet / (0.3186 * 6), _MOST_GRAIN) * torch.randn(1, *shape, generator=draw)


def _pixelate(region: Tensor, radii: Tensor, length: float) -> Tensor:
    """The region [3, h, w] with squares of one colour over its ellipse."""
    side = length / _BLOCKS
    height, width = radii.shape
    blocks = (max(1, round(height / side)), max(1, round(width / side)))
    both = functional.adaptive_avg_pool2d(torch.cat([region, (radii < 1.0).float()[None]])[None], blocks)
    # which pixels belong to a square follows the edges of adaptive pooling, that of the nearest does not
    rows, columns = (
        (torch.arange(size) * number) // size for size, number in zip((height, width), blocks, strict=True)
    )
    squares = both[0][:, rows][:, :, columns]
    return torch.where(squares[3] > 0.0, squares[:3], region)
