"""benchmarks.decisions with toy networks: the paper's preset at two steps, colours for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_experiment as toy

from benchmarks import _run, decisions
from diffusers_dedim import DeDiMPipeline, make_scheduler
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.pipeline.presets import PRESETS

PEOPLE = ["red", "green", "blue"]


@pytest.fixture
def run(
    tmp_path: Path, pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(PRESETS, "paper", replace(PRESETS["paper"], num_inference_steps=2))
    monkeypatch.setattr(decisions, "FaceDetector", lambda device: toy.detect)
    monkeypatch.setattr(_run, "load_recogniser", lambda name: Recogniser(name, toy.MeanColour(), name))
    pipe.face_detector = lambda photo: [toy.CENTRAL]
    data = toy.write_experiment(tmp_path / "e.parquet", PEOPLE, PEOPLE)

    def call(*words: str) -> dict:
        paths = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--black-box", "toy"]
        decisions.main([*paths, *words], load_pipeline=lambda: pipe)
        return json.loads(capsys.readouterr().out)

    return call


def test_every_reading_of_both_lines_is_measured(run, pipe: DeDiMPipeline, tmp_path: Path) -> None:
    scheduler = pipe.scheduler
    results = run("--first", "1", "--faces", "2", "--rounds", "3", "--json", str(tmp_path / "r.json"))
    assert (results["faces"], results["first_probe"], results["rounds"]) == (2, 2, 3)
    assert results["unprotected"]["rank1"] == {"white": 1, "toy": 1}
    variants = {(each["noise"], each["sigma_power"]): each for each in results["variants"]}
    assert list(variants) == [("alphas_cumprod", 1), ("alphas_cumprod", 2), ("printed", 1), ("printed", 2)]
    for each in variants.values():
        assert 0 < each["match_probability"] <= 1
        assert each["unet_calls_per_face"] == 6
        assert set(each["similarity"]) == {"white", "toy"}
    assert len({each["psnr"] for each in variants.values()}) == 4, "each reading does something else"
    assert pipe.scheduler is scheduler
    assert results["command"].startswith("python -m benchmarks.decisions --data ")
    assert {"seed", "commit", "torch", "threads"} <= set(results)
    assert json.loads((tmp_path / "r.json").read_text()) == results


def test_one_reading_alone_and_no_guidance(run) -> None:
    words = ("--first", "1", "--faces", "2", "--noises", "alphas_cumprod", "--sigma-powers", "1")
    (guided,) = run(*words)["variants"]
    results = run(*words, "--scale", "0")
    assert results["guidance_scale"] == 0
    (alone,) = results["variants"]
    assert (guided["noise"], guided["sigma_power"]) == ("alphas_cumprod", 1)
    assert alone["psnr"] > guided["psnr"]


def test_line_3_as_printed_has_the_variance_of_one_step() -> None:
    scheduler = decisions.PrintedNoiseScheduler.from_config(make_scheduler().config)
    x_0, noise = torch.full((2, 1, 1, 1), 0.5), torch.ones(2, 1, 1, 1)
    noisy = scheduler.add_noise(x_0, noise, torch.tensor([99]))
    mean, beta = float(scheduler.alphas_cumprod[99]) ** 0.5, float(scheduler.betas[99])
    assert beta == pytest.approx(0.00053, abs=5e-6), "docs/paper.md, D1"
    assert noisy.flatten().tolist() == pytest.approx([0.5 * mean + beta**0.5] * 2)
    variance = 1 - float(scheduler.alphas_cumprod[99])
    right = make_scheduler().add_noise(x_0, noise, torch.tensor([99]))
    assert right.flatten().tolist() == pytest.approx([0.5 * mean + variance**0.5] * 2)


def test_too_few_probes_are_named(run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"has 3 probes, too few for 8 after the first 350"):
        run()
    with pytest.raises(SystemExit):
        run("--rounds", "0")
    assert "--rounds: expected at least 1, got 0" in capsys.readouterr().err
