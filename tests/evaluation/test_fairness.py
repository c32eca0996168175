from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_dedim.evaluation.fairness import group_means, read_labels, utkface_groups


def test_means_by_group() -> None:
    groups = ["a", "a", "b", "b", "b", "unknown", "rare"]
    means = group_means(
        {"reached": [True, False, True, True, True, False, False], "psnr": [30, np.nan, 32, 34, 36, 99, 99]},
        groups,
        min_count=2,
    )
    assert {name: rate.value for name, rate in means["reached"].by_group.items()} == {"a": 0.5, "b": 1.0}
    assert means["reached"].overall.value == 0.8
    assert means["reached"].difference == 0.5
    assert means["reached"].by_group["b"].low == 1
    assert means["psnr"].counts == {"a": 1, "b": 3}
    assert means["psnr"].by_group["a"].low is None  # one face has no interval
    assert means["psnr"].difference == 4
    assert means["psnr"].by_group["b"].low < 34 < means["psnr"].by_group["b"].high


def test_one_group_has_no_difference_and_an_empty_measure_is_left_out() -> None:
    means = group_means({"x": [1, 2], "none": [np.nan, np.nan]}, ["a", "a"])
    assert list(means) == ["x"]
    assert math.isnan(means["x"].difference)


def test_wrong_measures_are_named() -> None:
    with pytest.raises(ValueError, match=r"measures: expected 2 values of 'x', got shape \[3\]"):
        group_means({"x": [1, 2, 3]}, ["a", "b"])
    with pytest.raises(ValueError, match=r"measures: 'psnr' holds inf \(PSNR of an unchanged face\?\)"):
        group_means({"psnr": [1, np.inf]}, ["a", "b"])
    with pytest.raises(
        ValueError, match=r"no face is in a known group of at least 3; got \{'a': 1, 'unknown': 1\}"
    ):
        group_means({"x": [1, 2]}, ["a", "unknown"], min_count=3)


def test_utkface_numbers_become_words() -> None:
    groups = utkface_groups(
        {"age": [0, 17, 18, 54, 116, -1], "gender": [0, 1, -1, 0, 0, 0], "race": [0, 1, 2, 3, 4, -1]}
    )
    assert groups["age"] == ["0-17", "0-17", "18-34", "35-54", "55+", "unknown"]
    assert groups["gender"] == ["male", "female", "unknown", "male", "male", "male"]
    assert groups["race"] == ["White", "Black", "Asian", "Indian", "other", "unknown"]


def test_numbers_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"race: expected 0..4, or -1 where unknown, got \[7\]"):
        utkface_groups({"age": [1], "gender": [0], "race": [7]})
    with pytest.raises(ValueError, match="age: expected years up to 200, or -1 where unknown, got 999"):
        utkface_groups({"age": [999], "gender": [0], "race": [0]})
    with pytest.raises(ValueError, match=r"labels: column\(s\) \['race'\] missing"):
        utkface_groups({"age": [1], "gender": [0]})


def test_labels_are_read_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = []
    for index in range(2):
        files.append(tmp_path / f"{index}.parquet")
        pq.write_table(
            pa.table({"age": [index, 9], "gender": [0, 1], "race": [2, 3], "more": [0, 0]}), files[-1]
        )
    assert read_labels(files)["age"].tolist() == [0, 9, 1, 9]
    pq.write_table(pa.table({"age": [1], "gender": [1]}), files[0])
    with pytest.raises(ValueError, match=r"0.parquet: column\(s\) \['race'\] missing"):
        read_labels(files)
    with pytest.raises(ValueError, match="files: expected at least one parquet file"):
        read_labels([])
