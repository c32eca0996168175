"""Maximum mean discrepancy with gaussian kernels: TIP-IM's measure of how natural an image still is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# Variances in squared grey levels: from far below one level in one pixel to 12 levels in each of 37,632 (5.4e6).
BANDWIDTHS = (
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 1e2, 1e3, 1e4, 1e5, 1e6,
)  # fmt: skip


def maximum_mean_discrepancy(x: Tensor, y: Tensor, bandwidths: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Squared MMD between two sets of images, summed over the kernels; 0 where the sets are equal.

    With k(a, b) = sum over v of exp(-|a - b|^2 / (2 v)) it is mean k(x, x') + mean k(y, y') - 2 mean k(x, y).

    Args:
        x: ``[B, N, d]``: B independent sets of N images of d values.
        y: ``[B, M, d]``.
        bandwidths: variances v of the kernels, in squared units of x and y.

    Returns:
        ``[B]``, 0 or more.

    Source:
        Gretton et al. 2012 (the biased estimate); kernels as in the published code of Yang et al. 2021.

    Example:
        >>> import torch
        >>> maximum_mean_discrepancy(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
        tensor([0.])
    """
    return (
        _kernel(x, x, bandwidths).mean((1, 2))
        + _kernel(y, y, bandwidths).mean((1, 2))
        - 2 * _kernel(x, y, bandwidths).mean((1, 2))
    )


def _kernel(a: Tensor, b: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Sum of gaussian kernels ``[B, N, M]``."""
    squared = (a[:, :, None] - b[:, None]).square().sum(-1)  # [B, N, M]
    variances = squared.new_tensor(bandwidths)
    return (-squared[..., None] / (2 * variances)).exp().sum(-1)
