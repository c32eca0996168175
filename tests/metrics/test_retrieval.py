from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim.metrics.retrieval import cmc, genuine_ranks, rank_k_rate

GALLERY = ["a", "b", "c", "b"]
# by hand: a is first; b's better image (0.7) is beaten by a (0.9) and c (0.8); c is beaten by a alone
SCORES = [[0.9, 0.1, 0.3, 0.2], [0.9, 0.1, 0.8, 0.7], [0.5, 0.1, 0.4, 0.4]]
PROBES = ["a", "b", "c"]


def test_ranks_and_rates_by_hand() -> None:
    assert genuine_ranks(SCORES, PROBES, GALLERY).tolist() == [1, 3, 2]
    assert rank_k_rate(SCORES, PROBES, GALLERY, k=1) == pytest.approx(1 / 3)
    assert rank_k_rate(SCORES, PROBES, GALLERY, k=2) == pytest.approx(2 / 3)
    np.testing.assert_allclose(cmc(SCORES, PROBES, GALLERY, max_rank=4), [1 / 3, 2 / 3, 1, 1])


def test_ties_go_to_the_searcher() -> None:
    assert genuine_ranks([[0.5, 0.5]], ["b"], ["a", "b"]).tolist() == [1]
    assert rank_k_rate(np.zeros((2, 3)), ["a", "b"], ["c", "b", "a"], k=1) == 1.0


def test_own_images_never_push_the_own_person_back() -> None:
    assert genuine_ranks([[0.9, 0.8, 0.1]], ["a"], ["a", "a", "b"]).tolist() == [1]


def test_a_person_without_a_comparable_image_is_never_found() -> None:
    scores = [[-np.inf, -0.5], [0.9, -np.inf]]
    assert genuine_ranks(scores, ["a", "a"], ["a", "b"]).tolist() == [3, 1]
    assert rank_k_rate(scores[:1], ["a"], ["a", "b"], k=2) == 0.0


def test_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 7))
    persons = [str(index) for index in range(7)]
    labels = rng.integers(7, size=40)
    for k in (1, 3):
        theirs = metrics.top_k_accuracy_score(labels, scores, k=k)
        assert rank_k_rate(scores, [str(label) for label in labels], persons, k=k) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("scores", "probes", "message"),
    [
        ([[1.0, 0.0, 0.0]], ["a"], r"expected shape \[probes, gallery\] = \[1, 4\], got \[1, 3\]"),
        ([[np.nan, 0.0, 0.0, 0.0]], ["a"], "got nan; give -inf"),
        ([[1.0, 0.0, 0.0, 0.0]], ["z"], r"no gallery image of \['z'\]"),
    ],
)
def test_wrong_input_is_named(scores: list, probes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        genuine_ranks(scores, probes, GALLERY)


def test_ranks_outside_the_gallery_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k: expected 1 to 4 \(gallery images\), got 0"):
        rank_k_rate(SCORES, PROBES, GALLERY, k=0)
    with pytest.raises(ValueError, match=r"max_rank: expected 1 to 4 .* got 5"):
        cmc(SCORES, PROBES, GALLERY, max_rank=5)
