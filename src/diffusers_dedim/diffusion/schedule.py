"""The noise schedule of the paper and its mapping to diffusers timesteps.

The paper counts t = 1..T, diffusers counts timesteps 0..T-1: the paper's t is timestep t - 1.
"""

from __future__ import annotations

from diffusers import DDPMScheduler
from torch import Tensor


def make_scheduler(num_train_timesteps: int = 1000) -> DDPMScheduler:
    """Build the cosine DDPM scheduler of the paper (section 4: T = 1000, Nichol & Dhariwal 2021).

    ``fixed_small`` is the posterior variance of Eq. 3; samples are not clipped, as Algorithm 2 does not.

    Args:
        num_train_timesteps: T, at least 1; that of the denoiser's training.

    Returns:
        A `DDPMScheduler` that predicts the noise; its timesteps 0..T-1 are the paper's t = 1..T.

    Example:
        >>> scheduler = make_scheduler()
        >>> round(float(scheduler.alphas_cumprod[99]), 3)  # t = 100: a little noise
        0.972
    """
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        prediction_type="epsilon",
        clip_sample=False,
    )


def dedim_timesteps(start_timestep: int, num_inference_steps: int) -> list[int]:
    """Space ``num_inference_steps`` diffusers timesteps evenly over the paper's t = start_timestep..1.

    Args:
        start_timestep: the paper's t_0, at least 1.
        num_inference_steps: 1..start_timestep; equal to it gives every timestep, as Algorithm 2 prints.

    Returns:
        Falling timesteps; the first is ``start_timestep - 1``.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> dedim_timesteps(100, 5)
        [99, 79, 59, 39, 19]
    """
    if start_timestep < 1:
        raise ValueError(f"start_timestep: expected at least 1, got {start_timestep}.")
    if not 1 <= num_inference_steps <= start_timestep:
        raise ValueError(
            f"num_inference_steps: expected 1..{start_timestep} (start_timestep), got {num_inference_steps}."
        )
    stride = start_timestep / num_inference_steps
    return [round(start_timestep - index * stride) - 1 for index in range(num_inference_steps)]


def predict_x_0(scheduler: DDPMScheduler, eps: Tensor, timesteps: Tensor, x_t: Tensor) -> Tensor:
    """Estimate the clean image from the predicted noise: x_0 = (x_t - sqrt(1 - ac_t) eps) / sqrt(ac_t).

    Args:
        scheduler: gives ``alphas_cumprod``.
        eps: predicted noise, ``[N, C, H, W]``.
        timesteps: diffusers timesteps ``[N]`` or a scalar tensor, 0..T-1.
        x_t: noisy images ``[N, C, H, W]`` in about [-1, 1].

    Returns:
        The estimate ``[N, C, H, W]``, not clipped.
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(x_t.device, x_t.dtype)[timesteps.to(x_t.device)]
    alphas_cumprod = alphas_cumprod.reshape(-1, 1, 1, 1)
    x_0: Tensor = (x_t - (1 - alphas_cumprod).sqrt() * eps) / alphas_cumprod.sqrt()
    return x_0


def posterior_std(scheduler: DDPMScheduler, timestep: int) -> float:
    """Return sigma_t, the standard deviation of q(x_{t-1} | x_t, x_0) (below Eq. 3), for the set timesteps.

    Args:
        scheduler: with its timesteps set, or with all T of them.
        timestep: diffusers timestep, 0..T-1.

    Returns:
        A standard deviation in [-1, 1] units, not a variance; 0 at the last timestep.

    Raises:
        TypeError: the scheduler is not DDPM's: other solvers have no sigma_t.

    Example:
        >>> round(posterior_std(make_scheduler(), 99), 4)
        0.0227
    """
    ac_t, ac_prev = _alphas_cumprod_pair(scheduler, timestep)
    return float(((1 - ac_prev) / (1 - ac_t) * (1 - ac_t / ac_prev)) ** 0.5)


def posterior_x_0_weight(scheduler: DDPMScheduler, timestep: int) -> float:
    """Return how much the posterior mean of x_{t-1} moves when the x_0 estimate moves by one.

    The mean is linear in x_0 with the factor sqrt(ac_prev) beta_t / (1 - ac_t) (Ho et al. 2020, Eq. 7).

    Args:
        scheduler: with its timesteps set, or with all T of them.
        timestep: diffusers timestep, 0..T-1.

    Returns:
        The factor, above 0 and at most 1; 1 at the last timestep, where the estimate is the result.

    Raises:
        TypeError: the scheduler is not DDPM's.

    Example:
        >>> scheduler = make_scheduler()
        >>> scheduler.set_timesteps(timesteps=dedim_timesteps(100, 2))
        >>> [round(posterior_x_0_weight(scheduler, timestep), 2) for timestep in (99, 49)]
        [0.72, 1.0]
    """
    ac_t, ac_prev = _alphas_cumprod_pair(scheduler, timestep)
    return float(ac_prev**0.5 * (1 - ac_t / ac_prev) / (1 - ac_t))


def _alphas_cumprod_pair(scheduler: DDPMScheduler, timestep: int) -> tuple[float, float]:
    """Return alphas_cumprod at ``timestep`` and at the one that follows it (1 after the last), in float64."""
    ddpm = getattr(scheduler, "solver", scheduler)  # what a `SolverStepper` holds
    if not isinstance(ddpm, DDPMScheduler):
        raise TypeError(
            "scheduler: the paper's guidance is scaled by sigma_t, the spread of DDPM's random step, which "
            f"{type(ddpm).__name__} does not take; use EstimateGuidance (preset 'fast') or a DDPMScheduler."
        )
    previous = int(ddpm.previous_timestep(timestep))
    ac_t = float(scheduler.alphas_cumprod[timestep])
    return ac_t, float(scheduler.alphas_cumprod[previous]) if previous >= 0 else 1.0
