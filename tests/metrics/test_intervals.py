from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from diffusers_dedim.metrics.intervals import Estimate, bootstrap_mean


def test_interval_is_near_the_normal_one_where_that_holds() -> None:
    found = np.arange(400) % 4 == 0
    estimate = bootstrap_mean(found, [str(index) for index in range(400)])
    half = norm.ppf(0.975) * np.sqrt(0.25 * 0.75 / 400)
    assert estimate.value == 0.25
    # 0.006: percentiles of 2,000 resamples, themselves in steps of 1 / 400
    assert estimate.low == pytest.approx(0.25 - half, abs=0.006)
    assert estimate.high == pytest.approx(0.25 + half, abs=0.006)


def test_people_are_drawn_and_not_their_comparisons() -> None:
    """Forty people of ten equal comparisons each say as much as forty comparisons, not as four hundred."""
    persons = [str(index // 10) for index in range(400)]
    values = [float(int(person) % 2) for person in persons]
    by_person = bootstrap_mean(values, persons)
    alone = bootstrap_mean(values, [str(index) for index in range(400)])
    assert by_person.value == alone.value == 0.5
    width, too_narrow = by_person.high - by_person.low, alone.high - alone.low
    assert width == pytest.approx(too_narrow * np.sqrt(10), rel=0.15)  # 0.15: resampling noise of both


def test_same_scores_same_interval_and_nothing_to_average() -> None:
    values, persons = [0.0, 1.0, 1.0], ["a", "b", "c"]
    assert bootstrap_mean(values, persons) == bootstrap_mean(values, persons)
    assert bootstrap_mean([np.inf, 2.0, 4.0], persons).value == 3.0
    assert bootstrap_mean([1.0, 0.0], ["a", "a"]) == Estimate(0.5)
    assert bootstrap_mean([np.nan], ["a"]) == Estimate(None)
    with pytest.raises(ValueError, match=r"persons: expected one for each of \[2\] values, got 1"):
        bootstrap_mean([1, 2], ["a"])
