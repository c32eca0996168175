"""All rates of one recogniser over the probes of one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.evaluation.gallery import Gallery
from diffusers_dedim.evaluation.results import RateEntry, VerificationRate
from diffusers_dedim.metrics.intervals import bootstrap_mean
from diffusers_dedim.metrics.retrieval import cmc, genuine_ranks
from diffusers_dedim.metrics.verification import det_curve, threshold_at_fmr

FALSE_MATCH_RATES = (0.001, 0.01)
_CMC_RANKS = 20

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """Whose rates these are.

    Attributes:
        method: name of the method. recogniser: name of the recogniser.
        white_box: whether the recogniser guided the method.
        transform: what was done to the photos after protection, "" for nothing.
        gallery: whether the own person's images there are "unprotected" or "protected" too.
    """

    method: str
    recogniser: str
    white_box: bool
    transform: str = ""
    gallery: str = "unprotected"


def impostor_scores(gallery: Gallery, recogniser: str) -> Scores:
    """Similarities of all pairs of unprotected gallery images of two people, ``[M]``.

    Thresholds come from these alone, so that no method moves its own goalposts.

    Args:
        gallery: embedded with the recogniser; images without a face are left out.
        recogniser: name in ``gallery.embeddings``.

    Example:
        >>> gallery = Gallery(("a", "b"), {"toy": np.eye(2, dtype=np.float32)}, 0)
        >>> impostor_scores(gallery, "toy").tolist()
        [0.0]
    """
    embeddings = gallery.embeddings[recogniser].astype(np.float64)
    found = ~np.isnan(embeddings).any(axis=1)
    embeddings, persons = embeddings[found], np.asarray(gallery.persons)[found]
    first, second = np.triu_indices(len(persons), k=1)
    pairs = persons[first] != persons[second]
    scores: Scores = (embeddings @ embeddings.T)[first[pairs], second[pairs]]
    return scores


def rate_entry(
    subject: Subject,
    similarities: Scores,
    persons: Sequence[str],
    gallery: Gallery,
    impostors: Scores,
    own_photo: Scores,
) -> RateEntry:
    """Retrieval and verification of one method by one recogniser.

    A false match rate that the impostors cannot resolve gives an entry with the reason instead of a number.

    Args:
        subject: whose rates these are.
        similarities: ``[P, G]`` cosine; -inf where a gallery image has no face.
        persons: identity of each probe.
        gallery: its persons name the columns.
        impostors: from `impostor_scores`, of the same recogniser.
        own_photo: ``[P]`` cosine of each probe with its own photo as it was.

    Raises:
        ValueError: as `genuine_ranks`.
    """
    ranks = genuine_ranks(similarities, persons, gallery.persons)
    same = np.asarray(persons)[:, None] == np.asarray(gallery.persons)[None, :]
    comparable = np.isfinite(similarities)
    rows = np.nonzero(same & comparable)[0].tolist()
    genuine, owners = similarities[same & comparable], [persons[row] for row in rows]
    strangers = np.where(~same & comparable, similarities, np.nan)
    best = np.where(same & comparable, similarities, -np.inf).max(axis=1)
    det = det_curve(genuine, impostors).tolist() if len(genuine) and len(impostors) else []
    return RateEntry(
        method=subject.method,
        recogniser=subject.recogniser,
        white_box=subject.white_box,
        transform=subject.transform,
        gallery=subject.gallery,
        probes=len(persons),
        rank1=bootstrap_mean(ranks <= 1, persons),
        # in a gallery of less than five the rank of nobody found must not count
        rank5=bootstrap_mean(ranks <= min(5, len(gallery.persons)), persons),
        cmc=tuple(
            cmc(similarities, persons, gallery.persons, min(_CMC_RANKS, len(gallery.persons))).tolist()
        ),
        similarity=bootstrap_mean(best, persons),
        verification=tuple(
            _verification(fmr, genuine, owners, impostors, (strangers, persons)) for fmr in FALSE_MATCH_RATES
        ),
        det=tuple((fmr, fnmr) for fmr, fnmr in det),
        not_compared=int(np.isneginf(best).sum()),
        own_photo=bootstrap_mean(own_photo, persons),
        dodging=bootstrap_mean((1 - own_photo) / 2, persons),
    )


def _verification(
    fmr: float,
    genuine: Scores,
    owners: Sequence[str],
    impostors: Scores,
    strangers: tuple[Scores, Sequence[str]],
) -> VerificationRate:
    """Rates at the threshold of ``fmr``; ``strangers``: ``[P, G]``, nan where not compared, and the probes' people."""
    if len(genuine) == 0:
        return VerificationRate(fmr, problem="no probe has a gallery image with a face to compare with.")
    try:
        threshold = threshold_at_fmr(impostors, fmr)
    except ValueError as error:
        return VerificationRate(fmr, problem=str(error))
    scores, persons = strangers
    compared = np.isfinite(scores).sum(1)
    matched = (scores >= threshold).sum(1)  # nan is no match
    shares = np.divide(matched, compared, out=np.full(len(scores), np.nan), where=compared > 0)
    return VerificationRate(
        fmr, threshold, bootstrap_mean(genuine < threshold, owners), bootstrap_mean(shares, persons)
    )
