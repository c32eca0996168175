"""Verification (ISO/IEC 19795-1): are two images of one person? Rates of a recogniser over pairs of images.

Tie rule, for every rate here: a comparison **matches when similarity >= threshold**.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusers_dedim.extras import import_extra

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


def match_rate(scores: ArrayLike, threshold: float) -> float:
    """Share of comparisons that match: FMR of impostor scores, 1 - FNMR of genuine ones.

    Args:
        scores: ``[N]`` similarities; -inf (could not be compared) never matches.
        threshold: a comparison matches when similarity >= threshold.

    Raises:
        ValueError: there is no score, or one is nan.

    Example:
        >>> match_rate([0.1, 0.5, 0.9, float("-inf")], 0.5)
        0.5
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise ValueError(
            f"scores: expected a list of similarities [N] with N > 0 and no nan, got {list(values.shape)}."
        )
    return float((values >= threshold).mean())


def det_curve(genuine: ArrayLike, impostor: ArrayLike, points: int = 120) -> NDArray[np.float64]:
    """Detection error trade-off: FNMR over FMR as the threshold moves, thinned for a figure or a file.

    The curve is scikit-learn's; of its corners those are kept that lie at most at each of ``points`` rates,
    evenly spaced in log(FMR) from one impostor comparison to all of them.

    Args:
        genuine: ``[N]`` similarities of pairs of one person.
        impostor: ``[M]`` similarities of pairs of two people.
        points: most points kept.

    Returns:
        ``[K, 2]``, K <= points: FMR rising, FNMR falling. Where not one of the M impostors matches, the FMR is
        given as 1 / M: they cannot show a lower one.

    Source:
        Martin et al. 1997, "The DET curve in assessment of detection task performance"; ISO/IEC 19795-1.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: a list is empty or a similarity is not finite.

    Example:
        >>> det_curve([0.25, 0.35, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4], points=3).round(2).tolist()
        [[0.25, 0.25], [0.5, 0.0], [1.0, 0.0]]
    """
    metrics = import_extra("sklearn.metrics", "det_curve")
    accepted, rejected = _finite("genuine", genuine), _finite("impostor", impostor)
    labels = np.concatenate([np.ones(len(accepted)), np.zeros(len(rejected))])
    fmr, fnmr, _ = metrics.det_curve(labels, np.concatenate([accepted, rejected]))
    order = np.lexsort((-fnmr, fmr))  # FMR rising; where it stays, FNMR falling
    # scikit-learn leaves out the end at which everything matches
    fmr, fnmr = np.append(fmr[order], 1.0), np.append(fnmr[order], 0.0)
    grid = np.geomspace(1 / len(rejected), 1, points)
    # the last corner at or below each rate: its FNMR is the lowest that this rate allows
    last = np.searchsorted(fmr, grid * (1 + 1e-9), side="right") - 1
    kept = np.unique(last[last >= 0])
    return np.stack([np.maximum(fmr[kept], 1 / len(rejected)), fnmr[kept]], axis=1)


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
