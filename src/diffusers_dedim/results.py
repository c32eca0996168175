"""What the pipeline returns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays has no single truth value
class FaceResult:
    """What happened to one face.

    Attributes:
        image_index: index of its photo in the call.
        box: x0, y0, x1, y1 in photo px.
        landmarks: ``[51, 2]`` float64, photo px.
        similarity_before: cosine of the face with itself by the pipeline's recogniser, 1 up to rounding.
        similarity: cosine in [-1, 1] of the returned photo's face (8 bit, same alignment) with the original, by the
            recogniser that guided; another one sees another number.
        probability: the same as the match probability of Eq. 4 in [0, 1], (cosine + 1) / 2.
        rounds: rounds that were run, 1..L.
        unet_calls: images the denoiser was called on, two a step with ``error_correction``.
        reached_threshold: whether the face ended below the threshold; False means that it is NOT protected as asked.
    """

    image_index: int
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    similarity_before: float
    similarity: float
    probability: float
    rounds: int
    unet_calls: int
    reached_threshold: bool


@dataclass
class DeDiMOutput(BaseOutput):  # type: ignore[misc]  # diffusers ships no types
    """Protected photos and the record of each face.

    Attributes:
        images: one per photo: PIL RGB images, uint8 arrays ``[H, W, 3]``, or tensors ``[3, H, W]`` in [-1, 1].
        faces: every face of every photo, photo by photo, from left to right.

    Example:
        >>> out = pipe(photo)  # doctest: +SKIP
        >>> all(face.reached_threshold for face in out.faces)  # doctest: +SKIP
        True
    """

    images: list[Any]
    faces: list[FaceResult]


def warn_unreached(faces: Sequence[FaceResult], threshold: float, stacklevel: int) -> None:
    """Say aloud which faces stayed above the threshold; ``stacklevel`` counts from here, as in `warnings.warn`."""
    missed = [face for face in faces if not face.reached_threshold]
    if missed:
        worst = max(face.probability for face in missed)
        warnings.warn(
            f"{len(missed)} of {len(faces)} faces stayed above the threshold {threshold:g} (highest match "
            f"probability {worst:.3f}): they are NOT protected as asked. Raise max_rounds, guidance_scale or "
            "threshold, or look at faces[i].reached_threshold.",
            stacklevel=stacklevel,
        )
