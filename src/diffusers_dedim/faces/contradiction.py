"""Tell whether what was found of a face fits together: points that contradict one another are those of no face."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusers_dedim.faces.types import AlignedFace
from diffusers_dedim.models.landmarks import OUTER_EYE_CORNERS, mirror_landmarks

# Of the 51: left and right eye, tip of the nose, corners of the mouth.
_EYES, _NOSE, _MOUTH = (slice(19, 25), slice(25, 31)), 13, (31, 37)
# In distances of the outer eye corners. `python -m benchmarks.turned` measures how many good faces exceed them.
MAX_POINT_ERROR, MAX_MIRROR_ERROR = 0.25, 0.08
# A detector that is not sure either may contradict less.
UNSURE, MAX_UNSURE_POINT_ERROR = 0.99, 0.12
REASON = "the points found in it contradict one another"


def contradictions(aligned: Sequence[AlignedFace], landmarks: Tensor, mirrored: Tensor) -> list[str]:
    """Say for each face why what was found of it is not to be believed.

    Three answers must agree: the detector's five points, the 51 landmarks, and the 51 landmarks of the mirrored crop.
    They do not where upright points lie in a face that lies on its side, or where there is no face.

    Args:
        aligned: N faces.
        landmarks: ``[N, 51, 2]`` of their crops, crop px.
        mirrored: ``[N, 51, 2]`` of the mirrored crops, px of those.

    Returns:
        A reason in a few words for each face; empty where all agree.

    Raises:
        ValueError: the shapes are others.

    Example:
        >>> contradictions([], torch.zeros(0, 51, 2), torch.zeros(0, 51, 2))
        []
    """
    if landmarks.shape != (len(aligned), 51, 2) or mirrored.shape != landmarks.shape:
        raise ValueError(
            f"landmarks, mirrored: expected [{len(aligned)}, 51, 2] each, got {list(landmarks.shape)} and "
            f"{list(mirrored.shape)}."
        )
    points, mirrors = point_errors(aligned, landmarks).tolist(), mirror_errors(landmarks, mirrored).tolist()
    return [
        REASON if _contradicts(face.face.confidence, point, mirror) else ""
        for face, point, mirror in zip(aligned, points, mirrors, strict=True)
    ]


def point_errors(aligned: Sequence[AlignedFace], landmarks: Tensor) -> Tensor:
    """Mean distance of the detector's five points from the same places by the landmarks, ``[N]``.

    Args:
        aligned: N faces.
        landmarks: ``[N, 51, 2]``, crop px.

    Returns:
        In distances of the outer eye corners.
    """
    if not len(aligned):
        return torch.zeros(0)
    five = [face.face.landmarks @ face.to_crop[:, :2].T + face.to_crop[:, 2] for face in aligned]
    theirs = torch.from_numpy(np.stack(five)).float()
    ours = landmarks.detach().float().cpu()
    eyes = [ours[:, eye].mean(1) for eye in _EYES]
    places = torch.stack([*eyes, ours[:, _NOSE], *(ours[:, corner] for corner in _MOUTH)], 1)
    errors: Tensor = (places - theirs).norm(dim=2).mean(1) / _unit(ours)
    return errors


def mirror_errors(landmarks: Tensor, mirrored: Tensor) -> Tensor:
    """Mean distance of landmarks ``[N, 51, 2]`` from those of the mirrored crops, mirrored back, ``[N]``.

    Returns:
        In distances of the outer eye corners.
    """
    ours, back = landmarks.detach().float().cpu(), mirror_landmarks(mirrored.detach().float().cpu())
    errors: Tensor = (ours - back).norm(dim=2).mean(1) / _unit(ours)
    return errors


def _unit(landmarks: Tensor) -> Tensor:
    left, right = (landmarks[:, corner] for corner in OUTER_EYE_CORNERS)
    distance: Tensor = (left - right).norm(dim=1).clamp_min(1e-3)
    return distance


def _contradicts(confidence: float, point: float, mirror: float) -> bool:
    """Nan contradicts too."""
    limit = MAX_POINT_ERROR if confidence >= UNSURE else MAX_UNSURE_POINT_ERROR
    return not (point <= limit and mirror <= MAX_MIRROR_ERROR)
