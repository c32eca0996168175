from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from toys import tiny_preset

from diffusers_dedim import PRESETS, EstimateGuidance, IdentityGuidance
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.faces import keep_between_brows, keep_eyes, landmark_mask
from diffusers_dedim.pipeline.presets import resolve_preset


def test_the_paper_preset_is_section_4() -> None:
    paper = PRESETS["paper"]
    assert (paper.start_timestep, paper.num_inference_steps) == (100, 100)
    assert (paper.guidance_scale, paper.max_rounds, paper.threshold) == (250, 100, 0.2)
    assert (paper.mask_radius, paper.mask_feather) == (10, 0)
    assert (paper.keep_eyes, paper.denoise_window, paper.error_correction) == (0, False, 0)
    guidance = paper.make_guidance()
    assert isinstance(guidance, IdentityGuidance)
    assert (guidance.scale, guidance.sigma_power) == (250, 1)  # D2: as Algorithm 2 prints


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_can_run(name: str) -> None:
    preset = resolve_preset(name)
    timesteps = dedim_timesteps(preset.start_timestep, preset.num_inference_steps)
    assert len(timesteps) == preset.num_inference_steps
    assert preset.make_guidance() is not None
    assert 0 <= preset.mask_feather <= preset.mask_radius


def test_estimate_guidance_stops_pushing_no_later_than_the_face_is_done() -> None:
    guidance = tiny_preset(guidance="estimate", guidance_scale=0.02, threshold=0.4).make_guidance()
    assert isinstance(guidance, EstimateGuidance)
    assert guidance.stop_similarity <= 2 * 0.4 - 1 + 1e-12  # a stop above could never reach the threshold


def test_scale_0_has_no_guidance() -> None:
    assert tiny_preset(guidance_scale=0).make_guidance() is None


def test_overrides_replace_and_none_keeps() -> None:
    preset = resolve_preset("paper", max_rounds=3, threshold=None, guidance_scale=0)
    assert (preset.max_rounds, preset.threshold, preset.guidance_scale) == (3, 0.2, 0)
    assert PRESETS["paper"].max_rounds == 100
    mine = tiny_preset()
    assert resolve_preset(mine) == mine


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": 0.0}, "threshold: expected a probability strictly between 0 and 1 (Eq. 4), got 0.0."),
        ({"threshold": 1.0}, "threshold: expected a probability strictly between 0 and 1 (Eq. 4), got 1.0."),
        (
            {"threshold": -0.6},
            "threshold: expected a probability strictly between 0 and 1 (Eq. 4), got -0.6.",
        ),
        ({"threshold": float("nan")}, "threshold: expected a probability strictly between 0 and 1"),
        ({"max_rounds": 0}, "max_rounds: expected a whole number of at least 1, got 0."),
        ({"max_rounds": 3.0}, "max_rounds: expected a whole number of at least 1, got 3.0."),
        ({"start_timestep": 99.5}, "start_timestep: expected a whole number of at least 1, got 99.5."),
        ({"guidance_scale": -1}, "guidance_scale: expected a finite number of 0 or more, got -1."),
        (
            {"guidance": "log-probability"},
            "guidance: expected 'log_probability' or 'estimate', got 'log-probability'.",
        ),
    ],
)
def test_out_of_range_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve_preset("paper", **changes)


def test_a_small_threshold_is_its_own_limit_for_the_margin() -> None:
    assert resolve_preset("fast", threshold=0.3).threshold_margin == PRESETS["fast"].threshold_margin
    assert resolve_preset("fast", threshold=0.05).sampler_threshold == pytest.approx(0.025)
    with pytest.raises(ValueError, match="threshold_margin: expected 0 or more and less than the threshold"):
        resolve_preset("fast", threshold=0.05, threshold_margin=0.06)  # where both were asked for


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"preset: expected one of \[.*'paper'.*\] or a DeDiMPreset, got 'best'"
    ):
        resolve_preset("best")


def test_the_mask_is_that_of_the_landmarks_less_the_share_of_the_eyes_that_stays() -> None:
    landmarks = torch.rand(2, 51, 2, generator=torch.Generator().manual_seed(0)) * 112
    plain = landmark_mask(landmarks, 10, 4)
    settings = {"mask_radius": 10, "mask_feather": 4}
    assert torch.equal(tiny_preset(**settings).make_mask(landmarks), plain)
    kept = tiny_preset(**settings, keep_eyes=0.8).make_mask(landmarks)
    assert torch.equal(kept, keep_eyes(plain, landmarks, 0.8))
    calm = tiny_preset(**settings, keep_between_brows=0.6).make_mask(landmarks)
    assert torch.equal(calm, keep_between_brows(plain, landmarks, 0.6))
    assert not torch.equal(kept, plain)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["keep_eyes", "keep_between_brows", "error_correction"])
def test_a_share_out_of_range_is_refused_by_its_name(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a share in \[0, 1\]"):
        tiny_preset(**{name: share})


@pytest.mark.parametrize("name", ["gentle", "fast", "strong"])
def test_who_is_told_apart_is_pushed_in_shorter_steps_near_the_same_aim(name: str) -> None:
    preset = PRESETS[name]
    apart = preset.told_apart()
    assert 0 < apart.near_push < preset.near_push
    assert apart.guidance_scale == preset.guidance_scale
    assert (apart.spread, apart.spared_structure) == (0, 0)
    assert 0 < apart.realism < preset.realism
    aims = ("threshold", "threshold_margin", "max_rounds", "avoid_limit", "avoid_similarity", "mask_radius")
    assert all(getattr(apart, aim) == getattr(preset, aim) for aim in aims)


def test_the_papers_guidance_tells_nobody_apart() -> None:
    assert PRESETS["paper"].told_apart() is PRESETS["paper"]


def test_noise_serves_two_rounds_but_in_the_papers_setting() -> None:
    assert [PRESETS[name].reuse_noise for name in ("paper", "gentle", "fast", "strong")] == [
        False,
        True,
        True,
        True,
    ]
