"""Keep the mask to what is visible of a face: covers and background stay as they are, to the bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from diffusers_dedim.faces.mask import landmark_mask
from diffusers_dedim.models.landmarks import NUM_LANDMARKS

# A cover begins where the network is this sure of one, over 3 x 3 px at least, and reaches as far as it finds one more
# likely than not. A doubt without such a core is none: on plain faces the mask stays what it is.
_SURE, _LIKELY = 0.25, 0.5
_CORE = 3  # px
_REACH = 40  # px a cover goes on from its core at most; a third of the crop
# One that lies over eyes, nose or mouth, and is no speck, is one for sure: it reaches further where the network has any
# doubt, for its edges are drawn too narrow, a hand's most of all. Hair and background at a face's rim are no such core.
_INSIDE_CORE, _INSIDE, _DOUBTED = 7, 3.0, 0.9  # px, px around the landmarks, probability
_FURTHER = (8, 3)  # px; the second where the first leaves too little of a face
MIN_VISIBLE = 0.4
"""Share of a mask that must be visible. What is left of a smaller one cannot carry a face away from itself without
being torn (`python -m benchmarks.covers`)."""
HALF_HIDDEN = 0.75
"""Share of a mask that is visible below which a face that cannot be brought below the threshold counts as covered."""
# The network's edges are right to a pixel or two, and a changed pixel of the crop reaches two further in the photo.
_MARGIN = 2  # px
_BROWS = 10  # of the 51 the first are the brows'


def visible_gate(probability: Tensor, landmarks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Turn the probability that a pixel shows the face into a factor of its mask.

    A cover over eyes, nose or mouth is drawn 8 px wider than the network is sure of, as far as it has a doubt, and 3 px
    where 8 would leave less than `MIN_VISIBLE` of the mask.

    Args:
        probability: ``[N, 1, S, S]`` in [0, 1], of `VisibilityNet`.
        landmarks: ``[N, 51, 2]``, crop px.
        mask: ``[N, 1, S, S]`` in [0, 1], what is to be changed of each face; None draws all covers 8 px wider.

    Returns:
        ``[N, 1, S, S]`` float32: exactly 0 on what covers the face or lies beside it, and 2 px around; exactly 1
        where nothing of the kind is within 4 px; a ramp in between.

    Raises:
        ValueError: a shape is another, or a probability is outside [0, 1] or nan.

    Example:
        >>> import torch
        >>> seen, points = torch.ones(1, 1, 112, 112), torch.full((1, 51, 2), 20.0)
        >>> seen[..., 60:] = 0
        >>> visible_gate(seen, points)[0, 0, 50, [50, 56, 58, 60]]
        tensor([1.0000, 0.8000, 0.0000, 0.0000])
    """
    if probability.ndim != 4 or probability.shape[1] != 1:
        raise ValueError(f"probability: expected shape [N, 1, S, S], got {list(probability.shape)}.")
    if landmarks.shape != (len(probability), NUM_LANDMARKS, 2):
        expected = [len(probability), NUM_LANDMARKS, 2]
        raise ValueError(f"landmarks: expected shape {expected}, got {list(landmarks.shape)}.")
    if not ((probability >= 0) & (probability <= 1)).all():  # nan fails too
        raise ValueError("probability: expected values in [0, 1], got values outside or nan.")
    probability, landmarks = probability.detach().float(), landmarks.detach().float()
    wide, narrow = _FURTHER
    gate = _gate(probability, landmarks, wide)
    if mask is None:
        return gate
    scant = visible_share(mask, gate.to(mask)) < MIN_VISIBLE
    if scant.any():
        gate[scant] = _gate(probability[scant], landmarks[scant], narrow)
    return gate


def visible_share(mask: Tensor, gate: Tensor) -> Tensor:
    """How much of each mask is left: ``[N]`` in [0, 1]; 0 for an empty mask.

    Args:
        mask: ``[N, 1, H, W]`` in [0, 1].
        gate: its factor, the same shape.

    Example:
        >>> import torch
        >>> gate = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
        >>> visible_share(torch.ones(1, 1, 1, 2), gate).tolist()
        [0.5]
    """
    whole = mask.flatten(1).sum(1)
    share: Tensor = (mask * gate).flatten(1).sum(1) / whole.clamp_min(1e-6)
    return share


def _gate(probability: Tensor, landmarks: Tensor, further: int) -> Tensor:
    hidden = _hidden(probability, landmarks, further)
    clear = 1 - _widen(hidden, _MARGIN)
    side = 2 * _MARGIN + 1
    return clear * functional.avg_pool2d(clear, side, 1, _MARGIN, count_include_pad=False)


def _hidden(probability: Tensor, landmarks: Tensor, further: int) -> Tensor:
    """What is hidden, ``[N, 1, S, S]`` 0 or 1: all that is likely and hangs together with what is sure."""
    sure, likely = (probability < _SURE).float(), probability < _LIKELY
    inside = landmark_mask(landmarks[:, _BROWS:], _INSIDE, size=probability.shape[-1])
    cover = _grow(_opened(sure, _INSIDE_CORE) * inside, likely)
    cover = _grow(cover, probability < _DOUBTED, further)
    return torch.maximum(cover, _grow(_opened(sure, _CORE), likely))


def _opened(marked: Tensor, width: int) -> Tensor:
    """Without what is narrower than so many px."""
    return _widen(-_widen(-marked, width // 2), width // 2)


def _grow(core: Tensor, allowed: Tensor, reach: int = _REACH) -> Tensor:
    for _ in range(reach):
        last, core = core, _widen(core, 1) * allowed
        if torch.equal(core, last):
            break
    return core


def _widen(marked: Tensor, reach: int) -> Tensor:
    return functional.max_pool2d(marked, 2 * reach + 1, 1, reach)
