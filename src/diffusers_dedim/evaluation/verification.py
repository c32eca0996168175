"""Verification (ISO/IEC 19795-1): are two images of one person? Rates of a recogniser over pairs of images.

Tie rule, for every rate here: a comparison **matches when similarity >= threshold**.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FOLDS = 10


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy over the folds of a cross-validation.

    Attributes:
        mean: mean share of right decisions, in [0, 1].
        std: standard deviation over the folds (n - 1); over sqrt(10) it is the standard error that LFW reports.
    """

    mean: float
    std: float


def ten_fold_accuracy(similarities: ArrayLike, same: ArrayLike) -> FoldAccuracy:
    """Accuracy by the protocol of LFW: the threshold is chosen on nine folds and judged on the tenth.

    Args:
        similarities: ``[N]``, larger is more alike, in the order of the pairs file: the folds are its ten
            consecutive parts.
        same: ``[N]`` bool (or 0 and 1), whether a pair shows one person.

    Returns:
        Mean and standard deviation over the folds, float64.

    Source:
        Huang et al. 2007, "Labeled Faces in the Wild", view 2.

    Raises:
        ValueError: the shapes disagree, a similarity is not finite, the labels are not of both kinds, or there
            are fewer pairs than folds.

    Example:
        >>> ten_fold_accuracy([0.9, 0.1] * 10, [True, False] * 10)
        FoldAccuracy(mean=1.0, std=0.0)
    """
    scores, labels = _finite("similarities", similarities), _labels(same)
    if labels.shape != scores.shape:
        raise ValueError(f"same: expected one label for each of {len(scores)} pairs, got {len(labels)}.")
    if len(scores) < _FOLDS:
        raise ValueError(f"similarities: expected at least {_FOLDS} pairs, one a fold, got {len(scores)}.")
    if labels.all() or not labels.any():
        raise ValueError(f"same: expected pairs of one person and pairs of two, all are {bool(labels[0])}.")
    accuracies = []
    for fold in np.array_split(np.arange(len(scores)), _FOLDS):
        others = np.ones(len(scores), dtype=bool)
        others[fold] = False
        threshold = _best_threshold(scores[others], labels[others])
        accuracies.append(((scores[fold] >= threshold) == labels[fold]).mean())
    return FoldAccuracy(mean=float(np.mean(accuracies)), std=float(np.std(accuracies, ddof=1)))


def threshold_at_fmr(impostor: ArrayLike, fmr: float) -> float:
    """Lowest threshold at which no more than a share ``fmr`` of the impostor comparisons match.

    Args:
        impostor: ``[M]`` similarities of pairs of two people.
        fmr: the false match rate allowed, in (0, 1).

    Returns:
        The threshold, just above the first impostor score that may not match; equal scores stay together.

    Raises:
        ValueError: ``fmr`` is out of range, a similarity is not finite, or there are fewer than 1 / fmr
            impostor scores, which cannot resolve such a rate.

    Example:
        >>> impostor = [0.1, 0.2, 0.3, 0.4]
        >>> threshold = threshold_at_fmr(impostor, fmr=0.25)
        >>> [score >= threshold for score in impostor]
        [False, False, False, True]
    """
    scores = _finite("impostor", impostor)
    if not 0 < fmr < 1:
        raise ValueError(f"fmr: expected a rate strictly between 0 and 1, got {fmr}.")
    # 0.001 * 3000 may come out a little under 3
    allowed = int(np.floor(fmr * len(scores) * (1 + 1e-12)))
    if allowed < 1:
        raise ValueError(
            f"impostor: expected at least 1 / fmr = {np.ceil(1 / fmr):.0f} scores to resolve a false match rate "
            f"of {fmr:g}, got {len(scores)}; give more pairs or a larger fmr."
        )
    position = len(scores) - 1 - allowed
    return float(np.nextafter(np.partition(scores, position)[position], np.inf))


def tar_at_fmr(genuine: ArrayLike, impostor: ArrayLike, fmr: float) -> float:
    """True accept rate: share of the genuine comparisons that match at the impostors' `threshold_at_fmr`.

    Args:
        genuine: ``[N]`` similarities of pairs of one person.
        impostor: ``[M]`` similarities of pairs of two people; M >= 1 / fmr.
        fmr: the false match rate allowed, in (0, 1).

    Returns:
        TAR = 1 - FNMR in [0, 1], float64.

    Raises:
        ValueError: as `threshold_at_fmr`.

    Example:
        >>> tar_at_fmr([0.25, 0.35, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4], fmr=0.25)
        0.75
    """
    scores = _finite("genuine", genuine)
    return float((scores >= threshold_at_fmr(impostor, fmr)).mean())


def _best_threshold(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The threshold of most right decisions, midway between two scores; of equally good ones the highest."""
    order = np.argsort(-scores)
    falling = scores[order]
    # Accepting the first k is right for their genuine pairs and wrong for their impostors; k = 0..N.
    gain = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))])
    separable = np.concatenate([[True], falling[1:] < falling[:-1], [True]])
    count = int(np.argmax(np.where(separable, gain, -len(scores) - 1)))
    bounds = np.concatenate([[falling[0] + 1], falling, [falling[-1] - 1]])
    accepted, rejected = bounds[count], bounds[count + 1]
    # the middle of neighbouring floats can round down to the rejected one
    return float(max((accepted + rejected) / 2, np.nextafter(rejected, np.inf)))


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{name}: expected a list of scores [N] with N > 0, got shape {list(scores.shape)}.")
    if not np.isfinite(scores).all():
        wrong = int((~np.isfinite(scores)).sum())
        raise ValueError(
            f"{name}: expected finite similarities, got {wrong} nan or inf; leave those pairs out."
        )
    return scores


def _labels(values: ArrayLike) -> NDArray[np.bool_]:
    labels = np.asarray(values)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError("same: expected a list of bool (or 0 and 1), one label a pair.")
    return labels.astype(bool)
