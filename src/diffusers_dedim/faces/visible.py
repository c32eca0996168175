"""Keep the mask to what is visible of a face: covers, background and hair stay as they are, to the bit."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

# A cover begins where the network is this sure of one, over 3 x 3 px at least, and reaches as far as it finds one more
# likely than not. A doubt without such a core is none: on plain faces the mask stays what it is.
_SURE, _LIKELY = 0.25, 0.5
_CORE = 3  # px
_REACH = 40  # px a cover goes on from its core at most; a third of the crop
# The network's edges are right to a pixel or two, and a changed pixel of the crop reaches two further in the photo.
_MARGIN = 2  # px


def visible_gate(probability: Tensor) -> Tensor:
    """Turn the probability that a pixel shows the face into a factor of its mask.

    Args:
        probability: ``[N, 1, H, W]`` in [0, 1], of `VisibilityNet`.

    Returns:
        ``[N, 1, H, W]`` float32: exactly 0 on what covers the face or lies beside it, and 2 px around; exactly 1
        where nothing of the kind is within 4 px; a ramp in between.

    Raises:
        ValueError: the shape is another, or a value is outside [0, 1] or nan.

    Example:
        >>> import torch
        >>> seen = torch.ones(1, 1, 112, 112)
        >>> seen[..., 60:] = 0
        >>> visible_gate(seen)[0, 0, 50, [50, 56, 58, 60]]
        tensor([1.0000, 0.8000, 0.0000, 0.0000])
    """
    if probability.ndim != 4 or probability.shape[1] != 1:
        raise ValueError(f"probability: expected shape [N, 1, H, W], got {list(probability.shape)}.")
    if not ((probability >= 0) & (probability <= 1)).all():  # nan fails too
        raise ValueError("probability: expected values in [0, 1], got values outside or nan.")
    probability = probability.detach().float()
    likely = (probability < _LIKELY).float()
    sure = (probability < _SURE).float()
    hidden = _widen(-functional.max_pool2d(-sure, _CORE, 1, _CORE // 2), _CORE // 2)
    for _ in range(_REACH):
        hidden = _widen(hidden, 1) * likely
    clear = 1 - _widen(hidden, _MARGIN)
    side = 2 * _MARGIN + 1
    return clear * functional.avg_pool2d(clear, side, 1, _MARGIN, count_include_pad=False)


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


def _widen(marked: Tensor, reach: int) -> Tensor:
    return functional.max_pool2d(marked, 2 * reach + 1, 1, reach)
