"""The 0..255 image that adversarial noise is bounded in."""

from __future__ import annotations

import torch
from torch import Tensor


def to_levels(crops: Tensor) -> Tensor:
    """Map [-1, 1] to grey levels 0..255, unrounded.

    Example:
        >>> to_levels(torch.tensor([-1.0, 1.0]))
        tensor([  0., 255.])
    """
    return (crops + 1) * 127.5


def from_levels(levels: Tensor) -> Tensor:
    """Map grey levels 0..255 to [-1, 1]."""
    return levels / 127.5 - 1


def epsilon_ball(levels: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Lowest and highest image within ``epsilon`` grey levels of the original that fits into 8 bits.

    Args:
        levels: the original in 0..255.
        epsilon: bound in the infinity norm, grey levels.

    Example:
        >>> epsilon_ball(torch.tensor([5.0, 250.0]), 12.0)
        (tensor([  0., 238.]), tensor([ 17., 255.]))
    """
    return (levels - epsilon).clamp_min(0), (levels + epsilon).clamp_max(255)


def check_attack(x_org: Tensor, generators: list[torch.Generator]) -> None:
    """Refuse crops of another shape or range, and a wrong number of generators.

    Args:
        x_org: should be float ``[N, 3, H, W]`` in [-1, 1].
        generators: should be N, one a face.

    Raises:
        ValueError: one of them is not; names the argument, what was expected and what came.

    Example:
        >>> check_attack(torch.zeros(1, 3, 8, 8), [torch.Generator()])
    """
    if x_org.ndim != 4 or x_org.shape[1] != 3 or not x_org.is_floating_point():
        raise ValueError(
            f"x_org: expected float crops [N, 3, H, W], got {x_org.dtype} {list(x_org.shape)}; align faces "
            "with diffusers_dedim.faces.align_face first."
        )
    if not ((x_org >= -1) & (x_org <= 1)).all():  # also refuses nan
        raise ValueError(
            f"x_org: expected values in [-1, 1], got {float(x_org.min()):.3g} to {float(x_org.max()):.3g}; "
            "divide 0..255 by 127.5 and take 1 away."
        )
    if len(generators) != len(x_org):
        raise ValueError(f"generators: expected {len(x_org)}, one a face, got {len(generators)}.")


def check_epsilon(epsilon: float) -> None:
    """Refuse a bound that 8 bits cannot hold.

    Raises:
        ValueError: it is not above 0 and at most 255.
    """
    if not 0 < epsilon <= 255:
        raise ValueError(f"epsilon: expected grey levels above 0 and up to 255, got {epsilon}.")
