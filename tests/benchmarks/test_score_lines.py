"""benchmarks.score_lines with colours for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_experiment as toy

from benchmarks import _command, score_lines
from diffusers_dedim.encoders import Recogniser

PEOPLE = ["red", "green", "blue"]


def test_prints_median_and_line_of_each_recogniser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_lines, "FaceDetector", lambda device: toy.detect)
    monkeypatch.setattr(_command, "load_recogniser", lambda name: Recogniser(name, toy.MeanColour(), name))
    monkeypatch.setattr(score_lines, "FMR", 0.5)  # three people are too few for 1 in 1,000
    data = toy.write_experiment(tmp_path / "e.parquet", PEOPLE, PEOPLE)
    words = [
        "--data",
        data,
        "--cache",
        tmp_path / "cache",
        "--black-box",
        "toy",
        "--json",
        tmp_path / "r.json",
        "--thresholds",
        "0.5",
        "0.1",
    ]
    score_lines.main(list(map(str, words)), load_pipeline=toy.SwapColours)
    results = json.loads(capsys.readouterr().out)
    assert results["fmr"] == 0.5
    assert set(results["recognisers"]) == {"white", "toy"}
    line = results["recognisers"]["toy"]
    assert (line["fingerprint"], line["pairs"]) == ("toy", 3)
    assert -1 <= line["strangers"] <= line["line"] <= 1
    assert results["recognisers"]["white"]["fmr_at"] == {
        "0.5": 0,
        "0.1": 1,
    }  # colours lie beyond a right angle
    assert line["fmr_at"] == {}  # the sampler does not ask this one
    assert results["command"].startswith("python -m benchmarks.score_lines --data ")
    assert {"commit", "torch", "threads"} <= set(results)
    assert json.loads((tmp_path / "r.json").read_text()) == results
