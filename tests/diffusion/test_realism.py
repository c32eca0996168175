"""A push back towards what a discriminator takes for a photo."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import MEAN_FACE, seeded, tiny_preset, tiny_unet

from diffusers_dedim import DeDiMPipeline, EstimateGuidance, LandmarkRegressor, MobileFaceNet, make_scheduler
from diffusers_dedim.diffusion.realism import realism_gradient
from diffusers_dedim.diffusion.schedule import dedim_timesteps, predict_x_0
from diffusers_dedim.diffusion.solvers import prepare_scheduler
from diffusers_dedim.models import PatchDiscriminator


class Darkness(nn.Module):
    """Takes what is dark for protected; its answer has an eighth of the sides."""

    def forward(self, crops: Tensor, noise_level: float) -> Tensor:
        return -nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 8)


def crops(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Changed and original ``[N, 3, 32, 32]``, and a mask of the left half."""
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(count, 3, 32, 32, generator=generator) - 0.5
    mask = torch.zeros(count, 1, 32, 32)
    mask[..., :16] = 1
    return original - 0.2, original, mask


def test_it_leads_from_what_looks_protected_within_the_mask() -> None:
    changed, original, mask = crops()
    gradient = realism_gradient(Darkness(), changed, original, mask, 0)
    assert (gradient[..., :16] < 0).all()  # subtracted, it makes brighter
    assert (gradient[..., 21:] == 0).all()  # the smoothing reaches a few px beyond
    assert torch.equal(gradient[:, 0], gradient[:, 2])


def test_a_place_that_looks_like_a_photo_already_weighs_less() -> None:
    changed, original, mask = crops()
    changed[..., :8] = original[..., :8] + 0.8
    gradient = realism_gradient(Darkness(), changed, original, mask, 0).abs()
    assert gradient[..., :4].max() < 0.5 * gradient[..., 10:14].min()


def test_no_single_pixel_is_drawn() -> None:
    changed, original, mask = crops()

    def speckled(images: Tensor, noise_level: float) -> Tensor:
        board = torch.ones(32, 32)
        board[::2, ::2] = board[1::2, 1::2] = -1
        return (images.mean(1, keepdim=True) * board).mean((2, 3), keepdim=True)

    gradient = realism_gradient(speckled, changed, original, torch.ones_like(mask), 0)
    flat = realism_gradient(Darkness(), changed, original, torch.ones_like(mask), 0)
    assert gradient[..., 8:-8, 8:-8].abs().max() < 1e-3 * flat.abs().max()


def test_a_face_does_not_depend_on_who_is_beside_it_nor_on_torchs_own_generator() -> None:
    discriminator = PatchDiscriminator(0.2).eval()
    changed, original, mask = (nn.functional.interpolate(each, size=112, mode="nearest") for each in crops(3))
    together = realism_gradient(discriminator, changed, original, mask, 1)
    torch.manual_seed(7)
    for row in range(3):
        one = slice(row, row + 1)
        alone = realism_gradient(discriminator, changed[one], original[one], mask[one], 1)
        torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-7)  # another batch size
    other_step = realism_gradient(discriminator, changed, original, mask, 2)
    assert not torch.equal(other_step, together)


def step(realism: float, step_index: int, **parts: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The clean estimate before and after `before_step`, and the mask; ten timesteps, of which seven hide."""
    scheduler = prepare_scheduler(make_scheduler(), dedim_timesteps(100, 10), make_scheduler().alphas_cumprod)
    changed, original, mask = crops()
    encoder = lambda images: nn.functional.normalize(images.flatten(1))  # noqa: E731
    pipeline = SimpleNamespace(scheduler=scheduler, face_encoder=encoder, **parts)
    timestep = int(scheduler.timesteps[step_index])
    given = {
        "sample": changed,
        "noise_pred": torch.zeros_like(changed),
        "x_org": original,
        "mask": mask,
        "reference": encoder(original),
    }
    guidance = EstimateGuidance(0.05, -0.9, smoothing=0, realism=realism)
    eps = guidance.before_step(pipeline, step_index, timestep, dict(given))["noise_pred"]
    time = torch.tensor(timestep)
    before, after = (predict_x_0(scheduler, each, time, changed) for each in (given["noise_pred"], eps))
    return before, after, mask


@pytest.mark.parametrize("step_index", [0, 9])
def test_without_a_discriminator_there_is_no_such_push(step_index: int) -> None:
    plain = step(0.0, step_index)[1]
    assert torch.equal(step(0.5, step_index)[1], plain)
    assert torch.equal(step(0.5, step_index, discriminator=None)[1], plain)


def test_the_last_steps_have_it_alone_and_as_strong_as_asked() -> None:
    assert torch.equal(*step(0.0, 9, discriminator=Darkness())[:2])
    before, after, mask = step(0.5, 9, discriminator=Darkness())
    moved = (after - before)[mask.expand_as(after) > 0]
    assert (moved > 0).all()
    torch.testing.assert_close(moved.square().mean().sqrt(), torch.tensor(0.025), rtol=0.01, atol=0)


def test_beside_the_other_push_the_two_together_have_its_size() -> None:
    before, after, mask = step(0.5, 0, discriminator=Darkness())
    alone = step(0.0, 0, discriminator=Darkness())[1]
    inside = mask.expand_as(after) > 0
    assert not torch.equal(after, alone)
    assert (after - alone)[inside].mean() > 0  # brighter
    moved = (after - before)[inside]
    torch.testing.assert_close(moved.square().mean().sqrt(), torch.tensor(0.05), rtol=0.01, atol=0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_is_no_strength_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="realism: expected a finite number of 0 or more"):
        EstimateGuidance(realism=value)
    with pytest.raises(ValueError, match="realism: expected a finite number of 0 or more"):
        tiny_preset(guidance="estimate", guidance_scale=0.05, realism=value)


def test_the_network_is_saved_and_loaded_and_may_be_missing(tmp_path: Path) -> None:
    landmarker = LandmarkRegressor()
    landmarker.mean_shape.copy_(MEAN_FACE)
    parts = tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker
    DeDiMPipeline(*parts, discriminator=PatchDiscriminator(0.2)).save_pretrained(tmp_path / "whole")
    loaded = DeDiMPipeline.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert isinstance(loaded.discriminator, PatchDiscriminator)
    assert loaded.discriminator.config.width == 0.2
    assert loaded.discriminator.dtype == torch.float32
    assert (tmp_path / "whole" / "discriminator" / "diffusers_dedim.py").is_file()
    assert DeDiMPipeline.from_pipe(loaded).discriminator is loaded.discriminator
    DeDiMPipeline(*parts).save_pretrained(tmp_path / "old")
    assert not (tmp_path / "old" / "discriminator").exists()
    assert DeDiMPipeline.from_pretrained(tmp_path / "old").discriminator is None


def test_it_changes_what_the_sampler_gives(pipe: DeDiMPipeline) -> None:
    preset = tiny_preset(guidance="estimate", guidance_scale=0.05, threshold=0.01, realism=0.5)
    x_org, mask = torch.zeros(1, 3, 112, 112), torch.ones(1, 1, 112, 112)
    results = []
    for discriminator in (None, Darkness()):
        pipe.discriminator = discriminator
        results.append(pipe.sampler(preset)(x_org, mask, generators=seeded(0), max_rounds=1).crops)
    assert not torch.equal(*results)
