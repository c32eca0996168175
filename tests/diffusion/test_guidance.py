from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toys import ToyEncoder

from diffusers_dedim.diffusion.guidance import (
    EstimateGuidance,
    IdentityGuidance,
    _local_contrast,
    log_probability_gradient,
)
from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler, posterior_std, predict_x_0

SIZE = 6


def setting(count: int = 2) -> tuple[ToyEncoder, torch.Tensor, torch.Tensor]:
    """Toy encoder in float64, noisy images and the reference embeddings of other images."""
    generator = torch.Generator().manual_seed(1)
    encoder = ToyEncoder(SIZE, 8).double().requires_grad_(False)
    x_org, noise = torch.randn(2, count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) * 0.3
    return encoder, x_org + noise, encoder(x_org)


def tensors(count: int = 2) -> tuple[SimpleNamespace, dict[str, torch.Tensor]]:
    encoder, x_t, reference = setting(count)
    scheduler = make_scheduler()
    scheduler.set_timesteps(timesteps=dedim_timesteps(100, 10))
    generator = torch.Generator().manual_seed(2)
    eps = torch.randn(x_t.shape, generator=generator, dtype=torch.float64)
    given = {
        "sample": x_t,
        "prev_sample": x_t * 0.9,
        "noise_pred": eps,
        "x_org": x_t * 0.5,
        "mask": torch.ones(count, 1, SIZE, SIZE, dtype=torch.float64),
        "reference": reference,
    }
    return SimpleNamespace(face_encoder=encoder, scheduler=scheduler), given


def test_match_probability_is_equation_4() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert match_probability(torch.cat([a, b, -a]), a.expand(3, 2)).tolist() == [1.0, 0.5, 0.0]


def test_gradient_agrees_with_finite_differences() -> None:
    encoder, x_t, reference = setting()
    ours = log_probability_gradient(encoder, x_t, reference)

    def log_other(images: torch.Tensor) -> torch.Tensor:
        cosine = torch.nn.functional.cosine_similarity(encoder(images), reference)
        return torch.log(1 - (cosine + 1) / 2)

    step = 1e-5
    for index in range(3 * SIZE * SIZE):
        direction = torch.zeros(3 * SIZE * SIZE, dtype=torch.float64)
        direction[index] = step
        shift = direction.reshape(1, 3, SIZE, SIZE)
        slope = (log_other(x_t + shift) - log_other(x_t - shift)) / (2 * step)
        # central differences: error step^2 times a third derivative of order 1, and 1e-16 / step rounding
        torch.testing.assert_close(ours.flatten(1)[:, index], slope, rtol=1e-6, atol=1e-8)


def test_gradient_is_each_faces_own() -> None:
    encoder, x_t, reference = setting(3)
    together = log_probability_gradient(encoder, x_t, reference)
    for row in range(3):
        alone = log_probability_gradient(encoder, x_t[row : row + 1], reference[row : row + 1])
        # a matrix product of another height may add in another order
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-14)


def test_gradient_at_the_original_is_finite() -> None:
    """log(1 - p) is -inf where p = 1, but p has its peak there, so no direction leads away: line 3's noise does."""
    encoder, x_t, _ = setting()
    # float64 rounding of a gradient that is 0, over the least 1 - p of a thousandth
    assert log_probability_gradient(encoder, x_t, encoder(x_t)).abs().max() < 1e-10


def test_close_to_the_original_the_gradient_still_leads_away() -> None:
    """Where 1 - p is under the clamp the length is bounded, but the direction is the paper's."""
    encoder, x_t, _ = setting()
    near = x_t + 1e-3 * torch.randn(
        x_t.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    gradient = log_probability_gradient(encoder, near, encoder(x_t))
    before = match_probability(encoder(near), encoder(x_t))
    after = match_probability(encoder(near + 0.01 * gradient), encoder(x_t))
    assert (before > 0.999).all()
    assert (after < before).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradient_works_whatever_mode_the_caller_is_in(mode: type[torch.no_grad]) -> None:
    encoder, x_t, reference = setting()
    expected = log_probability_gradient(encoder, x_t, reference)
    with mode():
        assert torch.equal(log_probability_gradient(encoder, x_t * 1, reference * 1), expected)


@pytest.mark.parametrize("power", [1, 2])
def test_identity_guidance_is_line_7(power: int) -> None:
    pipeline, given = tensors()
    gradient = log_probability_gradient(pipeline.face_encoder, given["sample"], given["reference"])
    sigma = posterior_std(pipeline.scheduler, 59)
    expected = given["prev_sample"] + 250 * sigma**power * gradient
    ours = IdentityGuidance(250, sigma_power=power)(pipeline, 4, 59, given)["prev_sample"]
    torch.testing.assert_close(ours, expected, rtol=1e-15, atol=0)  # one product in another order


def test_identity_guidance_is_nothing_at_the_last_step_and_at_scale_0() -> None:
    for guidance, timestep in ((IdentityGuidance(250), 9), (IdentityGuidance(0), 59)):
        pipeline, given = tensors()
        before = given["prev_sample"].clone()
        assert torch.equal(guidance(pipeline, 0, timestep, given)["prev_sample"], before)


def test_estimate_guidance_moves_the_estimate_away() -> None:
    pipeline, given = tensors()
    before = given["noise_pred"]
    guidance = EstimateGuidance(0.05, -0.9, views=2, smoothing=0, cutoff_step_ratio=1)
    after = guidance.before_step(pipeline, 9, 9, dict(given))["noise_pred"]
    x_0, pushed = (
        predict_x_0(pipeline.scheduler, e, torch.tensor(9), given["sample"]) for e in (before, after)
    )
    old, new = (match_probability(pipeline.face_encoder(x), given["reference"]) for x in (x_0, pushed))
    assert (new < old).all()


def test_the_noise_it_returns_is_that_of_the_pushed_estimate() -> None:
    pipeline, given = tensors()
    guidance = EstimateGuidance(0.05, -0.9)
    x_0 = predict_x_0(pipeline.scheduler, given["noise_pred"], torch.tensor(59), given["sample"])
    *gradients, _ = guidance._similarity_gradients(
        pipeline.face_encoder, x_0, given["reference"], 4
    )  # the mask is 1
    expected = (x_0 - 0.05 * guidance._direction(*gradients, given["mask"], given["mask"])).clamp(-1, 1)
    eps = guidance.before_step(pipeline, 4, 59, dict(given))["noise_pred"]
    pushed = predict_x_0(pipeline.scheduler, eps, torch.tensor(59), given["sample"])
    # float64; the levels at 59 are float32's on both ways, and their quotient is multiplied in and out again
    torch.testing.assert_close(pushed, expected, rtol=0, atol=1e-12)


def test_estimate_guidance_does_nothing_after_the_step() -> None:
    pipeline, given = tensors()
    before = {name: tensor.clone() for name, tensor in given.items()}
    after = EstimateGuidance(0.05, -0.9)(pipeline, 4, 59, dict(given))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_push_is_stronger_where_the_photo_has_contrast_of_its_own() -> None:
    photo = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2
    photo[..., :16] *= 0.01  # a smooth cheek beside hair
    where = _local_contrast(photo) ** 0.5
    assert 0 < float(where[..., :8].max()) < 0.5 * float(where[..., 24:].min())


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float32, False)])
def test_the_gradient_is_computed_in_the_denoisers_half_precision(dtype: torch.dtype, expected: bool) -> None:
    pipeline, given = tensors()
    encoder, seen = pipeline.face_encoder, []

    def watched(crops: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return encoder(crops)

    pipeline.face_encoder, pipeline.unet = watched, SimpleNamespace(dtype=dtype)
    EstimateGuidance(stop_similarity=-0.9).before_step(pipeline, 0, 59, given)
    assert seen == [expected]


def test_estimate_guidance_leaves_a_finished_face_alone() -> None:
    pipeline, given = tensors()
    given["sample"], given["noise_pred"] = given["sample"] * 0.1, given["noise_pred"] * 0.1  # x_0 in [-1, 1]
    given["reference"] = -given["reference"]
    blend = predict_x_0(pipeline.scheduler, given["noise_pred"], torch.tensor(59), given["sample"])
    stop = 2 * match_probability(pipeline.face_encoder(blend), given["reference"]).max().item() - 1
    before = given["noise_pred"].clone()
    guidance = EstimateGuidance(stop_similarity=stop + 1e-6, views=1)
    assert torch.equal(guidance.before_step(pipeline, 4, 59, given)["noise_pred"], before)


def test_estimate_guidance_leaves_the_last_steps_to_the_denoiser() -> None:
    pipeline, given = tensors()  # ten timesteps
    guidance = EstimateGuidance(stop_similarity=-0.9, cutoff_step_ratio=0.7)
    before = given["noise_pred"].clone()
    assert torch.equal(guidance.before_step(pipeline, 7, 29, dict(given))["noise_pred"], before)
    assert not torch.equal(guidance.before_step(pipeline, 6, 39, dict(given))["noise_pred"], before)


@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_the_push_keeps_to_the_mask_and_has_the_asked_size(smoothing: float) -> None:
    gradient = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient[1] = 0
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    mask[:, :, 4:9] = 1
    direction = EstimateGuidance(smoothing=smoothing)._direction([gradient], [torch.ones(2)], mask, mask)
    assert direction[:, :, :4].abs().max() == direction[:, :, 9:].abs().max() == 0
    rms = direction[0][:, 4:9].square().mean().sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms))  # float64 rounding alone
    assert direction[1].abs().max() == 0  # a finished face: no division by zero


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: IdentityGuidance(sigma_power=3),
            "sigma_power: expected 1 (Algorithm 2) or 2 (the text), got 3.",
        ),
        (lambda: EstimateGuidance(step_size=-1), "step_size: expected 0 or more, got -1."),
        (
            lambda: EstimateGuidance(contrast_masking=1.5),
            "contrast_masking: expected a power in [0, 1], got 1.5.",
        ),
        (
            lambda: EstimateGuidance(views=3),
            "views: expected 1 (face and mirror image in turns) or 2 (both), got 3.",
        ),
        (lambda: EstimateGuidance(smoothing=-1), "smoothing: expected 0 or more crop px, got -1."),
        (
            lambda: EstimateGuidance(stop_similarity=1),
            "stop_similarity: expected a cosine in [-1, 1), got 1.",
        ),
    ],
)
def test_bad_settings_are_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make()  # type: ignore[operator]
