from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_dedim.diffusion.schedule import (
    dedim_timesteps,
    make_scheduler,
    posterior_std,
    predict_x_0,
    shift_estimate,
)

# float64 with one division by beta_t or 1 - alphas_cumprod, both at least 4e-5: 1e-16 / 4e-5 is 3e-12
EXACT = 1e-10


def double_scheduler(timesteps: list[int] | None = None) -> DDPMScheduler:
    """The shipped schedule with its cumulative product in float64, so that equations can be compared."""
    scheduler = make_scheduler()
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(timesteps=timesteps or dedim_timesteps(100, 100))
    return scheduler


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_t, eps = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x_t, eps


def test_schedule_is_the_cosine_of_nichol_and_dhariwal() -> None:
    ours = make_scheduler().alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    printed = f / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    # 1000 float32 products lose up to 1000 * 6e-8; the last two betas are clipped at 0.999 (their Eq. 17)
    torch.testing.assert_close(ours[:998], printed[:998], rtol=1e-4, atol=1e-7)
    assert float(ours[99]) == pytest.approx(0.972, abs=5e-4)  # DESIGN: the paper's t_0 = 100


def test_step_is_mu_plus_sigma_z() -> None:
    """Eq. 3 and Algorithm 1, read with 1 / sqrt(alpha_t) before the bracket, for every t = 100..1."""
    scheduler, (x_t, eps) = double_scheduler(), pair()
    betas = scheduler.betas.double()
    alphas_hat = torch.cumprod(1 - betas, 0)
    for t in range(100, 0, -1):
        beta, hat = betas[t - 1], alphas_hat[t - 1]
        before = alphas_hat[t - 2] if t > 1 else torch.ones((), dtype=torch.float64)
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        mu = (x_t - beta / (1 - hat).sqrt() * eps) / (1 - beta).sqrt()
        sigma = ((1 - before) / (1 - hat) * beta).sqrt()
        expected = mu + sigma * (z if t > 1 else 0)
        ours = scheduler.step(eps, t - 1, x_t, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(ours, expected, rtol=0, atol=EXACT)
        assert posterior_std(scheduler, t - 1) == pytest.approx(float(sigma), abs=EXACT)


def test_mu_as_printed_would_be_another_image() -> None:
    """1 / sqrt of the cumulative product, as Eq. 3 prints, scales x_99 by 1.4 % at once: not a mean."""
    scheduler, (x_t, eps) = double_scheduler(), pair()
    betas, hat = scheduler.betas.double(), scheduler.alphas_cumprod
    printed = (x_t - betas[99] / (1 - hat[99]).sqrt() * eps) / hat[99].sqrt()
    right = (x_t - betas[99] / (1 - hat[99]).sqrt() * eps) / (1 - betas[99]).sqrt()
    assert float((printed / right - 1).abs().min()) > 0.01


def test_shipped_float32_step_is_close_to_the_equation() -> None:
    shipped, exact, (x_t, eps) = make_scheduler(), double_scheduler(), pair()
    shipped.set_timesteps(timesteps=dedim_timesteps(100, 100))
    for timestep in range(99, 0, -1):
        one, two = (
            scheduler.step(
                eps.to(dtype), timestep, x_t.to(dtype), generator=torch.Generator().manual_seed(0)
            ).pred_original_sample.double()
            for scheduler, dtype in ((shipped, torch.float32), (exact, torch.float64))
        )
        # 1 - alphas_cumprod is 4e-5 at the smallest and float32 knows alphas_cumprod to 6e-8: 1e-3 of a
        # noise whose standard deviation is then 0.006, times |eps| < 4
        torch.testing.assert_close(one, two, rtol=0, atol=5e-4)


@pytest.mark.parametrize("steps", [1, 7, 10, 100])
def test_posterior_std_of_respaced_timesteps_is_the_schedulers(steps: int) -> None:
    timesteps = dedim_timesteps(100, steps)
    scheduler = double_scheduler(timesteps)
    for timestep in timesteps[:-1]:
        theirs = float(scheduler._get_variance(timestep)) ** 0.5
        assert posterior_std(scheduler, timestep) == pytest.approx(theirs, abs=EXACT)
    assert posterior_std(scheduler, timesteps[-1]) == 0


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_a_shifted_estimate_moves_the_posterior_mean_as_its_formula_says(steps: int) -> None:
    """The mean is linear in x_0 with sqrt(ac_prev) beta / (1 - ac) (Ho et al. 2020, Eq. 7); the noise stays."""
    timesteps = dedim_timesteps(100, steps)
    scheduler, (x_t, eps) = double_scheduler(timesteps), pair()
    levels = [*scheduler.alphas_cumprod[timesteps].tolist(), 1.0]
    shift = 0.1 * torch.randn(eps.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for timestep, level, following in zip(timesteps, levels[:-1], levels[1:], strict=True):
        shifted_eps = shift_estimate(scheduler, eps, torch.tensor(timestep), shift)
        before, after = (
            scheduler.step(e, timestep, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
            for e in (eps, shifted_eps)
        )
        weight = following**0.5 * (1 - level / following) / (1 - level)
        torch.testing.assert_close(after - before, weight * shift, rtol=0, atol=EXACT)


def test_last_step_lands_on_the_shifted_estimate() -> None:
    """A push there reaches the result without passing the denoiser."""
    for steps in (1, 10, 100):
        timesteps = dedim_timesteps(100, steps)
        scheduler, (x_t, eps) = double_scheduler(timesteps), pair()
        last = torch.tensor(timesteps[-1])
        target = predict_x_0(scheduler, eps, last, x_t) + 0.25
        shifted_eps = shift_estimate(scheduler, eps, last, torch.full_like(eps, 0.25))
        landed = scheduler.step(
            shifted_eps, timesteps[-1], x_t, generator=torch.Generator()
        ).pred_original_sample
        torch.testing.assert_close(landed, target, rtol=0, atol=EXACT)


def test_a_shift_is_that_of_the_estimate_each_face_at_its_own_timestep() -> None:
    scheduler, (x_t, eps) = double_scheduler(), pair()
    timesteps = torch.tensor([99, 5])
    shift = torch.linspace(-1, 1, eps.numel(), dtype=torch.float64).reshape(eps.shape)
    before = predict_x_0(scheduler, eps, timesteps, x_t)
    after = predict_x_0(scheduler, shift_estimate(scheduler, eps, timesteps, shift), timesteps, x_t)
    torch.testing.assert_close(after - before, shift, rtol=0, atol=EXACT)
    assert torch.equal(shift_estimate(scheduler, eps, timesteps, 0 * shift), eps)


def test_predict_x_0_undoes_add_noise_and_agrees_with_the_scheduler() -> None:
    scheduler, (x_0, eps) = double_scheduler(), pair()
    timesteps = torch.tensor([99, 5])
    x_t = scheduler.add_noise(x_0, eps, timesteps)
    torch.testing.assert_close(predict_x_0(scheduler, eps, timesteps, x_t), x_0, rtol=0, atol=EXACT)
    theirs = scheduler.step(eps, 99, x_t).pred_original_sample
    torch.testing.assert_close(predict_x_0(scheduler, eps, torch.tensor(99), x_t), theirs, rtol=0, atol=EXACT)


def test_all_timesteps_are_the_papers() -> None:
    assert dedim_timesteps(100, 100) == list(range(99, -1, -1))
    assert dedim_timesteps(1, 1) == [0]


def test_any_spacing_falls_from_t_0_and_stays_in_range() -> None:
    for start in range(1, 121):
        for steps in range(1, start + 1):
            timesteps = dedim_timesteps(start, steps)
            assert len(timesteps) == steps
            assert timesteps[0] == start - 1
            assert timesteps[-1] >= 0
            assert all(a > b for a, b in pairwise(timesteps))


@pytest.mark.parametrize(
    ("start", "steps", "text"),
    [
        (0, 1, "start_timestep: expected at least 1, got 0."),
        (10, 11, "num_inference_steps: expected 1..10 (start_timestep), got 11."),
        (10, 0, "num_inference_steps: expected 1..10 (start_timestep), got 0."),
    ],
)
def test_out_of_range_is_refused(start: int, steps: int, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        dedim_timesteps(start, steps)
