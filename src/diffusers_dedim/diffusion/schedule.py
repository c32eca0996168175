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


def shift_estimate(scheduler: DDPMScheduler, eps: Tensor, timesteps: Tensor, shift: Tensor) -> Tensor:
    """Return the noise whose x_0 estimate is larger by ``shift`` while x_t stays where it is.

    From x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps: eps' = eps - sqrt(ac_t / (1 - ac_t)) shift. Where the shift is 0,
    the noise keeps its bits.

    Args:
        scheduler: gives ``alphas_cumprod``.
        eps: predicted noise, ``[N, C, H, W]``.
        timesteps: diffusers timesteps ``[N]`` or a scalar tensor, 0..T-1.
        shift: change of the x_0 estimate, ``[N, C, H, W]`` in [-1, 1] units.

    Example:
        >>> import torch
        >>> eps, shift = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)
        >>> scheduler, t = make_scheduler(), torch.tensor(99)
        >>> predict_x_0(scheduler, shift_estimate(scheduler, eps, t, shift), t, eps).mean()  # of x_t = eps = 0
        tensor(0.1000)
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(eps.device, eps.dtype)[timesteps.to(eps.device)]
    alphas_cumprod = alphas_cumprod.reshape(-1, 1, 1, 1)
    shifted: Tensor = eps - (alphas_cumprod / (1 - alphas_cumprod)).sqrt() * shift
    return shifted


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
    if not isinstance(scheduler, DDPMScheduler):
        solver = getattr(scheduler, "solver", scheduler)  # what a `SolverStepper` holds
        raise TypeError(
            "scheduler: the paper's guidance is scaled by sigma_t, the spread of DDPM's random step, which "
            f"{type(solver).__name__} does not take; use EstimateGuidance (preset 'fast') or a DDPMScheduler."
        )
    previous = int(scheduler.previous_timestep(timestep))
    ac_t = float(scheduler.alphas_cumprod[timestep])
    ac_prev = float(scheduler.alphas_cumprod[previous]) if previous >= 0 else 1.0
    return float(((1 - ac_prev) / (1 - ac_t) * (1 - ac_t / ac_prev)) ** 0.5)
