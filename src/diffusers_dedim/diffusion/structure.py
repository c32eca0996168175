"""What a push is spared: what would lower the structural similarity, and what would only add to the change there is."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# The window and the constants of the index as it is defined, for values from 0 to 2.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def structure_gradient(changed: Tensor, original: Tensor) -> Tensor:
    """Where, and by how much, a lighter pixel would make a picture more like its original.

    Args:
        changed: ``[N, C, H, W]`` in [-1, 1], at least 6 px a side.
        original: the same shape.

    Returns:
        ``[N, 1, H, W]`` float32: gradient of the structural similarity of the grey values, summed over all pixels.

    Source:
        The index: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity; its
        gradient in closed form: Wang and Simoncelli 2008, Maximum Differentiation Competition.

    Example:
        >>> original = torch.zeros(1, 3, 32, 32)
        >>> structure_gradient(original, original).abs().max() < 1e-5
        tensor(True)
    """
    x, y = (1 + images.detach().float().mean(1, keepdim=True) for images in (changed, original))
    high, wide = (_window(side, x.device) for side in x.shape[-2:])
    mean_x, mean_y, square_x, square_y, product = (
        high @ values @ wide.mT for values in (x, y, x.square(), y.square(), x * y)
    )
    light_above, light_below = 2 * mean_x * mean_y + _C1, mean_x.square() + mean_y.square() + _C1
    form_above = 2 * (product - mean_x * mean_y) + _C2
    form_below = square_x - mean_x.square() + square_y - mean_y.square() + _C2
    index = light_above * form_above / (light_below * form_below)
    by_mean = mean_y * (form_above - light_above) - mean_x * index * (form_below - light_below)
    by_mean = by_mean / (light_below * form_below)
    back = [
        high.mT @ values @ wide for values in (light_above / (light_below * form_below), index / form_below)
    ]
    return 2 * (back[0] * y - back[1] * x + high.mT @ by_mean @ wide)


def spare_structure(push: Tensor, changed: Tensor, original: Tensor, share: float, mask: Tensor) -> Tensor:
    """Take out of a push what lowers the structural similarity with the original.

    Args:
        push: ``[N, C, H, W]``, the same in each channel; it is going to be subtracted from ``changed``.
        changed: ``[N, 3, H, W]`` in [-1, 1].
        original: the same shape.
        share: in [0, 1], how much of it is taken out. With 1 a step changes the similarity to first order no more; a
            push that raises it anyhow stays as it is.
        mask: ``[N, 1, H, W]`` in [0, 1]: what lies outside does not count.

    Returns:
        The shape of ``push``.

    Example:
        >>> original, push = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
        >>> inside = torch.ones(1, 1, 32, 32)
        >>> torch.equal(spare_structure(push, original, original, 0.0, inside), push)
        True
    """
    if share == 0:
        return push
    return _without(push, mask * structure_gradient(changed, original), share)


def spread(push: Tensor, changed: Tensor, original: Tensor, share: float, mask: Tensor) -> Tensor:
    """Take out of a push what goes on with the change that is there, so that it goes where there is none yet.

    Args:
        push, changed, original, mask: as for `spare_structure`.
        share: in [0, 1], how much of it is taken out. With 1 a step changes the squared error to first order no more;
            a push that lowers it anyhow stays as it is.

    Returns:
        The shape of ``push``.

    Example:
        >>> original, push = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
        >>> spread(push, original - 0.1, original, 1.0, torch.ones(1, 1, 8, 8)).abs().max() < 1e-6
        tensor(True)
    """
    if share == 0:
        return push
    return _without(push, mask * (original - changed).float().mean(1, keepdim=True), share)


def _without(push: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Less a share of what of the push, when it is subtracted, goes against the gradient ``[N, 1, H, W]``."""
    gradient = gradient.to(push).expand_as(push)
    along = (push * gradient).flatten(1).sum(1).relu()
    length = gradient.square().flatten(1).sum(1)
    part = share * along / torch.where(length > 0, length, torch.ones_like(length))
    return push - part.reshape(-1, 1, 1, 1) * gradient


@lru_cache(maxsize=8)
def _window(side: int, device: torch.device) -> Tensor:
    """The Gaussian window at each place of a line as a matrix ``[side, side]``, mirrored at both ends.

    Two products with a matrix take a twentieth of the time of a convolution with so wide a kernel for one channel.
    """
    reach = _WINDOW // 2
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * _SIGMA**2))
    places = torch.arange(side)[:, None] + torch.arange(-reach, reach + 1)
    places = (side - 1) - ((side - 1) - places.abs()).abs()
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, places, (weights / weights.sum()).expand(side, -1).contiguous())
    return matrix.float().to(device)
