from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor
from toys import ToyEncoder

from diffusers_dedim.diffusion.callbacks import StepCallbacks
from diffusers_dedim.diffusion.guidance import EstimateGuidance, IdentityGuidance
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler, predict_x_0, shift_estimate
from diffusers_dedim.diffusion.solvers import check_scheduler, prepare_scheduler

SIZE = 12
CONFIG = make_scheduler().config
MAKERS = {
    "ddpm": lambda: DDPMScheduler.from_config(CONFIG),
    "ddpm, clipped": lambda: DDPMScheduler.from_config(CONFIG, clip_sample=True),
    "ddim": lambda: DDIMScheduler.from_config(CONFIG),
    "dpm++ 1": lambda: DPMSolverMultistepScheduler.from_config(CONFIG, solver_order=1),
    "dpm++ 2": lambda: DPMSolverMultistepScheduler.from_config(CONFIG),
    "dpm++ 3": lambda: DPMSolverMultistepScheduler.from_config(CONFIG, solver_order=3),
    "dpm++ sde": lambda: DPMSolverMultistepScheduler.from_config(CONFIG, algorithm_type="sde-dpmsolver++"),
    "euler": lambda: EulerDiscreteScheduler.from_config(CONFIG),
}
FIRST_ORDER = ("ddim", "dpm++ 1", "euler")
# Solvers compute in float32; 1 - alphas_cumprod is 4e-5 at the smallest timestep and is known to 6e-8, so the
# noise level there to 1e-3, times a noise of 0.006: the tolerance of two float32 paths to the same x_{t-1}.
CLOSE = {"rtol": 0, "atol": 2e-4}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def toy_unet(x_t: Tensor, timestep: int) -> Tensor:
    return torch.sin(3 * x_t) + 0.001 * timestep


def faces(count: int) -> tuple[Tensor, Tensor]:
    x_org = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7)) - 0.5
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[..., 2:-2, 2:-2] = 1
    return x_org, mask


def run(name: str, count: int = 2, *, seeds: tuple[int, ...] = (3, 4), **changes: Any) -> SampleResult:
    x_org, mask = faces(count)
    encoder = ToyEncoder(SIZE).requires_grad_(False)
    scheduler = prepare_scheduler(MAKERS[name](), dedim_timesteps(100, changes.pop("steps", 10)))
    settings: dict[str, Any] = {
        "guidance": EstimateGuidance(0.02, -0.9, smoothing=0),
        "threshold": 0.01,
        "max_rounds": 2,
        **changes,
    }
    return sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=scheduler,
        face_encoder=encoder,
        generators=seeded(*seeds),
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
        **settings,
    )


def stepped(
    name: str, timesteps: list[int], upto: int = 0
) -> tuple[Any, list[torch.Generator], Tensor, Tensor]:
    """A scheduler that has taken the steps before timesteps[upto], with x_t and the noise predicted there."""
    scheduler = prepare_scheduler(MAKERS[name](), timesteps)
    x_org, _ = faces(2)
    generators = seeded(1, 2)
    noise = torch.randn(x_org.shape, generator=torch.Generator().manual_seed(0))
    x_t = scheduler.add_noise(x_org, noise, torch.tensor(timesteps[:1]))
    for timestep in timesteps[:upto]:
        eps = toy_unet(x_t, timestep)
        x_t = scheduler.step(eps, timestep, x_t, generator=generators).prev_sample
    return scheduler, generators, x_t, toy_unet(x_t, timesteps[upto])


@pytest.mark.parametrize("name", MAKERS)
def test_noise_is_added_as_ddpm_does(name: str) -> None:
    scheduler = prepare_scheduler(MAKERS[name](), [99, 49])
    x_0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = scheduler.add_noise(x_0, noise, torch.tensor([99]))
    torch.testing.assert_close(ours, make_scheduler().add_noise(x_0, noise, torch.tensor([99])))  # float32


@pytest.mark.parametrize("timesteps", [dedim_timesteps(100, 10), dedim_timesteps(100, 7), [600, 49, 3]])
def test_ddim_euler_and_first_order_dpm_are_the_same_step(timesteps: list[int]) -> None:
    """All three are the first-order solver of one differential equation (Lu et al. 2022, section 4.1)."""
    for upto, timestep in enumerate(timesteps):
        scheduler, _, x_t, eps = stepped("ddim", timesteps, upto)
        levels = torch.cat([scheduler.alphas_cumprod[timesteps], torch.ones(1)])
        x_0 = predict_x_0(scheduler, eps, torch.tensor(timestep), x_t)
        expected = (
            levels[upto + 1].sqrt() * x_0 + (1 - levels[upto + 1]).sqrt() * eps
        )  # Song et al. 2021, Eq. 12
        for name in FIRST_ORDER:
            other = stepped(name, timesteps, upto)[0]
            ours = other.step(eps, timestep, x_t).prev_sample
            torch.testing.assert_close(ours, expected, **CLOSE, msg=f"{name} at {timestep}")


class Watch:
    """After the push: the estimate in the changed noise is the pushed one, and the step is a closed form of it."""

    def __init__(
        self, guidance: EstimateGuidance, encoder: ToyEncoder, generators: list[torch.Generator]
    ) -> None:
        self.guidance, self.encoder, self.generators = guidance, encoder, generators
        self.noise, self.seen = torch.empty(0), list[Tensor]()

    def before_step(
        self, pipeline: Any, index: int, timestep: int, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Draw what the scheduler is about to draw."""
        twins = [torch.Generator().set_state(generator.get_state()) for generator in self.generators]
        shape = given["sample"].shape[1:]
        self.noise = torch.stack([torch.randn(shape, generator=twin, dtype=torch.float64) for twin in twins])
        return given

    def __call__(
        self, pipeline: Any, index: int, timestep: int, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        x_t, mask, time = given["sample"], given["mask"], torch.tensor(timestep)
        x_0 = predict_x_0(pipeline.scheduler, toy_unet(x_t, timestep), time, x_t)
        blend = mask * x_0 + (1 - mask) * given["x_org"]
        *gradients, _ = self.guidance._similarity_gradients(self.encoder, blend, given["reference"], 0)
        pushed = (x_0 - self.guidance.step_size * self.guidance._direction(*gradients, mask, mask)).clamp(
            -1, 1
        )
        self.seen.append(pushed)
        expected = self.step(pipeline.scheduler, index, pushed, given)
        # float64; the smallest 1 - alphas_cumprod is 7e-4 here, and noise of about 1 divided by its root comes to 40
        torch.testing.assert_close(given["prev_sample"], expected, rtol=0, atol=1e-12)
        return given

    def step(self, scheduler: Any, index: int, x_0: Tensor, given: dict[str, Tensor]) -> Tensor:
        """x_{t-1} from the pushed estimate: Ho et al. 2020, Eq. 7, or Song et al. 2021, Eq. 12."""
        now, following = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), 1.0][index : index + 2]
        if not isinstance(scheduler, DDPMScheduler):
            eps = (given["sample"] - now**0.5 * x_0) / (1 - now) ** 0.5
            return following**0.5 * x_0 + (1 - following) ** 0.5 * eps
        beta = 1 - now / following
        mean = following**0.5 * beta / (1 - now) * x_0
        mean = mean + (1 - beta) ** 0.5 * (1 - following) / (1 - now) * given["sample"]
        variance = max((1 - following) / (1 - now) * beta, 1e-20)  # diffusers leaves so much of a 0
        return mean + variance**0.5 * self.noise


@pytest.mark.parametrize("name", ["ddpm", "ddpm, clipped", "ddim"])
def test_the_step_from_the_changed_noise_is_that_from_the_pushed_estimate(name: str) -> None:
    """Three rounds in float64: D9 and D13 of docs/paper.md against the formulas of the two papers."""
    x_org, mask = (tensor.double() for tensor in faces(2))
    encoder = ToyEncoder(SIZE).double().requires_grad_(False)
    scheduler = prepare_scheduler(MAKERS[name](), dedim_timesteps(100, 10))
    scheduler.alphas_cumprod = torch.cumprod(1 - make_scheduler().betas.double(), 0)
    if name == "ddim":
        scheduler = prepare_scheduler(
            with_levels(MAKERS[name](), scheduler.alphas_cumprod), dedim_timesteps(100, 10)
        )
    generators, guidance = seeded(3, 4), EstimateGuidance(0.02, -0.9, cutoff_step_ratio=1)
    watch = Watch(guidance, encoder, generators)
    pipeline = SimpleNamespace(face_encoder=encoder, scheduler=scheduler)
    settings: dict[str, Any] = {"threshold": 0.01, "max_rounds": 3, "generators": generators}
    sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=scheduler,
        face_encoder=encoder,
        guidance=StepCallbacks([guidance, watch]),
        pipeline=pipeline,
        **settings,
    )
    assert len(watch.seen) == 30


def with_levels(scheduler: Any, levels: Tensor) -> Any:
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = levels, levels.new_tensor(1.0)
    return scheduler


@pytest.mark.parametrize("name", ["dpm++ 1", "dpm++ 2", "dpm++ 3", "dpm++ sde"])
def test_a_multistep_solver_remembers_the_pushed_estimates(name: str) -> None:
    timesteps = dedim_timesteps(250, 5)
    scheduler = prepare_scheduler(MAKERS[name](), timesteps)
    x_org, generators = faces(2)[0].double(), seeded(1, 2)
    x_t, pushed = x_org, list[Tensor]()
    for timestep in timesteps:
        eps, time = toy_unet(x_t, timestep), torch.tensor(timestep)
        shift = 0.05 * torch.randn(
            x_t.shape, generator=torch.Generator().manual_seed(timestep), dtype=x_t.dtype
        )
        pushed.append(predict_x_0(scheduler, eps, time, x_t) + shift)
        shifted_eps = shift_estimate(scheduler, eps, time, shift)
        x_t = scheduler.step(shifted_eps, timestep, x_t, generator=generators).prev_sample
    remembered = scheduler.solver.model_outputs
    for theirs, ours in zip(remembered, pushed[-len(remembered) :], strict=True):
        # Its noise level is a float32: 1 - alphas_cumprod, here 0.01 or more, is known to 6e-8 of 1, so sigma to 3e-6
        # of itself, and sigma times the noise of about 1 is 0.1: 3e-7, a few times.
        torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_the_last_step_lands_on_the_pushed_estimate(name: str) -> None:
    """Also where it is clipped: x_0 of 1.5, pushed to 0.9, counts from 1.5 in the noise and lands on 0.9."""
    timesteps = dedim_timesteps(100, 10)
    scheduler, generators, x_t, _ = stepped(name, timesteps, 9)
    x_t, eps, last = torch.full_like(x_t, 1.5), torch.zeros_like(x_t), torch.tensor(9)
    x_0 = predict_x_0(scheduler, eps, last, x_t)
    assert x_0.min() > 1
    shifted_eps = shift_estimate(scheduler, eps, last, 0.9 - x_0)
    moved = scheduler.step(shifted_eps, 9, x_t, generator=generators).prev_sample
    torch.testing.assert_close(moved, torch.full_like(moved, 0.9), **CLOSE)


@pytest.mark.parametrize("name", MAKERS)
def test_guidance_works_with_each(name: str) -> None:
    plain, guided = run(name, guidance=None), run(name, guidance=EstimateGuidance(0.2, -0.9, smoothing=0))
    for before, after in zip(plain.probability_history, guided.probability_history, strict=True):
        assert after[-1] < before[-1] - 0.02
    x_org, mask = faces(2)
    outside = (mask == 0).expand_as(x_org)
    assert torch.equal(guided.crops[outside], x_org[outside])


@pytest.mark.parametrize("name", MAKERS)
def test_same_seed_same_crop_and_a_batch_equals_its_faces(name: str) -> None:
    together, again = run(name), run(name)
    assert torch.equal(together.crops, again.crops)
    alone = run(name, 1, seeds=(3,))
    # the encoder's matrix product may add in another order for another height; the direction of a push amplifies it
    torch.testing.assert_close(together.crops[:1], alone.crops, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["dpm++ 2", "dpm++ 3"])
def test_each_round_starts_with_an_empty_memory(name: str) -> None:
    """The first round of a used stepper is that of a fresh one, also with another batch size."""
    timesteps = dedim_timesteps(100, 5)
    used, fresh = (prepare_scheduler(MAKERS[name](), timesteps) for _ in range(2))
    for timestep in timesteps:
        used.step(torch.ones(3, 3, 4, 4), timestep, torch.zeros(3, 3, 4, 4))
    x_t = torch.full((1, 3, 4, 4), 0.5)
    a, b = x_t, x_t
    for timestep in timesteps:
        a = used.step(torch.sin(a), timestep, a).prev_sample
        b = fresh.step(torch.sin(b), timestep, b).prev_sample
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["ddpm", "ddpm, clipped"])
def test_ddpm_is_left_as_it_is(name: str) -> None:
    scheduler = MAKERS[name]()
    prepared = prepare_scheduler(scheduler, [99, 49])
    assert type(prepared) is DDPMScheduler
    assert prepared.timesteps.tolist() == [99, 49]
    assert len(scheduler.timesteps) == 1000


@pytest.mark.parametrize("name", ["ddim", "dpm++ 2", "euler"])
def test_the_papers_guidance_says_why_it_needs_ddpm(name: str) -> None:
    text = (
        "scheduler: the paper's guidance is scaled by sigma_t, the spread of DDPM's random step, which "
        f"{type(MAKERS[name]()).__name__} does not take; use EstimateGuidance (preset 'fast') or a DDPMScheduler."
    )
    with pytest.raises(TypeError, match=re.escape(text)):
        run(name, guidance=IdentityGuidance(20.0))


def test_the_papers_guidance_works_with_ddpm_that_clips() -> None:
    run("ddpm, clipped", guidance=IdentityGuidance(5.0))


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ("UniPCMultistepScheduler", "it cannot start at t_0: its set_timesteps takes no list of timesteps"),
        ("PNDMScheduler", "it cannot start at t_0: its set_timesteps takes no list of timesteps"),
        ("EulerAncestralDiscreteScheduler", "it cannot start at t_0"),
        ("HeunDiscreteScheduler", "it calls the denoiser twice a step"),
        ("LCMScheduler", "it is for distilled consistency models, and the denoiser is none"),
        ("FlowMatchEulerDiscreteScheduler", "it is for flow matching, and the denoiser predicts the noise"),
        ("DPMSolverSinglestepScheduler", "what a round of Algorithm 2 needs of it was not worked out"),
    ],
)
def test_a_scheduler_that_cannot_work_says_why(scheduler: str, reason: str) -> None:
    text = (
        rf"^scheduler: {scheduler} cannot serve: {re.escape(reason)}.*Use one of DDPMScheduler, DDIMScheduler"
    )
    with pytest.raises(TypeError, match=text):
        check_scheduler(getattr(diffusers, scheduler)())


def test_something_else_is_no_scheduler() -> None:
    with pytest.raises(TypeError, match="scheduler: str cannot serve: it is no diffusers scheduler"):
        check_scheduler("ddim")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: DDIMScheduler.from_config(CONFIG, prediction_type="v_prediction"),
            "scheduler: expected prediction_type 'epsilon', got 'v_prediction' in DDIMScheduler",
        ),
        (
            lambda: DDIMScheduler.from_config(CONFIG, set_alpha_to_one=False),
            "scheduler: this DDIMScheduler ends a round with noise left in the face",
        ),
        (
            lambda: EulerDiscreteScheduler.from_config(CONFIG, final_sigmas_type="sigma_min"),
            "scheduler: this EulerDiscreteScheduler ends a round with noise left in the face",
        ),
        (
            lambda: DDPMScheduler.from_config(CONFIG, variance_type="fixed_large"),
            "scheduler: expected variance_type 'fixed_small' (that of Eq. 3), got 'fixed_large' in DDPMScheduler",
        ),
        (
            lambda: EulerDiscreteScheduler.from_config(CONFIG, use_karras_sigmas=True),
            "scheduler: this EulerDiscreteScheduler does not take a round's timesteps: Cannot set `timesteps` with",
        ),
        (
            lambda: DPMSolverMultistepScheduler.from_config(CONFIG, use_flow_sigmas=True),
            "scheduler: this DPMSolverMultistepScheduler does not take a round's timesteps",
        ),
        (
            lambda: DDIMScheduler(),
            "scheduler: the noise schedule of this DDIMScheduler is not the one that the pipeline's denoiser came "
            "with; build it with DDIMScheduler.from_config(pipe.scheduler.config).",
        ),
    ],
)
def test_settings_that_would_spoil_a_face_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        prepare_scheduler(make(), [99, 49], make_scheduler().alphas_cumprod)


def test_noise_levels_of_other_timesteps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = MAKERS["euler"]()
    monkeypatch.setattr(type(solver), "set_timesteps", _evenly_spaced)
    with pytest.raises(ValueError, match="does not step through the noise levels of its timesteps"):
        prepare_scheduler(solver, [99, 49])


def _evenly_spaced(solver: Any, timesteps: list[int]) -> None:
    solver.sigmas = torch.linspace(1, 0, len(timesteps) + 1)


def test_a_start_beyond_the_schedule_is_refused() -> None:
    text = "start_timestep: expected 1..1000, the scheduler's number of timesteps, got 1200."
    with pytest.raises(ValueError, match=re.escape(text)):
        prepare_scheduler(MAKERS["ddim"](), [1199, 9])
