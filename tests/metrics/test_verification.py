from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim.metrics.verification import (
    det_curve,
    match_rate,
    tar_at_fmr,
    ten_fold_accuracy,
    threshold_at_fmr,
)


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray, np.ndarray]:
    """1,000 overlapping pairs on a coarse grid, so that many scores are equal."""
    rng = np.random.default_rng(0)
    same = rng.random(1000) < 0.5
    return np.round(rng.normal(same * 1.5, 1), 1), same


def test_accuracy_by_hand() -> None:
    # Nine folds of (0.9 same, 0.1 different) put the threshold at 0.5; the last fold has one of two on the wrong
    # side of it, and as it is left out of its own threshold, nothing saves it.
    similarities = [0.9, 0.1] * 9 + [0.4, 0.2]
    accuracy = ten_fold_accuracy(similarities, [1, 0] * 10)
    assert accuracy.mean == pytest.approx(0.95)
    assert accuracy.std == pytest.approx(np.std([1] * 9 + [0.5], ddof=1))


def test_the_folds_are_consecutive_pairs() -> None:
    # A fold whose scores lie elsewhere is wrong as a whole; were the folds interleaved, each would lose a little.
    shifted = np.array([0.9, 0.7] * 90 + [0.3, 0.1] * 10)
    accuracy = ten_fold_accuracy(shifted, [True, False] * 100)
    assert accuracy.mean == pytest.approx(0.95)
    assert accuracy.std > 0.1


def test_a_comparison_matches_at_the_threshold() -> None:
    assert ten_fold_accuracy([0.0, -1e-300] * 10, [True, False] * 10).mean == 1  # no float64 lies far between
    one = np.nextafter(1, 2)
    assert ten_fold_accuracy([one, 1.0] * 10, [True, False] * 10).mean == 1  # and here none at all


def test_accuracy_of_a_brute_force_search(scores: tuple[np.ndarray, np.ndarray]) -> None:
    similarities, same = scores
    expected = []
    for fold in np.split(np.arange(1000), 10):
        others = np.setdiff1d(np.arange(1000), fold)
        grid = np.arange(8, -8, -0.05)[::2] + 0.025  # between the scores, the highest first
        right = [((similarities[others] >= t) == same[others]).sum() for t in grid]
        expected.append(((similarities[fold] >= grid[np.argmax(right)]) == same[fold]).mean())
    accuracy = ten_fold_accuracy(similarities, same)
    assert accuracy.mean == pytest.approx(np.mean(expected))
    assert accuracy.std == pytest.approx(np.std(expected, ddof=1))


@pytest.mark.parametrize("fmr", [0.002, 0.01, 0.1, 0.999])
def test_tar_agrees_with_scikit_learn(scores: tuple[np.ndarray, np.ndarray], fmr: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    similarities, same = scores
    false, true, _ = metrics.roc_curve(same, similarities, drop_intermediate=False)
    expected = true[false <= fmr].max()
    assert tar_at_fmr(similarities[same], similarities[~same], fmr) == pytest.approx(expected)


def test_the_threshold_lets_no_more_impostors_in_than_asked() -> None:
    impostor = np.arange(3000) / 3000
    threshold = threshold_at_fmr(impostor, 1e-3)
    assert (impostor >= threshold).sum() == 3  # 0.001 * 3000 in floats must not become 2
    tied = np.where(impostor > 0.998, 1.0, impostor)  # five scores share the top: none of them may match
    assert (tied >= threshold_at_fmr(tied, 1e-3)).sum() == 0
    assert tar_at_fmr([1.0, 2.0], tied, 1e-3) == 0.5


def test_too_few_impostors_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"at least 1 / fmr = 10000 scores .* of 0\.0001, got 3000; give more"
    ):
        tar_at_fmr([0.5], np.zeros(3000), 1e-4)


@pytest.mark.parametrize("fmr", [0, 1, -0.1, np.nan])
def test_a_rate_out_of_range_is_named(fmr: float) -> None:
    with pytest.raises(ValueError, match="fmr: expected a rate strictly between 0 and 1"):
        threshold_at_fmr([0.1, 0.2], fmr)


@pytest.mark.parametrize(
    ("similarities", "same", "message"),
    [
        ([0.1] * 20, [1] * 19, "same: expected one label for each of 20 pairs, got 19"),
        ([0.1] * 4, [1, 0] * 2, "expected at least 10 pairs, one a fold, got 4"),
        ([0.1] * 20, [1] * 20, "expected pairs of one person and pairs of two, all are True"),
        ([0.1] * 19 + [np.nan], [1, 0] * 10, "expected finite similarities, got 1 nan or inf"),
        ([], [], r"got shape \[0\]"),
        ([0.1] * 20, [1, 2] * 10, "same: expected a list of bool"),
    ],
)
def test_wrong_pairs_are_named(similarities: list[float], same: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ten_fold_accuracy(similarities, same)


def test_scores_that_are_not_finite_are_refused_for_rates_too() -> None:
    with pytest.raises(ValueError, match="genuine: expected finite"):
        tar_at_fmr([np.nan], [0.1, 0.2], 0.5)
    with pytest.raises(ValueError, match="impostor: expected finite"):
        tar_at_fmr([0.1], [np.inf, 0.2], 0.5)


def test_rates_agree_with_pyeer(scores: tuple[np.ndarray, np.ndarray]) -> None:
    """pyeer 0.5.6, an independent implementation by others; not needed for anything else."""
    theirs = pytest.importorskip("pyeer.eer_stats")
    values, same = scores
    genuine, impostor = values[same], values[~same]
    thresholds, fmr, fnmr = theirs.calculate_roc(genuine, impostor)
    for threshold, false_match, false_non_match in zip(thresholds, fmr, fnmr, strict=True):
        assert match_rate(impostor, threshold) == pytest.approx(false_match, abs=1e-12)  # counts over counts
        assert 1 - match_rate(genuine, threshold) == pytest.approx(false_non_match, abs=1e-12)
    corners = {(round(a, 9), round(b, 9)) for a, b in zip(fmr, fnmr, strict=True)}
    corners.add((1.0, 0.0))
    curve = det_curve(genuine, impostor)
    shown = [(round(a, 9), round(b, 9)) for a, b in curve if a > 1 / len(impostor)]
    assert len(shown) > 20
    assert set(shown) <= corners
    for rate in (0.01, 0.1):
        allowed = fnmr[fmr <= rate].min()
        assert 1 - tar_at_fmr(genuine, impostor, rate) == pytest.approx(allowed, abs=1e-12)
        assert curve[curve[:, 0] <= rate * (1 + 1e-9), 1].min() >= allowed - 1e-12


def test_det_curve_at_its_ends() -> None:
    perfect = det_curve([0.9, 0.9], [0.1, 0.2, 0.3, 0.4])
    assert perfect.tolist() == [[0.25, 0.0], [1.0, 0.0]]
    hidden = det_curve([0.01], [0.1, 0.2, 0.3, 0.4])
    assert hidden[0].tolist() == [0.25, 1.0]
    assert hidden[-1].tolist() == [1.0, 0.0]
    rising = det_curve(np.linspace(0, 1, 500), np.linspace(-0.5, 0.8, 20_000), points=50)
    assert len(rising) <= 50
    assert (np.diff(rising[:, 0]) > 0).all()
    assert (np.diff(rising[:, 1]) <= 0).all()


def test_match_rate_counts_what_could_not_be_compared_as_no_match() -> None:
    assert match_rate([0.5, 0.4, -np.inf, 0.6], 0.5) == 0.5
    for wrong in ([], [np.nan]):
        with pytest.raises(ValueError, match=r"scores: expected a list of similarities \[N\] with N > 0"):
            match_rate(wrong, 0.5)
