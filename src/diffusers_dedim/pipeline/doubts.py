"""A second look at a face before it is changed: do its points agree, and what of it is visible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_dedim.faces import AlignedFace, contradictions, landmark_mask, visible_gate, visible_share
from diffusers_dedim.faces.visible import MIN_VISIBLE
from diffusers_dedim.pipeline.device import in_parts

HIDDEN = "too little of it is visible"


@dataclass(frozen=True, eq=False)
class SecondLook:
    """Look at aligned faces once more.

    Attributes:
        landmarker: crops ``[N, 3, 112, 112]`` in [-1, 1] -> 51 landmarks ``[N, 51, 2]``, crop px.
        visibility: such crops -> the probability ``[N, 1, 112, 112]`` that a pixel shows the uncovered face; None
            takes all for visible.
        make_mask: landmarks -> mask ``[N, 1, 112, 112]`` in [0, 1]: of it enough must be visible.
        batch_size: crops that a network gets at once, fewer where memory does not suffice.
    """

    landmarker: Callable[[Tensor], Tensor]
    visibility: Callable[[Tensor], Tensor] | None = None
    make_mask: Callable[[Tensor], Tensor] = landmark_mask
    batch_size: int = 16

    @torch.no_grad()
    def __call__(
        self, aligned: Sequence[AlignedFace], crops: Tensor, landmarks: Tensor
    ) -> tuple[list[str], Tensor]:
        """Doubt what contradicts itself, and find what is covered.

        Args:
            aligned: N faces.
            crops: of them, where the networks are.
            landmarks: ``[N, 51, 2]`` of the crops.

        Returns:
            For each face why it must not be changed, in a few words, empty where it may; and the factor
            ``[N, 1, 112, 112]`` of its mask that leaves out what is not visible.
        """
        mirrored = in_parts(self.landmarker, crops.flip(3), self.batch_size)
        reasons = contradictions(aligned, landmarks, mirrored)
        if self.visibility is None:
            return reasons, torch.ones_like(crops[:, :1])
        seen = in_parts(self.visibility, crops, self.batch_size)
        mask = self.make_mask(landmarks)
        gate = visible_gate(seen, landmarks, mask).to(crops)
        hidden = hidden_reasons(mask, gate)
        return [reason or other for reason, other in zip(reasons, hidden, strict=True)], gate


def hidden_reasons(mask: Tensor, gate: Tensor) -> list[str]:
    """Say of which faces too little is visible to be changed.

    Args:
        mask: ``[N, 1, 112, 112]`` in [0, 1].
        gate: its factor, 0 where a pixel is covered or beside the face.

    Returns:
        A reason in a few words for each face; empty where enough is visible.

    Example:
        >>> mask, gate = torch.ones(2, 1, 112, 112), torch.ones(2, 1, 112, 112)
        >>> gate[1, :, 30:] = 0
        >>> hidden_reasons(mask, gate)
        ['', 'too little of it is visible']
    """
    return [HIDDEN if share < MIN_VISIBLE else "" for share in visible_share(mask, gate).tolist()]
