"""The mask m of the paper (section 4): discs around the landmarks are sampled, the rest stays original.

Ours is that the middle of the eyes and the skin between the brows may stay too (`keep_eyes`, `keep_between_brows`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.models.landmarks import NUM_LANDMARKS

# Of the 51 landmarks, those around each eye; and how wide the middle is that may stay, standard deviation in crop px
# (an iris is some 8 px wide).
_EYES = (slice(19, 25), slice(25, 31))
_EYE_WIDTH = (3.0, 3.0)
# The inner ends of the brows, and how wide and high the skin between them is that may stay.
_BROW_ENDS, _GAP_WIDTH = slice(4, 6), (4.0, 6.0)
# Faces at a time: [16, 51, 112, 112] float32 distances are 41 MB however large the batch is.
_CHUNK = 16


def landmark_mask(
    landmarks: Tensor, radius: float = 10.0, feather: float = 0.0, size: int = CROP_SIZE
) -> Tensor:
    """Mark the pixels within ``radius`` of any landmark (Euclidean, the limit included).

    With ``feather`` > 0 the value falls as half a cosine from 1 at distance ``radius - feather`` to 0 at
    ``radius``; pixels beyond ``radius`` are exactly 0 either way. Landmarks outside the crop count too.

    Args:
        landmarks: ``[N, K, 2]`` x then y in crop px (K is 51 in the paper), pixel centres at whole numbers.
        radius: crop px, > 0.
        feather: width of the ramp, crop px, 0..radius.
        size: side of the mask, px.

    Returns:
        ``[N, 1, size, size]`` float32 in [0, 1] on the device of the landmarks; 1 = sampled, 0 = original.

    Raises:
        ValueError: wrong shape, a landmark that is nan or inf, or a radius or feather out of range.

    Example:
        >>> landmark_mask(torch.tensor([[[50.0, 60.0]]]), radius=1.0).sum()
        tensor(5.)
    """
    _check(landmarks, radius, feather)
    points = landmarks.detach().to(torch.float32)
    axis = torch.arange(size, dtype=torch.float32, device=points.device)
    masks = [_discs(chunk, axis, radius, feather) for chunk in torch.split(points, _CHUNK)]
    return torch.cat(masks) if masks else points.new_zeros(0, 1, size, size)


def keep_eyes(mask: Tensor, landmarks: Tensor, share: float) -> Tensor:
    """Let a share of the original stay in the middle of each eye, falling off as a Gaussian of 3 px.

    Catchlight, pupil and the direction of the look are what a face is first seen by, and a small denoiser blurs them.

    Args:
        mask: ``[N, 1, S, S]`` in [0, 1]; 1 = sampled, 0 = original.
        landmarks: ``[N, 51, 2]`` x then y in crop px.
        share: in [0, 1]; 0 returns the mask as it is.

    Raises:
        ValueError: the share is out of its range, or there are other than 51 landmarks.

    Example:
        >>> points = torch.full((1, 51, 2), 50.0)
        >>> round(float(keep_eyes(torch.ones(1, 1, 112, 112), points, 0.8)[0, 0, 50, 50]), 3)
        0.2
    """
    return _keep(mask, landmarks, share, _EYES, _EYE_WIDTH)


def keep_between_brows(mask: Tensor, landmarks: Tensor, share: float) -> Tensor:
    """Let a share of the original stay between the brows, falling off as a Gaussian of 4 px across and 6 px upright.

    A change there is a frown, or brows that meet.

    Args:
        mask, landmarks, share: as for `keep_eyes`.

    Raises:
        ValueError: the share is out of its range, or there are other than 51 landmarks.

    Example:
        >>> points = torch.full((1, 51, 2), 50.0)
        >>> round(float(keep_between_brows(torch.ones(1, 1, 112, 112), points, 0.8)[0, 0, 56, 50]), 3)
        0.515
    """
    return _keep(mask, landmarks, share, (_BROW_ENDS,), _GAP_WIDTH)


def _keep(
    mask: Tensor, landmarks: Tensor, share: float, places: Sequence[slice], width: tuple[float, float]
) -> Tensor:
    """Keep a share around the middle of some landmarks each; the widths are standard deviations, x then y."""
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number in [0, 1], got {share}.")
    if share == 0:
        return mask
    if landmarks.ndim != 3 or landmarks.shape[1] != NUM_LANDMARKS:
        raise ValueError(f"landmarks: expected [N, {NUM_LANDMARKS}, 2], got {list(landmarks.shape)}.")
    middles = torch.stack(
        [landmarks[:, points].detach().float().mean(1) for points in places], 1
    )  # [N, P, 2]
    axis = torch.arange(mask.shape[-1], dtype=torch.float32, device=middles.device)
    across = ((axis - middles[..., :1]) / width[0]).square()[:, :, None]
    upright = ((axis - middles[..., 1:]) / width[1]).square()[..., None]
    kept = (-(across + upright) / 2).exp().amax(1, keepdim=True)  # [N, 1, S, S]
    return mask * (1 - share * kept)


def _discs(points: Tensor, axis: Tensor, radius: float, feather: float) -> Tensor:
    """Mask [n, 1, size, size] of points [n, K, 2]."""
    dx2 = (axis - points[..., :1]).square()  # [n, K, size]
    dy2 = (axis - points[..., 1:]).square()  # [n, K, size]
    nearest2 = (dy2[..., :, None] + dx2[..., None, :]).amin(dim=1, keepdim=True)  # [n, 1, size, size]
    if feather == 0:
        return (nearest2 <= radius**2).to(torch.float32)
    ramp = ((nearest2.sqrt() - (radius - feather)) / feather).clamp(0, 1)
    # cos(pi) is a hair off -1 in float32: the outside must be exactly 0
    return torch.where(ramp < 1, 0.5 * (1 + torch.cos(math.pi * ramp)), 0.0)


def _check(landmarks: Tensor, radius: float, feather: float) -> None:
    if landmarks.ndim != 3 or landmarks.shape[2] != 2 or landmarks.shape[1] == 0:
        raise ValueError(
            f"landmarks: expected shape [N, K, 2] (x, y in crop px), got {list(landmarks.shape)}; "
            "add a batch axis with landmarks[None] for one face."
        )
    if not torch.isfinite(landmarks).all():
        raise ValueError("landmarks: expected finite numbers, got nan or inf; check the landmark model.")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius: expected a number of crop px above 0, got {radius}.")
    if not 0 <= feather <= radius:
        raise ValueError(
            f"feather: expected 0..radius ({radius}) crop px, got {feather}; the ramp lies inside the disc."
        )
