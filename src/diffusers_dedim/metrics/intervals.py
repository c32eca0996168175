"""Bootstrap intervals over people: how far a rate could move had other people been photographed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusers_dedim.extras import import_extra

CONFIDENCE = 0.95
_RESAMPLES = 2000
_SEED = 0  # of the resampling alone: the same scores give the same interval


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: the mean; None where there was nothing to average.
        low: lower end of the 95 % interval; None with fewer than two people.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


def bootstrap_mean(values: ArrayLike, persons: Sequence[str]) -> Estimate:
    """Mean with the percentile bootstrap interval over identities.

    People are drawn with replacement, each with all of their values: comparisons of one person are not
    independent. A rate of exactly 0 or 1 has an interval of no width, which is the method's blind spot: by the
    rule of three, 0 of n leaves up to 3 / n.

    Args:
        values: ``[N]``, for a rate 0 or 1; values that are not finite are left out.
        persons: identity of each value.

    Returns:
        Mean and 95 % interval, 2,000 resamples.

    Source:
        Efron and Tibshirani 1993, chapter 13; ISO/IEC 19795-1 on subject-level resampling.

    Raises:
        ImportError: scipy is missing.
        ValueError: the two lists are not of one length.

    Example:
        >>> bootstrap_mean([1.0, 1.0, 1.0], ["a", "b", "b"])
        Estimate(value=1.0, low=1.0, high=1.0)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(persons),):
        raise ValueError(
            f"persons: expected one for each of {list(numbers.shape)} values, got {len(persons)}."
        )
    finite = np.isfinite(numbers)
    if not finite.any():
        return Estimate(None)
    _, index = np.unique(np.asarray(persons)[finite], return_inverse=True)
    sums = np.bincount(index, weights=numbers[finite]).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(mean)
    low, high = _interval(sums, counts)
    return Estimate(mean, low, high) if math.isfinite(low) else Estimate(mean)


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    stats = import_extra("scipy.stats", "bootstrap_mean")
    result = stats.bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=250,  # bounds memory: 250 x people numbers at a time
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
