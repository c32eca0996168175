from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_experiment as toy
from toys import tiny_preset

from benchmarks import _clock, speed
from benchmarks._clock import RoundClock
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.presets import PRESETS


@pytest.fixture
def run(pipe: DeDiMPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(speed, "FaceDetector", lambda device: toy.detect)
    # names stay, numbers are small: 2 steps and up to 2 rounds
    monkeypatch.setitem(PRESETS, "paper", tiny_preset(threshold=0.001))
    monkeypatch.setitem(PRESETS, "fast", tiny_preset(threshold=0.6))
    monkeypatch.setattr(_clock, "_MATMUL_SIZE", 256)
    pipe.face_detector = toy.detect
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green"], ["red", "green"])

    def call(*words: str) -> dict:
        fixed = ["--probes", "2", "--data", data, "--cache", tmp_path / "cache"]
        fixed += ["--methods", "paper", "fast", "--batch-sizes", "1", "3"]
        speed.main([*map(str, fixed), *words], load_pipeline=lambda dtype: pipe)
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")
@pytest.mark.filterwarnings("ignore:.*left UNPROTECTED:UserWarning")
def test_methods_stand_side_by_side_and_say_what_was_cut(run, tmp_path: Path) -> None:
    results = run("--no-tip-im", "--literal-rounds", "1", "--json", str(tmp_path / "speed.json"))
    literal, paper, fast = (results["methods"][name] for name in ("literal", "paper", "fast"))
    assert results["probes"] == 2
    assert (literal["rounds_run"], literal["rounds_assumed"], literal["extrapolated"]) == (1, 2, True)
    assert literal["seconds_per_face"] == pytest.approx(2 * literal["seconds_per_round"], abs=0.01)
    assert literal["unet_calls_per_face"] == 4
    assert (paper["rounds_run"], paper["extrapolated"], paper["unet_calls_per_face"]) == (1, True, 4)
    assert (fast["rounds_run"], fast["extrapolated"]) == (2, False)
    for method in (paper, fast):
        assert method["faces"] == 2  # the bystander's is too small
        assert method["peak_memory_mb"] > 0
        assert set(method["batches"]) == {"1", "3"}
        for batch in method["batches"].values():
            assert batch["faces_per_second"] == pytest.approx(1 / batch["seconds_per_face"], rel=0.05)
    assert set(results["matmul_gflops"]) == {"torch.float32"}  # the toy denoiser's
    assert results["matmul_gflops"]["torch.float32"] > 0
    assert json.loads((tmp_path / "speed.json").read_text()) == results


@pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")
@pytest.mark.filterwarnings("ignore:.*left UNPROTECTED:UserWarning")
def test_only_the_rounds_are_extrapolated_and_nothing_is_set_up_on_the_clock(
    run, pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, calls = 1000, list[int]()
    monkeypatch.setitem(PRESETS, "paper", tiny_preset(threshold=0.001, max_rounds=rounds))

    def detect(photo: Any) -> Any:
        calls.append(1)
        time.sleep(1 if len(calls) == 1 else 0.02)
        return toy.detect(photo)

    pipe.face_detector = detect
    paper = run("--no-tip-im", "--literal-rounds", "1", "--batch-sizes", "1", "--methods", "paper")
    paper = paper["methods"]["paper"]
    assert len(calls) == 3  # once to set it up, and once for each of two photos
    in_rounds = paper["seconds_per_face_in_rounds_run"]
    outside = paper["seconds_per_face"] - rounds * in_rounds
    # the rounds are given to 5e-5 s; 1 s of setting up a face, or 0.02 s in each of 1,000 rounds, would be beyond
    assert -0.05 < outside < 0.9


def test_the_judging_of_each_round_is_counted(
    run, pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of the 10 steps of a round 5 are timed, in 4 rounds
    preset = tiny_preset(start_timestep=20, num_inference_steps=10)
    monkeypatch.setattr(speed, "MOST_STEPS", 5)
    monkeypatch.setattr(speed, "time_rounds", lambda *_: (10.0, 1.0, 0.5))
    monkeypatch.setattr(speed, "crops_of", lambda probes, count: torch.zeros(count, 3, 112, 112))
    found = speed.measure_batches(pipe, preset, [], [4], rounds=3)["4"]
    assert found["seconds_per_face"] == pytest.approx((1 / 5 * 30 + 0.5 * 3 + 4) / 4)  # 4 of 10 s in no round


def test_the_clock_tells_steps_from_judging(pipe: DeDiMPipeline) -> None:
    def slow(*_: Any) -> None:
        if not torch.is_grad_enabled():  # not the guidance's calls
            time.sleep(0.1)

    pipe.face_encoder.register_forward_pre_hook(slow)
    faces = list(torch.randint(60, 190, (2, 112, 112, 3), dtype=torch.uint8).numpy())
    total, in_steps, judging = speed.time_rounds(
        pipe, tiny_preset(max_rounds=speed.ROUNDS, threshold=0.001), faces
    )
    assert judging >= 0.1
    assert (
        total >= speed.ROUNDS * (in_steps + judging) + 0.2
    )  # the reference, and the measuring of the result
    assert not pipe.unet._forward_pre_hooks


def test_a_round_ends_with_its_last_step(pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 2.0, 4.0, 7.0, 8.0, 11.0])
    monkeypatch.setattr(_clock, "now", lambda device: next(seconds))
    with RoundClock(pipe) as clock:
        for step in (0, 1, 0):  # a round of two steps, and one of one
            pipe.unet(torch.zeros(1, 3, 112, 112), 0)
            clock(pipe, step, 0, {})
    assert clock.rounds == [(1.0, 7.0), (8.0, 11.0)]
    assert (clock.steps, clock.between) == (9.0, 1.0)


def test_tip_im_moves_towards_people_who_are_no_probe(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def make_method(name: str, pipe: Any, *, seed: int, targets: Any) -> Any:
        given.append((name, len(targets)))
        return toy.SwapColours()

    monkeypatch.setattr(speed, "make_method", make_method)
    data = toy.write_experiment(tmp_path / "three.parquet", ["red", "green"], ["red", "green", "blue"])
    words = ["--data", str(data), "--methods", "fast", "--batch-sizes", "1", "--literal-rounds", "1"]
    found = run(*words)["methods"]["tip-im"]
    assert given == [("tip-im", 1)]
    assert (found["faces"], found["unet_calls_per_face"]) == (2, 20)


def test_numbers_below_1_are_refused(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--paper-rounds", "0")
    assert "argument --paper-rounds: expected at least 1, got 0" in capsys.readouterr().err
