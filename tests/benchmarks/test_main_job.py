from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_experiment as toy
from PIL import Image

from benchmarks import _command, main_job


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(main_job, "FaceDetector", lambda device: toy.detect)
    monkeypatch.setattr(
        _command, "load_recogniser", lambda name: _command.Recogniser(name, toy.MeanColour(), name)
    )
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green", "blue"], ["red", "green", "blue"])

    def call(*words: str) -> tuple[dict, toy.SwapColours]:
        pipe = toy.SwapColours()
        paths = ["--data", data, "--cache", tmp_path / "cache", "--panel", tmp_path / "out" / "panel.png"]
        main_job.main([*map(str, paths), "--black-box", "toy", *words], load_pipeline=lambda: pipe)
        return json.loads(capsys.readouterr().out), pipe

    return call


def test_prints_one_json_object_and_writes_the_panel(run, tmp_path: Path) -> None:
    results, pipe = run("--probes", "2", "--preset", "paper", "--json", str(tmp_path / "r" / "results.json"))
    assert results["probes"] == 2
    assert results["gallery"] == 3
    assert results["preset"] == "paper"
    assert results["rank1_white"] == {"white": 0.0}
    assert results["rank1_black"] == {"toy": 0.0}
    assert results["rank1_original"] == {"white": 1.0, "toy": 1.0}
    assert results["unet_calls_per_face"] == 20
    assert results["rounds_mean"] == 2
    assert results["reached_threshold"] == 1
    assert results["undetected_after"] == results["undetected_before"] == results["undetected_gallery"] == 0
    assert 0 < results["psnr"] < 20
    assert 0 < results["haarpsi"] <= 1
    assert results["ssim"] < 1
    assert results["seconds_per_face"] >= 0
    assert results["command"].startswith("python -m benchmarks.main_job --data ")
    assert {"seed", "commit", "torch", "threads"} <= set(results)
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == results
    assert Image.open(tmp_path / "out" / "panel.png").size == (2 * 672 + 12, 224 + 18)
    assert pipe.calls[0]["preset"] == "paper"


def test_each_photo_has_its_own_seed_whatever_the_batch_size(run) -> None:
    def seeds_used(*words: str) -> list[int]:
        _, pipe = run("--probes", "3", *words)
        return [generator.initial_seed() for call in pipe.calls for generator in call["generator"]]

    seeds = seeds_used()
    assert len(set(seeds)) == 3
    assert seeds_used("--batch-size", "1") == seeds
    assert set(seeds_used("--seed", "1")).isdisjoint(seeds)


def test_an_unchanged_face_gives_null_not_infinity(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.np, "roll", lambda photo, *_, **__: photo)
    results, _ = run("--probes", "1")
    assert results["psnr"] is None
    assert results["ssim"] == 1


def test_a_wrong_number_of_probes_is_named(run) -> None:
    with pytest.raises(ValueError, match="limit: expected 1 to 3 probes, got 100"):
        run()


def test_probes_without_any_face_are_named(run, tmp_path: Path) -> None:
    dark = toy.write_experiment(tmp_path / "dark.parquet", ["nobody"], ["red", "nobody"])
    with pytest.raises(
        ValueError, match=r"--data: no face was found in the first 1 probes of .*dark\.parquet"
    ):
        run("--probes", "1", "--data", str(dark))


def test_a_black_box_is_needed(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--black-box")
    assert "main_job: error: argument --black-box: expected at least one argument" in capsys.readouterr().err
