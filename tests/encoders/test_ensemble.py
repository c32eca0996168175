from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import ToyEncoder

from diffusers_dedim import EncoderEnsemble, EstimateGuidance, IdentityGuidance
from diffusers_dedim.diffusion.guidance import log_probability_gradient
from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler
from diffusers_dedim.encoders.ensemble import FusedEncoder

SIZE = 12


def toy(seed: int, dim: int = 16) -> ToyEncoder:
    return ToyEncoder(SIZE, dim, seed).requires_grad_(False)


def crops(count: int = 2, seed: int = 7) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) - 0.5


def run(encoder: nn.Module, guidance: Any, **changes: Any) -> SampleResult:
    x_org, scheduler = crops(), make_scheduler()
    scheduler.set_timesteps(timesteps=dedim_timesteps(100, 10))
    settings = {"threshold": 0.3, "max_rounds": 3, **changes}
    return sample_dedim(
        x_org,
        torch.ones(2, 1, SIZE, SIZE),
        unet=lambda x, t: torch.sin(3 * x) + 0.001 * t,
        scheduler=scheduler,
        face_encoder=encoder,
        generators=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        guidance=guidance,
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
        **settings,
    )


@pytest.mark.parametrize("guidance", [EstimateGuidance(0.1, -0.5), IdentityGuidance(20.0)])
def test_an_ensemble_of_one_is_its_encoder_bit_for_bit(guidance: Any) -> None:
    alone, ensemble = run(toy(0), guidance), run(EncoderEnsemble([toy(0)]), guidance)
    assert torch.equal(alone.crops, ensemble.crops)
    assert alone.probability_history == ensemble.probability_history
    assert alone.probability_history[0][-1] < 0.95  # the guidance did something


def test_the_recogniser_that_matches_best_counts() -> None:
    members = [toy(0), toy(1, 8), toy(2, 24)]
    ensemble = EncoderEnsemble(members)
    x, other = crops(), crops(seed=8)
    assert ensemble(x).shape == (2, 3, 24)
    each = torch.stack([match_probability(member(x), member(other)) for member in members])
    ours = match_probability(ensemble(x), ensemble(other))
    torch.testing.assert_close(ours, each.amax(0))  # zeros at the end change a float32 sum by rounding only


def test_each_member_pushes_by_how_far_it_lies_above_the_stop() -> None:
    """A recogniser below the stop pushes no further, and how steep the others are does not matter."""
    members = [toy(0), toy(1)]
    x, reference = crops(), [member(crops(seed=8)) for member in members]
    cosine = torch.stack([(member(x) * r).sum(1) for member, r in zip(members, reference, strict=True)])
    stop = float(cosine.mean())
    guidance, mask = EstimateGuidance(stop_similarity=stop, views=1), torch.ones(2, 1, SIZE, SIZE)
    gradients, weights, _ = guidance._similarity_gradients(
        EncoderEnsemble(members), x, torch.stack(reference, 1), 0
    )
    torch.testing.assert_close(torch.stack(weights), (cosine - stop).relu())
    assert any(float(weight[face]) == 0 for weight in weights for face in range(2))
    push = guidance._direction(gradients, weights, mask, mask)
    steeper = guidance._direction([gradients[0], 100 * gradients[1]], weights, mask, mask)
    torch.testing.assert_close(push, steeper)
    pushed = (torch.stack(weights).amax(0) > 0).float()
    assert pushed.any()
    torch.testing.assert_close(push.square().mean((1, 2, 3)).sqrt(), pushed)


def test_one_view_a_step_is_the_face_and_its_mirror_image_in_turns() -> None:
    encoder, x = toy(0), crops()
    reference = encoder(crops(seed=8))
    one, both = (EstimateGuidance(stop_similarity=-0.99, views=views) for views in (1, 2))
    halves = [one._similarity_gradients(encoder, x, reference, step)[0][0] for step in (0, 1)]
    whole = both._similarity_gradients(encoder, x, reference, 0)[0][0]
    torch.testing.assert_close(halves[0] + halves[1], whole)
    assert not torch.allclose(*halves)


def test_lines_bring_the_cosines_onto_one_scale() -> None:
    members, lines = [toy(0), toy(1, 8)], (0.3, 0.1)
    x, other = crops(), crops(seed=8)
    plain, scaled = (EncoderEnsemble(members, given) for given in (None, lines))
    cosine, moved = ((each(x) * each(other)).sum(-1) for each in (plain, scaled))
    torch.testing.assert_close(moved[:, 0], cosine[:, 0])
    torch.testing.assert_close(moved[:, 1], 1 - (1 - cosine[:, 1]) * 0.7 / 0.9)
    torch.testing.assert_close(scaled(x).norm(dim=-1), torch.ones(2, 2))


@pytest.mark.parametrize("lines", [(0.3,), (0.3, 1.0), (0.3, 0.1, 0.2)])
def test_lines_that_do_not_fit_are_refused(lines: tuple[float, ...]) -> None:
    with pytest.raises(
        ValueError, match="lines: expected a cosine between -1 and 1 for each of the 2 encoders"
    ):
        EncoderEnsemble([toy(0), toy(1)], lines)


def test_a_fused_ensemble_answers_with_the_mean_of_the_cosines() -> None:
    ensemble = EncoderEnsemble([toy(0), toy(1, 8)])
    x, other = crops(), crops(seed=8)
    fused = FusedEncoder(ensemble)
    expected = (ensemble(x) * ensemble(other)).sum(-1).mean(1)
    torch.testing.assert_close((fused(x) * fused(other)).sum(1), expected)
    assert torch.equal(FusedEncoder(toy(0))(x), toy(0)(x))


def test_the_papers_guidance_adds_up_the_gradients() -> None:
    members = [toy(0), toy(1)]
    x, other = crops(), crops(seed=8)
    together = log_probability_gradient(EncoderEnsemble(members), x, EncoderEnsemble(members)(other))
    expected = sum(log_probability_gradient(member, x, member(other)) for member in members)
    torch.testing.assert_close(together, expected)


def test_all_recognisers_lose_the_face() -> None:
    members = [toy(0), toy(1)]
    result = run(EncoderEnsemble(members), EstimateGuidance(0.3, -0.9, smoothing=0), threshold=0.01)
    for member in members:
        after = match_probability(member(result.crops), member(crops()))
        histories = torch.tensor([history[-1] for history in result.probability_history])
        assert (after <= histories + 1e-6).all()  # the history holds the best match; float32 rounding
    assert max(history[-1] for history in result.probability_history) < 0.95


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("encoders: expected at least one encoder, got none.")):
        EncoderEnsemble([])


def test_a_member_of_another_shape_is_refused() -> None:
    class Column(ToyEncoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, None]

    text = "encoders: expected embeddings [2, D] of Column, got [2, 1, 16]."
    with pytest.raises(ValueError, match=re.escape(text)):
        EncoderEnsemble([Column(SIZE, 16, 0)])(crops())


def test_an_ensemble_among_the_members_stands_for_its_members() -> None:
    inner = EncoderEnsemble([toy(0), toy(1)])
    assert list(EncoderEnsemble([inner, toy(2)]).encoders)[:2] == list(inner.encoders)


class Detached(ToyEncoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("guidance", [EstimateGuidance(), IdentityGuidance()])
def test_a_recogniser_without_gradient_cannot_guide_and_says_so(guidance: Any) -> None:
    text = "face_encoder: no gradient flows from its embeddings back to the crops, so it cannot guide; use a"
    with pytest.raises(TypeError, match=text):
        run(Detached(SIZE).requires_grad_(False), guidance)
