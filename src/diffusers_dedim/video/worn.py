"""A face of a frame that wears its person's change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.faces import align_face, landmark_mask, paste_back, visible_share
from diffusers_dedim.video.people import Person
from diffusers_dedim.video.tracks import PlacedFace

Pixels = NDArray[np.uint8]

STEPS = (0.25, 0.5, 0.75, 1.0)
"""Of the way to the target, where the frame needs more."""
# Frames for which a half hidden face is covered where what it wears is not enough, and not pushed.
_PASSES = 24


@dataclass(eq=False)
class WornFace:
    """A face that is changed, on its way through the tries for a frame.

    Attributes:
        placed: the face in its frame.
        x_org: its crop as it was, ``[3, 112, 112]`` in [-1, 1].
        mask: what may be changed, ``[1, 112, 112]`` in [0, 1].
        crop: as it is now.
        probability: match probability of that in the frame.
        rounds, unet_calls: spent on it in this frame.
        steps: shares of the way to the target that may still be tried.
        tries: of the sampler, in this frame.
        best: probability, crop, and embedding in the frame of the best one so far.
    """

    placed: PlacedFace
    x_org: Tensor
    mask: Tensor
    crop: Tensor
    probability: float = 1.0
    rounds: int = 0
    unet_calls: int = 0
    steps: tuple[float, ...] = STEPS
    tries: int = 0
    best: tuple[float, Tensor, Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.best = math.inf, self.crop, None

    @property
    def person(self) -> Person:
        """Whose face it is."""
        return self.placed.person

    @property
    def is_passing(self) -> bool:
        """Whether it has been half hidden for some frames only, and is known whole."""
        return 0 < self.person.half_hidden <= _PASSES and self.person.whole is not None

    @property
    def has_steps(self) -> bool:
        """Whether steps may be tried, and the person's change is not at its target yet."""
        change, target = self.person.change, self.person.target
        if not self.steps or change is None or target is None:
            return False
        return float((target - change).abs().max()) > 1 / 255


def note_hidden(person: Person, half_hidden: bool) -> None:
    """Note whether much of a face is hidden; who comes out goes back to the change of the whole face.

    The little that is visible of a half hidden face is pushed hard, if at all, and what that leaves would be seen
    on the whole one. The change moves back slowly; who was never seen whole begins anew.
    """
    if person.half_hidden and not half_hidden:
        person.target, person.gate = person.whole or (None, None)
        person.change = None if person.whole is None else person.change
        person.settled_for = person.tired_for = 0
    person.half_hidden = person.half_hidden + 1 if half_hidden else 0


def wear(x_org: Tensor, mask: Tensor, person: Person, change: Tensor | None = None) -> Tensor:
    """The crop with a change on, the person's own where none is given; where the mask is smaller now, less of it."""
    worn = person.change if change is None else change
    if worn is None or person.gate is None:
        return x_org
    share = torch.where(person.gate > 0, mask / person.gate.clamp_min(1e-6), torch.zeros_like(mask))
    return (x_org + share.clamp(0, 1) * worn).clamp(-1, 1)


def paste(pixels: Pixels, worn: Sequence[WornFace]) -> tuple[Pixels, list[Tensor]]:
    """The frame with these faces, and their crops cut out of it again."""
    for each in worn:
        support = (each.mask > 0).float().cpu()
        pixels = paste_back(pixels, each.placed.aligned, each.crop.cpu(), support)
    return pixels, [align_face(pixels, each.placed.aligned.face).crop for each in worn]


def visible_part(placed: PlacedFace) -> float:
    """Share of a face that is visible, 0 to 1."""
    if placed.gate is None:
        return 1.0
    return float(visible_share(landmark_mask(placed.landmarks[None]), placed.gate[None])[0])
