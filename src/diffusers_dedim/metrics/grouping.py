"""Photos sorted into people the way a photo program does it: whoever is alike enough is joined, and so on.

Tie rule: two photos are joined when similarity >= threshold, as a comparison matches in `metrics.verification`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusers_dedim.extras import import_extra


def connected_groups(similarities: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Put photos into groups: two that match are in one group, and so are all that a chain of matches connects.

    Args:
        similarities: ``[N, N]``, symmetric, larger is more alike; nan or -inf for a pair that cannot be compared.
            The diagonal is not read.
        threshold: similarity from which two photos match.

    Returns:
        ``[N]``, the group of each photo, numbered from 0 in the order of their first photos.

    Raises:
        ImportError: scipy is missing.
        ValueError: the similarities are not square.

    Example:
        >>> connected_groups([[1, 0.9, 0], [0.9, 1, 0.2], [0, 0.2, 1]], 0.5).tolist()
        [0, 0, 1]
    """
    scores = np.asarray(similarities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"similarities: expected a square [N, N], got {list(scores.shape)}.")
    graph = import_extra("scipy.sparse.csgraph", "connected_groups")
    _, labels = graph.connected_components(scores >= threshold, directed=False)
    return np.asarray(labels, dtype=np.int64)


def shares_together(groups: Sequence[int] | NDArray[np.int64], persons: Sequence[str]) -> NDArray[np.float64]:
    """How much of each photo's person is found with it: the share of the person's other photos in its group.

    Args:
        groups: ``[N]``, from `connected_groups`.
        persons: identity of each photo.

    Returns:
        ``[N]`` in [0, 1]; nan for the only photo of a person.

    Raises:
        ValueError: the two are not of one length.

    Example:
        >>> shares_together([0, 0, 1, 1], ["a", "a", "a", "b"]).tolist()
        [0.5, 0.5, 0.0, nan]
    """
    labels, names = np.asarray(groups), np.asarray(persons)
    if labels.shape != names.shape or labels.ndim != 1:
        raise ValueError(f"persons: expected one for each of {list(labels.shape)} groups, got {len(names)}.")
    others = (names[:, None] == names[None, :]) & ~np.eye(len(names), dtype=bool)
    together = (others & (labels[:, None] == labels[None, :])).sum(axis=1)
    count = others.sum(axis=1)
    shares: NDArray[np.float64] = np.where(count > 0, together / np.maximum(count, 1), np.nan)
    return shares


def strangers_together(groups: Sequence[int] | NDArray[np.int64], persons: Sequence[str]) -> float:
    """Share of the pairs of different people that are in one group: what a group's size costs in wrong company.

    Args:
        groups: ``[N]``, from `connected_groups`.
        persons: identity of each photo.

    Returns:
        A share in [0, 1]; nan where all photos show one person.

    Example:
        >>> strangers_together([0, 0, 1], ["a", "b", "b"])
        0.5
    """
    labels, names = np.asarray(groups), np.asarray(persons)
    different = names[:, None] != names[None, :]
    if not different.any():
        return float("nan")
    return float((labels[:, None] == labels[None, :])[different].mean())
