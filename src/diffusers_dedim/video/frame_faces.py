"""What happened to each face of a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusers_dedim.faces.find import TOO_SMALL
from diffusers_dedim.pipeline.doubts import HIDDEN
from diffusers_dedim.pipeline.output import Treatment
from diffusers_dedim.pipeline.rescue import ABOVE
from diffusers_dedim.video.tracks import PlacedFace


@dataclass(frozen=True)
class FrameFace:
    """What happened to a face in a frame.

    Attributes:
        person: whose face, from 0.
        box: x0, y0, x1, y1 in px of the frame.
        similarity: cosine in [-1, 1] of the result (8 bit) with the frame's own original or with the person's mean,
            whichever is more alike, by the recogniser that guided; nan where the face is covered or left.
        rounds: rounds run for this frame; 0 where the person's change was carried on.
        unet_calls: images the denoiser was called on.
        treatment: see `Treatment`.
        reached_threshold: whether the face ended below the threshold; False for what is covered or left.
        reason: why the face was not simply changed, in a few words; empty where it was.
    """

    person: int
    box: tuple[float, float, float, float]
    similarity: float
    rounds: int
    unet_calls: int
    treatment: Treatment
    reached_threshold: bool
    reason: str = ""

    @property
    def is_protected(self) -> bool:
        """Whether the face ended below the threshold, or is covered."""
        return self.reached_threshold or self.treatment in ("blurred", "pixelated")


def treatment_of(word: str) -> Treatment:
    """What "blur", "pixelate" or another word of the user's does to a face.

    Example:
        >>> treatment_of("blur"), treatment_of("leave-out")
        ('blurred', 'left')
    """
    return "blurred" if word == "blur" else "pixelated" if word == "pixelate" else "left"


def record(
    placed: PlacedFace,
    treatment: Treatment,
    rounds: int = 0,
    unet_calls: int = 0,
    probability: float = math.nan,
    threshold: float = 0.0,
) -> FrameFace:
    """Say what happened to a face.

    Args:
        placed: the face.
        treatment: what was done with it.
        rounds, unet_calls: spent on it in this frame.
        probability: match probability of the result; nan where it is not changed.
        threshold: h.
    """
    reached = probability < threshold
    return FrameFace(
        person=placed.person.number,
        box=placed.aligned.face.box,
        similarity=2 * probability - 1,
        rounds=rounds,
        unet_calls=unet_calls,
        treatment=treatment,
        reached_threshold=reached,
        reason="" if reached else _reason(placed),
    )


def _reason(placed: PlacedFace) -> str:
    """Why a face was not changed, or not below h."""
    if placed.person.small:
        return TOO_SMALL
    return placed.aligned.face.reason or (HIDDEN if placed.person.hidden else ABOVE)
