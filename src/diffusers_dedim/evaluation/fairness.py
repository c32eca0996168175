"""Does the protection serve everybody alike? Means by group of people, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusers_dedim.extras import import_extra
from diffusers_dedim.metrics.intervals import Estimate, bootstrap_mean

GENDERS = ("male", "female")
RACES = ("White", "Black", "Asian", "Indian", "other")
AGE_BANDS = ((0, 17), (18, 34), (35, 54), (55, 200))  # years, both ends included
UNKNOWN = "unknown"
_COLUMNS = ("age", "gender", "race")


@dataclass(frozen=True)
class GroupMeans:
    """One measure by group.

    Attributes:
        overall: over all faces that have a group.
        by_group: group -> mean and interval.
        counts: group -> number of faces.
        difference: largest minus smallest group mean; nan with fewer than two groups. Noise alone makes it
            positive, the more so the smaller the groups: read it with the intervals.
    """

    overall: Estimate
    by_group: dict[str, Estimate]
    counts: dict[str, int]
    difference: float


def group_means(
    measures: Mapping[str, ArrayLike], groups: Sequence[str], *, min_count: int = 1
) -> dict[str, GroupMeans]:
    """Mean of each measure by group, with bootstrap 95 % intervals and the largest difference.

    Args:
        measures: name -> ``[N]`` numbers or bool, one a face, each face of another person; nan leaves a face out
            of that measure.
        groups: ``[N]``, the group of each face; faces of the group "unknown" are left out.
        min_count: groups with fewer faces are left out: their interval says nothing.

    Returns:
        Measure -> its means; a measure that no face has is left out.

    Source:
        fairlearn's `MetricFrame` (means by group and their difference).

    Raises:
        ImportError: fairlearn or scipy is missing.
        ValueError: lengths disagree, a value is infinite, or no face is left.

    Example:
        >>> means = group_means({"reached": [1, 1, 0, 1]}, ["a", "a", "b", "b"])["reached"]
        >>> means.difference, means.by_group["b"].value
        (0.5, 0.5)
    """
    labels = np.asarray(groups, dtype=str)
    large = {str(name) for name in np.unique(labels) if (labels == name).sum() >= min_count} - {UNKNOWN}
    kept = np.isin(labels, sorted(large))
    if not kept.any():
        raise ValueError(
            f"groups: no face is in a known group of at least {min_count}; got {dict(Counter(groups))}."
        )
    results = {}
    for name, column in measures.items():
        values = _finite_or_nan(name, column, len(labels))
        chosen = kept & ~np.isnan(values)
        if chosen.any():
            results[name] = _means(values[chosen], labels[chosen])
    return results


def utkface_groups(labels: Mapping[str, ArrayLike]) -> dict[str, list[str]]:
    """Turn UTKFace's numbers into group names.

    Args:
        labels: ``age`` in years, ``gender`` (0 male, 1 female) and ``race`` (0 White, 1 Black, 2 Asian, 3 Indian,
            4 other), ``[N]`` each; -1 where it is not known. The words are the data set's, guessed by its
            makers from the pictures.

    Returns:
        "age" (bands such as "18-34"; "55+"), "gender" and "race" -> the group of each face, or "unknown".

    Raises:
        ValueError: a column is missing, or a number has no meaning.

    Example:
        >>> utkface_groups({"age": [30, -1], "gender": [1, 0], "race": [2, 4]})["age"]
        ['18-34', 'unknown']
    """
    missing = [name for name in _COLUMNS if name not in labels]
    if missing:
        raise ValueError(f"labels: column(s) {missing} missing; expected {list(_COLUMNS)}.")
    ages = [_age_band(int(age)) for age in np.asarray(labels["age"])]
    return {
        "age": ages,
        "gender": _names("gender", labels["gender"], GENDERS),
        "race": _names("race", labels["race"], RACES),
    }


def read_labels(files: Sequence[Path]) -> dict[str, NDArray[np.int64]]:
    """Read the columns ``age``, ``gender`` and ``race`` of parquet files, in their order.

    Raises:
        ImportError: pyarrow is missing.
        ValueError: there is no file, or a column is missing.
    """
    if not files:
        raise ValueError("files: expected at least one parquet file with age, gender and race.")
    parquet = import_extra("pyarrow.parquet", "reading labels")
    for file in files:
        columns = parquet.read_schema(file).names
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            raise ValueError(
                f"{file}: column(s) {missing} missing; expected {list(_COLUMNS)}, got {columns}."
            )
    tables: list[Any] = [parquet.read_table(file, columns=list(_COLUMNS)) for file in files]
    return {
        name: np.concatenate([table.column(name).to_numpy() for table in tables]).astype(np.int64)
        for name in _COLUMNS
    }


def _means(values: NDArray[np.float64], labels: NDArray[np.str_]) -> GroupMeans:
    metrics = import_extra("fairlearn.metrics", "group_means")
    frame = metrics.MetricFrame(
        metrics=metrics.mean_prediction, y_true=values, y_pred=values, sensitive_features=labels
    )
    groups = {str(name): values[labels == name] for name in frame.by_group.index}
    return GroupMeans(
        overall=_estimate(values),
        by_group={name: _estimate(own) for name, own in groups.items()},
        counts={name: len(own) for name, own in groups.items()},
        difference=float(frame.difference()) if len(groups) > 1 else math.nan,
    )


def _estimate(values: NDArray[np.float64]) -> Estimate:
    """One value a person: each face is its own identity to the bootstrap."""
    return bootstrap_mean(values, [str(index) for index in range(len(values))])


def _age_band(age: int) -> str:
    if age < 0:
        return UNKNOWN
    for first, last in AGE_BANDS:
        if age <= last:
            return f"{first}+" if (first, last) == AGE_BANDS[-1] else f"{first}-{last}"
    raise ValueError(f"age: expected years up to {AGE_BANDS[-1][1]}, or -1 where unknown, got {age}.")


def _names(column: str, values: ArrayLike, names: Sequence[str]) -> list[str]:
    numbers = [int(value) for value in np.asarray(values)]
    wrong = sorted({number for number in numbers if not -1 <= number < len(names)})
    if wrong:
        raise ValueError(f"{column}: expected 0..{len(names) - 1}, or -1 where unknown, got {wrong}.")
    return [names[number] if number >= 0 else UNKNOWN for number in numbers]


def _finite_or_nan(name: str, column: ArrayLike, length: int) -> NDArray[np.float64]:
    values = np.asarray(column, dtype=np.float64)
    if values.shape != (length,):
        raise ValueError(f"measures: expected {length} values of {name!r}, got shape {list(values.shape)}.")
    if np.isinf(values).any():
        raise ValueError(
            f"measures: {name!r} holds inf (PSNR of an unchanged face?); a mean over it says nothing, put nan "
            "and count those faces in a measure of their own."
        )
    return values
