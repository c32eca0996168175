from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy_experiment as toy
from toys import tiny_preset

from benchmarks import _trial_directions, _trial_stream, trials
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.pipeline.presets import PRESETS


class Boxes:
    """MTCNN's way to answer: boxes of one photo, or of each photo of a batch."""

    def detect(self, photos: Any, landmarks: bool) -> tuple[Any, None, None]:
        box = np.zeros((1, 4))
        return (box if np.ndim(photos) == 3 else [box] * len(photos)), None, None


@pytest.fixture
def run(pipe: DeDiMPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(_trial_stream, "FaceDetector", lambda device: SimpleNamespace(_networks=Boxes))
    monkeypatch.setattr(trials, "load_recogniser", lambda name: Recogniser.of(name, toy.MeanColour()))
    # a compiler takes a minute for each network
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: None)
    preset = tiny_preset(guidance="estimate", guidance_scale=0.02, threshold=0.01, threshold_margin=0.0)
    monkeypatch.setitem(PRESETS, "fast", preset)
    pipe.face_detector = toy.detect
    data = toy.write_experiment(tmp_path / "e.parquet", people := ["red", "green", "blue"], people)

    def call(*words: str) -> dict:
        fixed = f"--photos 3 --places 2 --repeats 1 --data {data} --black-box toy".split()
        trials.main([*fixed, *words], load_pipeline=lambda: pipe)
        return json.loads(capsys.readouterr().out)

    return call


def test_every_trial_has_its_variants_side_by_side(run, tmp_path: Path) -> None:
    results = run("--json", str(tmp_path / "trials.json"))
    found = results["trials"]
    assert list(found) == list(trials.TRIALS)
    assert found["detector"]["photos_of_equal_size"] == 3
    assert found["detector"]["same_number_of_faces"]
    queue = found["queue"]
    assert queue["faces"] == 3
    assert queue["batches"]["unet_calls_per_face"] == queue["queue"]["unet_calls_per_face"] > 0
    parts = [value for name, value in found["beside"].items() if name.startswith("of_these")]
    assert sum(parts) <= found["beside"]["seconds_per_photo_one_after_another"] + 0.01
    denoiser = found["denoiser"]
    assert denoiser["whole"]["psnr_in_mask_to_whole"] is None  # equal
    assert denoiser["float32"]["psnr_in_mask"] is not None
    assert found["recogniser"]["cosine_of_gradients"] == pytest.approx(1)
    directions = found["directions"]
    assert -1 <= directions["cosine_of_pushes_within_a_round"] <= 1
    assert {"every_step", "first_of_the_round", "momentum"} <= set(directions)
    assert json.loads((tmp_path / "trials.json").read_text()) == results


def test_only_the_chosen_trials_run(run) -> None:
    assert list(run("--only", "queue")["trials"]) == ["queue"]


def test_no_face_is_said(run, pipe: DeDiMPipeline) -> None:
    pipe.face_detector = lambda photo: []
    with pytest.raises(ValueError, match="no face was found in the first 3 photos"):
        run("--only", "denoiser")


def test_held_and_momentum_take_directions_from_before() -> None:
    settings = tiny_preset(guidance="estimate", guidance_scale=0.02, smoothing=0.0)
    mask = torch.ones(1, 1, 2, 2)
    first, second = torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    second[..., 0, :] = -1  # at a right angle to the first
    momentum = _trial_directions.MomentumGuidance(settings)
    momentum.faces = [b"a"]
    momentum._direction(first, mask)
    both = momentum._direction(second, mask)
    share = torch.cosine_similarity(both.flatten(), first.flatten(), dim=0)
    assert share == pytest.approx(0.9 / (1 + 0.9**2) ** 0.5, abs=1e-4)
    assert both.square().mean() == pytest.approx(1)
    momentum.faces = [b"b"]  # a face that was not pushed before
    assert torch.allclose(momentum._direction(second, mask), second)
