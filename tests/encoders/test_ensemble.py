from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import ToyEncoder

from diffusers_dedim import EncoderEnsemble, EstimateGuidance, IdentityGuidance
from diffusers_dedim.diffusion.guidance import log_probability_gradient, match_probability
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps, make_scheduler

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


def test_estimate_guidance_adds_up_the_hinges() -> None:
    """A recogniser below the stop pushes no further; a hinge of the mean would let it."""
    members = [toy(0), toy(1)]
    x, reference = crops(), [member(crops(seed=8)) for member in members]
    cosine = [(member(x) * r).sum(1) for member, r in zip(members, reference, strict=True)]
    stop = float(torch.stack(cosine).mean())
    guidance = EstimateGuidance(stop_similarity=stop, views=1)
    together = guidance._similarity_gradient(EncoderEnsemble(members), x, torch.stack(reference, 1))
    alone = [guidance._similarity_gradient(m, x, r) for m, r in zip(members, reference, strict=True)]
    torch.testing.assert_close(together, alone[0] + alone[1])
    assert any(float(gradient[face].abs().max()) == 0 for gradient in alone for face in range(2))


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
    text = "encoders: expected embeddings [2, D] of EncoderEnsemble, got [2, 1, 16]."
    with pytest.raises(ValueError, match=re.escape(text)):
        EncoderEnsemble([EncoderEnsemble([toy(0)])])(crops())


class Detached(ToyEncoder):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("guidance", [EstimateGuidance(), IdentityGuidance()])
def test_a_recogniser_without_gradient_cannot_guide_and_says_so(guidance: Any) -> None:
    text = "face_encoder: no gradient flows from its embeddings back to the crops, so it cannot guide; use a"
    with pytest.raises(TypeError, match=text):
        run(Detached(SIZE).requires_grad_(False), guidance)
