from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor
from toy_sampling import faces, run, seeded, toy_unet
from toys import ToyEncoder, tiny_preset

from diffusers_dedim.diffusion.denoisers import CorrectedDenoiser
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler
from diffusers_dedim.diffusion.solvers import prepare_scheduler
from diffusers_dedim.pipeline.presets import resolve_preset

SIZE = 12
SCHEDULERS = [None, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]


def unguided(x_org: Tensor, mask: Tensor, share: float, solver: type | None = None) -> SampleResult:
    """One round without guidance, under DDPM or another solver."""
    scheduler: Any = make_scheduler()
    scheduler = scheduler if solver is None else solver.from_config(scheduler.config)  # type: ignore[attr-defined]
    return sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=prepare_scheduler(scheduler, dedim_timesteps(200, 6)),
        face_encoder=ToyEncoder(SIZE).double().requires_grad_(False),
        threshold=0.0,
        max_rounds=1,
        generators=seeded(*range(len(x_org))),
        error_correction=share,
    )


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_the_whole_error_put_right_gives_the_original_back(solver: type | None) -> None:
    x_org, mask = faces(2)
    mask = torch.ones_like(mask)
    there_and_back = unguided(x_org, mask, 1.0, solver).crops
    # DPM-Solver keeps its levels in float32
    torch.testing.assert_close(there_and_back, x_org, rtol=0, atol=1e-6)
    assert float((unguided(x_org, mask, 0.0, solver).crops - x_org).abs().max()) > 0.1


def test_a_share_of_the_error_lies_between() -> None:
    x_org, mask = faces(2)
    lost = [float((unguided(x_org, mask, share).crops - x_org).square().mean()) for share in (0, 0.5, 1)]
    assert lost[0] > lost[1] > lost[2]


def test_the_face_draws_the_numbers_that_it_would_have_drawn_without() -> None:
    x_org, mask = faces(2)
    seen: dict[float, list[Tensor]] = {}
    for share in (0.0, 1e-9):
        generators = seeded(3, 4)
        sample_dedim(
            x_org,
            mask,
            unet=toy_unet,
            scheduler=prepare_scheduler(make_scheduler(), [30, 10]),
            face_encoder=ToyEncoder(SIZE).double(),
            threshold=0.0,
            max_rounds=2,
            generators=generators,
            error_correction=share,
        )
        seen[share] = [generator.get_state() for generator in generators]
    assert all(torch.equal(a, b) for a, b in zip(seen[0.0], seen[1e-9], strict=True))


def test_hardly_a_share_is_hardly_a_change() -> None:
    x_org, mask = faces(3)
    plain, hardly = run(x_org, mask, (1, 2, 3)), run(x_org, mask, (1, 2, 3), error_correction=1e-9)
    torch.testing.assert_close(hardly.crops, plain.crops, rtol=0, atol=1e-6)
    assert hardly.rounds == plain.rounds


def test_a_face_does_not_depend_on_its_batch() -> None:
    x_org, mask = faces(3)
    together = run(x_org, mask, (1, 2, 3), error_correction=0.7)
    alone = run(x_org[1:2], mask[1:2], (2,), error_correction=0.7)
    torch.testing.assert_close(together.crops[1:2], alone.crops, rtol=0, atol=1e-12)


def test_the_denoiser_sees_the_original_beside_the_face_and_both_are_counted() -> None:
    x_org, mask = faces(3)
    sizes: list[int] = []

    def unet(x_t: Tensor, timestep: int) -> Tensor:
        sizes.append(len(x_t))
        return toy_unet(x_t, timestep)

    sample = run(x_org, mask, (1, 2, 3), unet=unet, error_correction=0.7)
    assert sizes[0] == 6
    assert sum(sizes) == sum(sample.unet_calls)
    assert sample.unet_calls == [2 * 5 * rounds for rounds in sample.rounds]


def test_a_preset_counts_both_and_knows_its_range() -> None:
    preset = tiny_preset(error_correction=0.0)
    assert preset.unet_calls_per_round == preset.num_inference_steps
    assert resolve_preset(preset, error_correction=0.5).unet_calls_per_round == 2 * preset.num_inference_steps
    with pytest.raises(ValueError, match=r"error_correction: expected a share in \[0, 1\], got 1.5"):
        resolve_preset(preset, error_correction=1.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    x_org, mask = faces(1)
    with pytest.raises(ValueError, match=r"error_correction: expected a share in \[0, 1\], got"):
        run(x_org, mask, (1,), error_correction=share)
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], got"):
        CorrectedDenoiser(toy_unet, make_scheduler(), share, x_org, x_org, seeded(1))


def test_one_generator_for_two_faces_is_refused() -> None:
    x_org, mask = faces(2)
    with pytest.raises(ValueError, match="generators: expected another one for each face"):
        sample_dedim(
            x_org,
            mask,
            unet=toy_unet,
            scheduler=prepare_scheduler(make_scheduler(), [30, 10]),
            face_encoder=ToyEncoder(SIZE).double(),
            threshold=0.0,
            max_rounds=1,
            generators=seeded(1) * 2,
            error_correction=0.5,
        )


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_a_callback_that_differentiates_may_be_followed_by_another_round(solver: type | None) -> None:
    x_org, mask = faces(1)
    scheduler: Any = make_scheduler()
    scheduler = scheduler if solver is None else solver.from_config(scheduler.config)  # type: ignore[attr-defined]

    def push(_: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            moved = tensors["prev_sample"].clone().requires_grad_() * 0.99
        return {**tensors, "prev_sample": moved}

    sample = sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=prepare_scheduler(scheduler, dedim_timesteps(200, 3)),
        face_encoder=ToyEncoder(SIZE).double().requires_grad_(False),
        threshold=0.0,
        max_rounds=3,
        generators=seeded(1),
        guidance=push,
        error_correction=0.7,
    )
    assert not sample.crops.requires_grad


def test_the_scheduler_is_left_alone() -> None:
    x_org, _ = faces(1)
    scheduler = prepare_scheduler(DPMSolverMultistepScheduler.from_config(make_scheduler().config), [30, 10])
    before = scheduler.solver.model_outputs[:]
    denoise = CorrectedDenoiser(toy_unet, scheduler, 1.0, x_org, torch.ones_like(x_org), seeded(0))
    denoise(x_org, 30)
    assert scheduler.solver.model_outputs == before
