"""Closed-set retrieval (ISO/IEC 19795-1): the rank at which a probe's own person is found in the gallery.

Tie rule, for every rate here: **ties go to the searcher**. A gallery image of another person is placed before
the own person only if its similarity is strictly greater, so protection is never overstated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def genuine_ranks(
    similarities: ArrayLike, probe_persons: Sequence[str], gallery_persons: Sequence[str]
) -> NDArray[np.int64]:
    """Rank of the best gallery image of each probe's own person.

    Args:
        similarities: ``[P, G]``, larger is more alike; -inf marks a face that could not be compared and is
            never found.
        probe_persons: identity of each row.
        gallery_persons: identity of each column.

    Returns:
        ``[P]``: 1 + the number of images of *other* people with a strictly greater similarity; G + 1 where
        the own person could not be compared at all.

    Raises:
        ValueError: the shapes disagree, a similarity is nan, or a probe's person is not in the gallery.

    Example:
        >>> genuine_ranks([[0.9, 0.2], [0.5, 0.5], [0.8, 0.1]], ["a", "b", "b"], ["a", "b"]).tolist()
        [1, 1, 2]
    """
    scores = np.asarray(similarities, dtype=np.float64)
    expected = (len(probe_persons), len(gallery_persons))
    if scores.shape != expected:
        raise ValueError(
            f"similarities: expected shape [probes, gallery] = {list(expected)}, got {list(scores.shape)}."
        )
    if np.isnan(scores).any():
        raise ValueError("similarities: got nan; give -inf for a face that could not be compared.")
    same = np.asarray(probe_persons)[:, None] == np.asarray(gallery_persons)[None, :]
    if not same.any(axis=1).all():
        lost = [str(probe_persons[i]) for i in np.flatnonzero(~same.any(axis=1)).tolist()]
        raise ValueError(f"probe_persons: no gallery image of {lost[:5]}; a closed-set rank needs one.")
    genuine = np.where(same, scores, -np.inf).max(axis=1)
    ranks = 1 + ((scores > genuine[:, None]) & ~same).sum(axis=1)
    return np.where(np.isneginf(genuine), scores.shape[1] + 1, ranks).astype(np.int64)


def rank_k_rate(
    similarities: ArrayLike, probe_persons: Sequence[str], gallery_persons: Sequence[str], k: int = 1
) -> float:
    """Share of probes whose own person is among the ``k`` best gallery images (ties go to the searcher).

    Args:
        similarities: ``[P, G]``, larger is more alike.
        probe_persons: identity of each row.
        gallery_persons: identity of each column.
        k: rank, from 1.

    Raises:
        ValueError: as `genuine_ranks`, or ``k`` is out of 1..G.

    Example:
        >>> rank_k_rate([[0.9, 0.2], [0.8, 0.1]], ["a", "b"], ["a", "b"], k=1)
        0.5
    """
    if not 1 <= k <= len(gallery_persons):
        raise ValueError(f"k: expected 1 to {len(gallery_persons)} (gallery images), got {k}.")
    return float((genuine_ranks(similarities, probe_persons, gallery_persons) <= k).mean())


def cmc(
    similarities: ArrayLike, probe_persons: Sequence[str], gallery_persons: Sequence[str], max_rank: int
) -> NDArray[np.float64]:
    """Cumulative match characteristic: `rank_k_rate` for k = 1..max_rank, ``[max_rank]``.

    Args:
        similarities: ``[P, G]``, larger is more alike.
        probe_persons: identity of each row.
        gallery_persons: identity of each column.
        max_rank: last rank of the curve.

    Raises:
        ValueError: as `rank_k_rate`.

    Example:
        >>> cmc([[0.9, 0.2], [0.8, 0.1]], ["a", "b"], ["a", "b"], max_rank=2).tolist()
        [0.5, 1.0]
    """
    if not 1 <= max_rank <= len(gallery_persons):
        raise ValueError(f"max_rank: expected 1 to {len(gallery_persons)} (gallery images), got {max_rank}.")
    ranks = genuine_ranks(similarities, probe_persons, gallery_persons)
    curve: NDArray[np.float64] = (ranks[None, :] <= np.arange(1, max_rank + 1)[:, None]).mean(axis=1)
    return curve
