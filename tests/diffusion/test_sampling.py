from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_sampling import SIZE, faces, run, scheduler_for, seeded, toy_unet
from toys import ToyEncoder

from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import make_scheduler


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"mask": torch.ones(3, SIZE, SIZE)},
            r"mask: expected \[3, 1, 12, 12\] for these crops, got \[3, 12, 12\]",
        ),
        ({"mask": torch.ones(1, 1, SIZE, SIZE)}, r"mask: expected \[3, 1, 12, 12\] .* got \[1, 1, 12, 12\]"),
        ({"mask": torch.ones(3, 3, SIZE, SIZE)}, r"mask: expected \[3, 1, 12, 12\]"),
        (
            {"mask": torch.full((3, 1, SIZE, SIZE), 255.0)},
            r"mask: expected values in \[0, 1\], got 255 to 255",
        ),
        ({"mask": torch.full((3, 1, SIZE, SIZE), torch.nan)}, r"mask: expected values in \[0, 1\], got nan"),
        ({"x_org": torch.zeros(3, SIZE, SIZE)}, r"x_org: expected crops \[N, 3, H, W\], got \[3, 12, 12\]"),
        ({"threshold": 1.0}, "threshold: expected a probability of at least 0 and below 1, got 1.0"),
        ({"threshold": torch.nan}, "threshold: expected a probability"),
        ({"max_rounds": 0}, "max_rounds: expected at least 1, got 0"),
        ({"seeds": (1, 2)}, "generators: expected one for each of the 3 faces, got 2"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], text: str) -> None:
    x_org, mask = faces(3)
    with pytest.raises(ValueError, match=text):
        run(**{"x_org": x_org, "mask": mask, "seeds": (1, 2, 3), **changes})


def algorithm_2(
    x_org: Tensor,
    mask: Tensor,
    encoder: nn.Module,
    generator: torch.Generator,
    t_0: int,
    s: float,
    rounds: int,
    h: float,
) -> tuple[Tensor, list[float]]:
    """The paper's listing, word by word, for one face; t counts from 1 and nothing of ours is used."""
    beta = make_scheduler().betas.double()
    alpha_hat = torch.cumprod(1 - beta, 0)
    beta, alpha_hat = torch.cat([torch.zeros(1), beta]), torch.cat([torch.ones(1), alpha_hat])  # from 1

    def normal() -> Tensor:
        return torch.randn(x_org.shape, generator=generator, dtype=torch.float64)

    def p(x: Tensor) -> Tensor:
        return (torch.nn.functional.cosine_similarity(encoder(x), encoder(x_org)) + 1) / 2

    x_0, history = x_org, [1.0]
    for _ in range(rounds):
        x = alpha_hat[t_0].sqrt() * x_0 + (1 - alpha_hat[t_0]).sqrt() * normal()  # [D1]
        for t in range(t_0, 0, -1):
            eps = toy_unet(x, t - 1)
            mu = (x - beta[t] / (1 - alpha_hat[t]).sqrt() * eps) / (1 - beta[t]).sqrt()
            sigma = ((1 - alpha_hat[t - 1]) / (1 - alpha_hat[t]) * beta[t]).sqrt()
            z = normal() if t > 1 else 0
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(torch.log(1 - p(leaf)).sum(), leaf)
            x = mu + s * sigma * gradient + sigma * z  # [D2]
        candidate = mask * x + (1 - mask) * x_org
        if p(candidate) < history[-1]:
            x_0 = candidate
            history.append(float(p(candidate)))
        else:
            history.append(history[-1])
        if history[-1] < h:
            break
    return x_0, history


@pytest.mark.parametrize(("s", "h"), [(5.0, 0.01), (20.0, 0.2), (20.0, 0.6)])
def test_one_face_is_algorithm_2_to_the_letter(s: float, h: float) -> None:
    x_org, mask = faces(1)
    encoder = ToyEncoder(SIZE).double().requires_grad_(False)
    expected, history = algorithm_2(x_org, mask, encoder, *seeded(3), t_0=20, s=s, rounds=4, h=h)
    ours = run(x_org, mask, (3,), scale=s, start=20, steps=20, max_rounds=4, threshold=h, encoder=encoder)
    # float64; 80 steps whose scheduler form divides by 1 - alphas_cumprod >= 4e-5 lose about 1e-11 each
    torch.testing.assert_close(ours.crops, expected, rtol=0, atol=1e-8)
    assert ours.probability_history[0] == pytest.approx(history, abs=1e-8)
    assert ours.reached_threshold == [history[-1] < h]
    assert history[-1] < 0.999  # the guidance did something, so the comparison says something


def test_history_never_rises_and_counts_the_rounds() -> None:
    result = run(*faces(4), (0, 1, 2, 3), max_rounds=5, threshold=0.3)
    for history, rounds, calls in zip(
        result.probability_history, result.rounds, result.unet_calls, strict=True
    ):
        assert history[0] == 1
        assert all(after <= before for before, after in pairwise(history))
        assert len(history) == rounds + 1
        assert calls == 5 * rounds  # timesteps a round


def test_pixels_outside_the_mask_keep_their_bits() -> None:
    x_org, mask = faces(2)
    crops = run(x_org, mask, (0, 1)).crops
    outside = (mask == 0).expand_as(x_org)
    assert torch.equal(crops[outside], x_org[outside])
    assert not torch.equal(crops[~outside], x_org[~outside])


def test_scale_0_is_plain_ddpm() -> None:
    x_org, mask = faces(2)
    zero, none = (run(x_org, mask, (0, 1), scale=scale, max_rounds=1) for scale in (0.0, None))
    assert torch.equal(zero.crops, none.crops)
    scheduler, generators = scheduler_for(30, 5), seeded(0, 1)
    noise = torch.stack([torch.randn(3, SIZE, SIZE, generator=g, dtype=torch.float64) for g in generators])
    x_t = scheduler.add_noise(x_org, noise, scheduler.timesteps[:1])
    for timestep in scheduler.timesteps:
        eps = toy_unet(x_t, int(timestep))
        x_t = scheduler.step(eps, timestep, x_t, generator=generators).prev_sample
    assert torch.equal(none.crops, mask * x_t + (1 - mask) * x_org)


def test_same_seed_same_crop_and_another_seed_another() -> None:
    x_org, mask = faces(1)
    first, again, other = (run(x_org, mask, (seed,)).crops for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_equals_its_faces_one_by_one() -> None:
    x_org, mask = faces(3)
    together = run(x_org, mask, (4, 5, 6), threshold=0.35, max_rounds=6)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = run(x_org[rows], mask[rows], (4 + row,), threshold=0.35, max_rounds=6)
        # the encoder's matrix product may add in another order for another height
        torch.testing.assert_close(together.crops[rows], alone.crops, rtol=0, atol=1e-11)
        assert together.rounds[row] == alone.rounds[0]
        assert together.probability_history[row] == pytest.approx(alone.probability_history[0], abs=1e-11)


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_max_rounds_is_respected(rounds: int) -> None:
    calls = 0

    def counting(x_t: Tensor, timestep: int) -> Tensor:
        nonlocal calls
        calls += 1
        return toy_unet(x_t, timestep)

    result = run(*faces(2), (0, 1), scale=0.0, max_rounds=rounds, threshold=1e-6, unet=counting)
    assert result.rounds == [rounds, rounds]
    assert result.unet_calls == [5 * rounds] * 2
    assert calls == 5 * rounds
    assert result.reached_threshold == [False, False]


class ScriptedEncoder(nn.Module):
    """Gives each face the cosine that its script holds for the round; faces are told by an unmasked pixel."""

    def __init__(self, script: list[list[float]]) -> None:
        super().__init__()
        self.script, self.seen = script, [0] * len(script)

    def forward(self, crops: Tensor) -> Tensor:
        rows = []
        for crop in crops:
            face = round(float(crop[0, 0, 0]) * 10)
            cosine = self.script[face][self.seen[face]]
            self.seen[face] += 1
            rows.append([cosine, (1 - cosine**2) ** 0.5])
        return torch.tensor(rows, dtype=crops.dtype)


def scripted(script: list[list[float]], **settings: Any) -> tuple[SampleResult, list[int], Tensor]:
    x_org, mask = faces(len(script))
    x_org[:, :, 0, 0] = torch.arange(len(script), dtype=torch.float64)[:, None] / 10
    batches: list[int] = []

    def watching(x_t: Tensor, timestep: int) -> Tensor:
        batches.append(len(x_t))
        return toy_unet(x_t, timestep)

    encoder = ScriptedEncoder([[1.0, *cosines] for cosines in script])
    seeds = tuple(range(len(script)))
    result = run(x_org, mask, seeds, scale=None, steps=1, encoder=encoder, unet=watching, **settings)
    return result, batches, x_org


def test_a_finished_face_leaves_the_batch() -> None:
    script = [[0.4, 0.2, -0.2], [-0.5], [0.6, -0.1, 0.0]]
    result, batches, _ = scripted(script, threshold=0.46, max_rounds=3)
    assert batches == [3, 2, 1]
    assert result.rounds == [3, 1, 2]
    assert result.reached_threshold == [True, True, True]
    assert result.probability_history[0] == pytest.approx([1, 0.7, 0.6, 0.4])
    assert result.probability_history[1] == pytest.approx([1, 0.25])
    assert result.probability_history[2] == pytest.approx([1, 0.8, 0.45])


def test_a_worse_round_is_not_kept() -> None:
    good, _, _ = scripted([[0.2]], threshold=0.1, max_rounds=1)
    result, _, _ = scripted([[0.2, 0.5, 0.3]], threshold=0.1, max_rounds=3)
    assert result.probability_history[0] == pytest.approx([1, 0.6, 0.6, 0.6])
    assert torch.equal(result.crops, good.crops)
    assert result.reached_threshold == [False]


def test_a_face_at_the_threshold_goes_on() -> None:
    """Line 12 says strictly below."""
    result, batches, _ = scripted([[0.0, -0.5]], threshold=0.5, max_rounds=5)
    assert len(batches) == 2
    assert result.rounds == [2]


def test_nan_is_never_accepted() -> None:
    result, _, x_org = scripted([[float("nan"), float("nan")]], threshold=0.5, max_rounds=2)
    assert torch.equal(result.crops, x_org)
    assert result.reached_threshold == [False]
    assert result.probability_history == [[1.0, 1.0, 1.0]]


def test_the_callback_sees_every_step_and_decides_x_prev() -> None:
    x_org, mask = faces(2)
    seen: list[tuple[Any, int, int, list[str]]] = []

    def watch(pipeline: Any, index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((pipeline, index, timestep, sorted(tensors)))
        return {**tensors, "prev_sample": torch.full_like(tensors["sample"], 0.25)}

    result = sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=scheduler_for(30, 3),
        face_encoder=ToyEncoder(SIZE).double(),
        threshold=0.01,
        max_rounds=1,
        generators=seeded(0, 1),
        guidance=watch,
        pipeline="me",
    )
    names = ["avoid", "mask", "noise_pred", "prev_sample", "reference", "sample", "x_org"]
    assert seen == [("me", index, timestep, names) for index, timestep in enumerate((29, 19, 9))]
    assert torch.equal(result.crops, mask * 0.25 + (1 - mask) * x_org)


def test_callbacks_see_the_step_that_the_guidance_changed() -> None:
    """One that acts before the step changes its noise; those after see that noise and where it led, and decide."""
    x_org, mask = faces(2)
    scheduler, seen = scheduler_for(30, 3), list[dict[str, Tensor]]()

    class Louder:
        def before_step(
            self, _: Any, index: int, timestep: int, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            assert "prev_sample" not in tensors
            with torch.enable_grad():  # a graph that somebody left must not reach the next step
                return {"noise_pred": tensors["noise_pred"].requires_grad_() * 1.5}

        def __call__(
            self, _: Any, index: int, timestep: int, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            seen.append(tensors)
            return {"prev_sample": tensors["prev_sample"] + 0.25}

    result = sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=scheduler,
        face_encoder=ToyEncoder(SIZE).double(),
        threshold=0.01,
        max_rounds=1,
        generators=seeded(0, 1),
        guidance=Louder(),
    )
    twins = seeded(0, 1)
    noise = torch.stack([torch.randn(3, SIZE, SIZE, generator=g, dtype=torch.float64) for g in twins])
    x_t = scheduler.add_noise(x_org, noise, scheduler.timesteps[:1])
    for tensors, timestep in zip(seen, scheduler.timesteps, strict=True):
        eps = toy_unet(x_t, int(timestep)) * 1.5
        x_prev = scheduler.step(eps, timestep, x_t, generator=twins).prev_sample
        for name, expected in (("sample", x_t), ("noise_pred", eps), ("prev_sample", x_prev)):
            assert torch.equal(tensors[name], expected), name
        x_t = x_prev + 0.25
    assert torch.equal(result.crops, mask * x_t + (1 - mask) * x_org)
    assert not result.crops.requires_grad
