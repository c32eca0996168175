from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim.metrics.grouping import connected_groups, shares_together, strangers_together

# a1 - a2 match, a2 - b1 match; a1 and b1 do not; c matches nobody
SCORES = np.array([[1, 0.8, 0.1, 0], [0.8, 1, 0.5, 0], [0.1, 0.5, 1, 0], [0, 0, 0, 1]])
PERSONS = ["a", "a", "b", "c"]


def test_a_chain_of_matches_is_one_group() -> None:
    assert connected_groups(SCORES, 0.5).tolist() == [
        0,
        0,
        0,
        1,
    ]  # a match at the threshold, not only above it
    assert connected_groups(SCORES, 0.51).tolist() == [0, 0, 1, 2]
    assert connected_groups(SCORES, 0.9).tolist() == [0, 1, 2, 3]
    assert connected_groups(SCORES, -1).tolist() == [0, 0, 0, 0]


def test_a_pair_that_cannot_be_compared_does_not_match() -> None:
    scores = np.where(SCORES == 0.8, np.nan, np.where(SCORES == 0.5, -np.inf, SCORES))
    assert connected_groups(scores, 0.5).tolist() == [0, 1, 2, 3]


def test_shares_by_hand() -> None:
    np.testing.assert_array_equal(shares_together([0, 0, 0, 1], PERSONS), [1, 1, np.nan, np.nan])
    np.testing.assert_array_equal(shares_together([0, 0, 1, 1, 2], ["a"] * 4 + ["b"]), [1 / 3] * 4 + [np.nan])
    assert strangers_together([0, 0, 0, 1], PERSONS) == pytest.approx(2 / 5)  # a1 b1, a2 b1 of five pairs
    assert np.isnan(strangers_together([0, 1], ["a", "a"]))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"similarities: expected a square \[N, N\], got \[1, 4\]"):
        connected_groups(SCORES[:1], 0.5)
    with pytest.raises(ValueError, match=r"persons: expected one for each of \[3\] groups, got 4"):
        shares_together([0, 0, 1], PERSONS)
