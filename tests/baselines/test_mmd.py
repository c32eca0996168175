from __future__ import annotations

import math

import pytest
import torch

from diffusers_dedim.baselines.tip_im import BANDWIDTHS, maximum_mean_discrepancy


def plain_mmd(x: list[list[float]], y: list[list[float]], bandwidths: tuple[float, ...]) -> float:
    """The definition, one pair at a time."""

    def mean_kernel(a: list[list[float]], b: list[list[float]]) -> float:
        total = 0.0
        for p in a:
            for q in b:
                squared = sum((s - t) ** 2 for s, t in zip(p, q, strict=True))
                total += sum(math.exp(-squared / (2 * v)) for v in bandwidths)
        return total / (len(a) * len(b))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize(("n", "m", "scale"), [(1, 1, 1.0), (3, 2, 0.1), (2, 4, 30.0)])
def test_equals_the_definition(n: int, m: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, n, 5, generator=generator, dtype=torch.float64) * scale
    y = torch.randn(2, m, 5, generator=generator, dtype=torch.float64) * scale
    for ours, a, b in zip(maximum_mean_discrepancy(x, y), x.tolist(), y.tolist(), strict=True):
        # float64, sums of at most 16 * 19 terms of size 1
        assert float(ours) == pytest.approx(plain_mmd(a, b, BANDWIDTHS), abs=1e-12)


def test_equal_sets_have_none_and_the_gradient_there_is_0() -> None:
    x = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    value = maximum_mean_discrepancy(x, x.detach())
    (gradient,) = torch.autograd.grad(value.sum(), x)
    # float64 rounding of sums of 9 * 19 ones
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-13, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_some_kernel_sees_every_size_of_change() -> None:
    original = torch.zeros(1, 1, 37_632, dtype=torch.float64)
    values = [
        float(maximum_mean_discrepancy(original + change, original)) for change in (1e-4, 0.1, 1.0, 12.0)
    ]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] < 2 * len(BANDWIDTHS)
