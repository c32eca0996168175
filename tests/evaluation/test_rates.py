from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim.evaluation import Gallery
from diffusers_dedim.evaluation.rates import Subject, impostor_scores, rate_entry

SUBJECT = Subject("dedim", "toy", False)


def unit(*rows: list[float]) -> np.ndarray:
    array = np.array(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_impostors_are_pairs_of_two_people_with_a_face() -> None:
    embeddings = unit([1, 0], [0, 1], [1, 1], [1, 0])
    embeddings[3] = np.nan
    gallery = Gallery(("a", "b", "b", "c"), {"toy": embeddings}, 1)
    np.testing.assert_allclose(sorted(impostor_scores(gallery, "toy")), [0, np.sqrt(0.5)], atol=1e-7)


def test_rates_by_hand() -> None:
    people = [str(index) for index in range(60)]
    gallery = Gallery(tuple(people), {}, 0)
    similarities = np.zeros((4, 60))
    similarities[[0, 1, 2], [0, 1, 2]] = [0.9, 0.6, 0.4]  # own person
    similarities[2, 10:13] = 0.5  # three strangers before the own person: rank 4
    similarities[:, 59] = -np.inf  # a gallery photo without a face
    similarities[3, 3], similarities[3, 20:26] = 0.0, 0.1  # six strangers: rank 7
    impostors = np.linspace(-0.5, 0.5, 1000)
    entry = rate_entry(SUBJECT, similarities, people[:4], gallery, impostors, np.array([1.0, 0.5, 0.0, -1.0]))
    assert (entry.rank1.value, entry.rank5.value) == (0.5, 0.75)
    assert entry.cmc[:8] == (0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0)
    assert len(entry.cmc) == 20
    strict, loose = entry.verification
    assert (strict.fmr, loose.fmr) == (0.001, 0.01)
    # one of 1,000 may match: the threshold lies between the two highest impostors, 0.499 and 0.5
    assert 0.4989 < strict.threshold < 0.5
    assert strict.fnmr.value == 0.5
    assert strict.impostor_match_rate.value == pytest.approx(3 / (4 * 59 - 4))
    assert 0 <= strict.impostor_match_rate.low <= strict.impostor_match_rate.high <= 3 / 58
    assert entry.own_photo.value == 0.125
    assert entry.dodging.value == pytest.approx((0 + 0.25 + 0.5 + 1) / 4)
    assert entry.similarity.value == pytest.approx((0.9 + 0.6 + 0.4) / 4)
    assert entry.det[-1] == (1.0, 0.0)
    assert entry.not_compared == 0
    assert not entry.white_box


def test_too_few_impostors_leave_a_reason_and_the_other_numbers() -> None:
    gallery = Gallery(("a", "b"), {}, 0)
    entry = rate_entry(SUBJECT, np.eye(2), ["a", "b"], gallery, np.linspace(0, 0.5, 200), np.ones(2))
    strict, loose = entry.verification
    assert strict.fnmr is None
    assert "expected at least 1 / fmr = 1000 scores" in strict.problem
    assert "got 200" in strict.problem
    assert loose.fnmr is not None
    assert entry.rank1.value == 1.0
    alone = rate_entry(SUBJECT, np.eye(2), ["a", "b"], gallery, np.array([]), np.ones(2))
    assert alone.det == ()
    assert "impostor: expected a list of scores" in alone.verification[0].problem


def test_a_person_whose_gallery_photo_has_no_face_is_never_found() -> None:
    similarities = np.array([[-np.inf, 0.2], [-np.inf, 0.9]])
    gallery = Gallery(("a", "b"), {}, 1)
    entry = rate_entry(SUBJECT, similarities, ["a", "b"], gallery, np.linspace(0, 0.5, 2000), np.ones(2))
    assert entry.not_compared == 1
    assert (entry.rank1.value, entry.rank5.value) == (0.5, 0.5), (
        "though the gallery has less than five photos"
    )
    assert entry.verification[0].fnmr.value == 0.0, "left out of FNMR: there was no comparison"
    hopeless = rate_entry(SUBJECT, similarities[:1], ["a"], gallery, np.linspace(0, 0.5, 2000), np.ones(1))
    assert hopeless.verification[0].problem.startswith("no probe has a gallery image with a face")
