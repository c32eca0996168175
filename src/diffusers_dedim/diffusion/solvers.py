"""Schedulers other than the paper's: DDIM, DPM-Solver++ and Euler behind the calls that the sampler makes.

A guidance that changes the estimate of the clean image does so in the predicted noise, before the step: clipping,
memory and random numbers are each scheduler's own affair. See D13 in docs/paper.md.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

_KNOWN = (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)
_ADVICE = "Use one of DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler."


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that cannot take the steps of a round of Algorithm 2.

    Raises:
        TypeError: the scheduler is of another class; the text says why it cannot serve.
        ValueError: it is set to predict something else than the noise, or to end a round with noise left.
    """
    if not isinstance(scheduler, _KNOWN):
        raise TypeError(
            f"scheduler: {type(scheduler).__name__} cannot serve: {_why_not(scheduler)}. {_ADVICE}"
        )
    name, config = type(scheduler).__name__, scheduler.config
    if config.prediction_type != "epsilon":
        raise ValueError(
            f"scheduler: expected prediction_type 'epsilon', got {config.prediction_type!r} in {name}; the guidance "
            "reads the clean estimate off the predicted noise."
        )
    if config.get("final_sigmas_type", "zero") != "zero" or not config.get("set_alpha_to_one", True):
        raise ValueError(
            f"scheduler: this {name} ends a round with noise left in the face; set final_sigmas_type='zero' or, "
            "with DDIM, set_alpha_to_one=True."
        )
    if config.get("variance_type", "fixed_small") not in ("fixed_small", "fixed_small_log"):
        raise ValueError(
            f"scheduler: expected variance_type 'fixed_small' (that of Eq. 3), got {config.variance_type!r} in {name}; "
            "a larger one leaves noise in the face, a learned one the denoiser does not predict."
        )


def prepare_scheduler(scheduler: Any, timesteps: Sequence[int], trained: Tensor | None = None) -> Any:
    """Return a copy of the scheduler with these timesteps set, ready for `sample_dedim`; the original is left alone.

    Args:
        scheduler: one that `check_scheduler` accepts.
        timesteps: falling diffusers timesteps of a round, 0..T-1 (`dedim_timesteps`).
        trained: ``alphas_cumprod`` ``[T]`` that the denoiser was trained with; None to take the scheduler's word.

    Returns:
        A `DDPMScheduler`, or a `SolverStepper` with the same calls.

    Raises:
        TypeError, ValueError: the scheduler cannot serve, or cannot with these timesteps or its settings.

    Example:
        >>> from diffusers_dedim.diffusion.schedule import make_scheduler
        >>> prepare_scheduler(make_scheduler(), [99, 49]).timesteps.tolist()
        [99, 49]
    """
    check_scheduler(scheduler)
    name, levels = type(scheduler).__name__, scheduler.alphas_cumprod.cpu()
    if timesteps[0] >= len(levels):
        raise ValueError(
            f"start_timestep: expected 1..{len(levels)}, the scheduler's number of timesteps, got {timesteps[0] + 1}."
        )
    # float32 products of betas that were saved as text agree to about 1e-6
    if trained is not None and (
        len(trained) != len(levels) or not torch.allclose(levels.double(), trained.cpu().double(), atol=1e-4)
    ):
        raise ValueError(
            f"scheduler: the noise schedule of this {name} is not the one that the pipeline's denoiser came with; "
            f"build it with {name}.from_config(pipe.scheduler.config)."
        )
    scheduler = copy.deepcopy(scheduler)
    if isinstance(scheduler, DDPMScheduler):
        scheduler.set_timesteps(timesteps=list(timesteps))
        return scheduler
    return SolverStepper(scheduler, timesteps)


class SolverStepper:
    """A diffusers solver with DDPM's conventions: x_t of the forward process of Eq. 1, whole timesteps.

    Euler's samples are divided by sqrt(1 + sigma^2) outside it, so that callbacks see the same x_t under every
    scheduler. Its memory is emptied at the first timestep: each round of Algorithm 2 starts anew.

    Attributes:
        solver: the diffusers scheduler inside.
        timesteps: ``[S]`` falling diffusers timesteps, int64 on the CPU.
        alphas_cumprod: ``[T]``.
    """

    def __init__(self, solver: Any, timesteps: Sequence[int]) -> None:
        self.timesteps: Tensor = torch.tensor(timesteps)
        self.alphas_cumprod: Tensor = solver.alphas_cumprod
        self._order = list(timesteps)
        if not isinstance(solver, DDIMScheduler):
            _set_sigmas(solver, self._order)
        self._fresh = solver  # takes no step
        self.solver = copy.deepcopy(solver)

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverStepper:
        """Give a stepper of its own with an empty memory: what a round left in it may be part of a graph."""
        twin = copy.copy(self)
        twin.solver = copy.deepcopy(self._fresh)
        return twin

    @property
    def config(self) -> Any:
        """Settings of the solver inside."""
        return self.solver.config

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from q(x_t | x_0) with the given noise, ``[N, C, H, W]``; one timestep for all, or one each."""
        levels = self._levels(x_0)[timesteps.to(x_0.device)].reshape(-1, 1, 1, 1)
        return levels.sqrt() * x_0 + (1 - levels).sqrt() * noise

    def step(
        self, eps: Tensor, timestep: int, x_t: Tensor, generator: list[torch.Generator] | None = None
    ) -> SchedulerOutput:
        """Take the solver's step from x_t.

        Args:
            eps: predicted noise ``[N, C, H, W]``.
            timestep: one of ``timesteps``; the first one empties the solver's memory.
            x_t: noisy images ``[N, C, H, W]`` in about [-1, 1], with the noise of DDPM's forward process.
            generator: one per image, for solvers with random steps; None draws from torch's global one.

        Returns:
            ``prev_sample`` of it is x_{t-1}, ``[N, C, H, W]``, in the same convention.

        Raises:
            ValueError: ``timestep`` is not one of ``timesteps``.
        """
        if timestep == self._order[0]:
            self.solver = copy.deepcopy(self._fresh)  # the memory of the round before is another image's
        return SchedulerOutput(prev_sample=self._advance(eps, timestep, x_t, generator))

    def _levels(self, like: Tensor) -> Tensor:
        return self.alphas_cumprod.to(like.device, like.dtype)

    def _advance(self, eps: Tensor, timestep: int, x_t: Tensor, generator: Any) -> Tensor:
        index = self._order.index(timestep)
        if isinstance(self.solver, EulerDiscreteScheduler):
            return self._advance_euler(eps, index, x_t)
        if isinstance(self.solver, DDIMScheduler):
            # It looks for the next timestep T // num_inference_steps below: a fraction makes that any distance.
            following = [*self._order, -1][index + 1]
            distance = timestep - following
            self.solver.num_inference_steps = Fraction(self.solver.config.num_train_timesteps, distance)
        prev: Tensor = self.solver.step(eps, timestep, x_t, generator=generator).prev_sample
        return prev

    def _advance_euler(self, eps: Tensor, index: int, x_t: Tensor) -> Tensor:
        now, following = ((1 + self.solver.sigmas[i] ** 2).sqrt() for i in (index, index + 1))
        self.solver.is_scale_input_called = True  # x_t is the scaled sample already
        step = self.solver.step(eps, self.solver.timesteps[index], now * x_t)
        prev: Tensor = step.prev_sample / following
        return prev


def _set_sigmas(solver: Any, timesteps: list[int]) -> None:
    """Set the timesteps of a solver that works with noise levels, and see that they are the timesteps' own."""
    name = type(solver).__name__
    try:
        solver.set_timesteps(timesteps=timesteps)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"scheduler: this {name} does not take a round's timesteps: {error} Switch that setting off."
        ) from error
    levels = solver.alphas_cumprod[timesteps].double()
    expected = ((1 - levels) / levels).sqrt()
    if not torch.allclose(solver.sigmas[:-1].double(), expected, rtol=1e-4):  # float32, stored and computed
        raise ValueError(
            f"scheduler: this {name} does not step through the noise levels of its timesteps; leave out what changes "
            "them (interpolation_type, use_karras_sigmas, use_flow_sigmas and the like)."
        )


def _why_not(scheduler: Any) -> str:
    """Tell why a scheduler cannot take the steps of a round."""
    if not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "step"):
        return "it is no diffusers scheduler"
    if "LCM" in type(scheduler).__name__ or "TCD" in type(scheduler).__name__:
        return "it is for distilled consistency models, and the denoiser is none"
    if "Flow" in type(scheduler).__name__:
        return "it is for flow matching, and the denoiser predicts the noise"
    if getattr(scheduler, "order", 1) > 1:
        return "it calls the denoiser twice a step, and a callback that changes the first call unsettles the second"
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        return "it cannot start at t_0: its set_timesteps takes no list of timesteps"
    return "what a round of Algorithm 2 needs of it was not worked out"
