"""In an album a face is told apart from what is protected of the same person."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_sampling import SIZE, faces, run, scheduler_for, seeded, toy_unet
from toys import ToyEncoder

from diffusers_dedim.diffusion.guidance import EstimateGuidance
from diffusers_dedim.diffusion.matching import (
    avoided_cosines,
    judged_probability,
    match_probability,
    no_faces_to_avoid,
)
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import predict_x_0


class TwoEncoders(torch.nn.Module):
    """As an ensemble answers: [N, 2, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList([ToyEncoder(SIZE, 8, seed) for seed in (0, 1)])

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(crops) for member in self.members], dim=1)


def encoders() -> list[torch.nn.Module]:
    return [each.double().requires_grad_(False) for each in (ToyEncoder(SIZE, 8), TwoEncoders())]


def sample(avoid: torch.Tensor | None, encoder: torch.nn.Module, **changes: Any) -> SampleResult:
    """Faces pushed by `EstimateGuidance`, which the sampler judges."""
    x_org, mask = faces(2)
    scheduler = scheduler_for(30, 4)
    guidance = EstimateGuidance(0.05, -0.3, smoothing=0, cutoff_step_ratio=1)
    settings: dict[str, Any] = {"threshold": 0.45, "max_rounds": 6, **changes}
    return sample_dedim(
        x_org,
        mask,
        unet=toy_unet,
        scheduler=scheduler,
        face_encoder=encoder,
        generators=seeded(0, 1),
        guidance=guidance,
        pipeline=SimpleNamespace(face_encoder=encoder, scheduler=scheduler),
        avoid=avoid,
        **settings,
    )


@pytest.mark.parametrize("encoder", encoders())
def test_a_face_is_pushed_away_from_what_it_is_to_be_told_apart_from(encoder: torch.nn.Module) -> None:
    alone = sample(None, encoder, threshold=0.0, max_rounds=3)
    twin = encoder(alone.crops)[:, None]  # [N, 1, (K,) D]: the worst that an album can hold
    apart = sample(twin, encoder, threshold=0.0, max_rounds=3)
    before, after = (avoided_cosines(encoder(each.crops), twin).flatten() for each in (alone, apart))
    assert (after < before - 0.1).all()


@pytest.mark.parametrize("encoder", encoders())
def test_rows_of_zeros_stand_for_nobody(encoder: torch.nn.Module) -> None:
    alone = sample(None, encoder, avoid_limit=0.2)
    reference = encoder(faces(2)[0])
    for rows in (0, 3):
        none = torch.zeros(2, rows, *reference.shape[1:], dtype=torch.float64)
        padded = sample(none, encoder, avoid_limit=0.2)
        assert torch.equal(padded.crops, alone.crops)
        assert padded.probability_history == alone.probability_history
    twin = encoder(alone.crops)[:, None]
    padded = torch.cat([twin, torch.zeros_like(twin)], dim=1)
    # float64; sums over more rows may add in another order
    torch.testing.assert_close(sample(padded, encoder).crops, sample(twin, encoder).crops, rtol=0, atol=1e-11)


def test_each_face_has_its_own() -> None:
    encoder = encoders()[0]
    alone = sample(None, encoder)
    twins = encoder(alone.crops)[:, None].clone()
    twins[1] = 0  # the second face is told apart from nobody
    mixed = sample(twins, encoder)
    torch.testing.assert_close(mixed.crops[1], alone.crops[1], rtol=0, atol=1e-11)
    assert (mixed.crops[0] - alone.crops[0]).abs().max() > 1e-3


def test_weight_zero_and_a_face_that_is_apart_already_change_nothing() -> None:
    encoder = encoders()[0]
    x_org, mask = faces(1)
    scheduler, eps = scheduler_for(30, 4), torch.zeros_like(x_org)
    pipeline = SimpleNamespace(face_encoder=encoder, scheduler=scheduler)
    given = {"sample": x_org, "noise_pred": eps, "x_org": x_org, "mask": mask, "reference": encoder(x_org)}
    twin = encoder(x_org)[:, None]

    def pushed(avoid: torch.Tensor | None, **settings: float) -> torch.Tensor:
        guidance = EstimateGuidance(0.05, -0.9, **settings)
        tensors = {**given, "avoid": avoid} if avoid is not None else given
        return guidance.before_step(pipeline, 0, 29, dict(tensors))["noise_pred"]

    plain = pushed(None)
    other = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    other = torch.nn.functional.normalize(other, dim=2)
    assert not torch.equal(pushed(other), plain)
    assert torch.equal(pushed(other, avoid_weight=0.0), plain)
    assert torch.equal(pushed(-twin), plain)  # cosine -1, far below -0.1


def test_the_cosines_of_an_ensemble_are_those_of_each_member() -> None:
    generator = torch.Generator().manual_seed(0)
    faces_, others = (
        torch.nn.functional.normalize(torch.randn(*shape, 5, generator=generator), dim=-1)
        for shape in ((3, 2), (3, 4, 2))
    )
    cosines = avoided_cosines(faces_, others)
    assert cosines.shape == (3, 4, 2)
    for member in (0, 1):
        single = avoided_cosines(faces_[:, member], others[:, :, member])
        torch.testing.assert_close(cosines[..., member], single)


def test_the_own_photo_is_judged_first_and_the_others_once_it_is_lost() -> None:
    given = {"reference": torch.tensor([[1.0, 0.0]]), "avoid": torch.tensor([[[0.0, 1.0]]])}

    def judged(*face: float, limit: float = 0.2, **changes: torch.Tensor) -> float:
        embedding = torch.nn.functional.normalize(torch.tensor([face]))
        return judged_probability(embedding, {**given, **changes}, threshold=0.45, limit=limit).item()

    assert match_probability(torch.tensor([[0.6, 0.8]]), given["reference"]).item() == pytest.approx(0.8)
    assert judged(0.6, 0.8) == pytest.approx(0.8, abs=2e-3)  # far from done
    near, nearer = judged(-0.8, 0.6), judged(-0.6, 0.8)  # the own photo is lost, the other is not
    assert 0.45 < near < nearer < 0.452
    assert judged(-0.6, -0.8) == pytest.approx(0.2)  # both are
    assert judged(-0.6, 0.8, limit=1.0) == pytest.approx(0.2)  # nobody asks for the other
    assert judged(-0.6, 0.8, avoid=no_faces_to_avoid(given["reference"])) == pytest.approx(0.2)


def test_a_face_goes_on_until_it_is_told_apart_and_never_gives_back_its_own_photo() -> None:
    encoder = encoders()[0]
    alone = sample(None, encoder, threshold=0.65, max_rounds=12)
    twin = encoder(alone.crops)[:, None]
    own_alone = sample(twin, encoder, threshold=0.65, max_rounds=12)
    apart = sample(twin, encoder, threshold=0.65, max_rounds=12, avoid_limit=-0.05)
    assert all(alone.reached_threshold)
    assert all(apart.reached_threshold)
    assert sum(apart.rounds) > sum(own_alone.rounds)
    embedded = encoder(apart.crops)
    assert (match_probability(embedded, encoder(faces(2)[0])) < 0.65).all()
    assert (avoided_cosines(embedded, twin) <= -0.05).all()
    assert all(history == sorted(history, reverse=True) for history in apart.probability_history)


def test_pushes_are_shorter_near_the_aim_and_whole_far_from_it() -> None:
    x_org, mask = faces(2)
    scheduler, encoder = scheduler_for(30, 4), encoders()[0]
    pipeline = SimpleNamespace(face_encoder=encoder, scheduler=scheduler)
    away = torch.nn.functional.normalize(torch.randn(2, 8, dtype=torch.float64), dim=1)
    given = {"sample": x_org, "noise_pred": torch.zeros_like(x_org), "x_org": x_org, "mask": mask}
    blend = predict_x_0(scheduler, given["noise_pred"], torch.tensor(29), x_org) * mask + (1 - mask) * x_org
    like = torch.nn.functional.normalize(encoder(blend)[0] + 0.2 * away[0], dim=0)
    other = torch.nn.functional.normalize(0.5 * encoder(blend)[1] + away[1], dim=0)
    given["reference"] = torch.stack([like, other])  # the first is as far from its aim as can be
    cosine = (encoder(blend) * given["reference"]).sum(1)

    def moved(stop: float, near_push: float) -> torch.Tensor:
        guidance = EstimateGuidance(1e-4, stop, views=1, near_push=near_push)
        eps = guidance.before_step(pipeline, 0, 29, dict(given))["noise_pred"]
        return eps.flatten(1).norm(dim=1)

    stop = float(cosine[1]) - 0.45  # half-way between near and far for the second face, far for the first
    shares = moved(stop, 0.6) / moved(stop, 1.0)
    # a step of 1e-4 in float64, clipped nowhere
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.8], dtype=torch.float64), rtol=1e-6, atol=0)
    stop = float(cosine[1]) - 0.2
    assert (moved(stop, 0.6) / moved(stop, 1.0))[1].item() == pytest.approx(0.6, rel=1e-6)


def test_the_papers_guidance_knows_no_album() -> None:
    x_org, mask = faces(1)
    encoder = encoders()[0]
    twin = encoder(x_org)[:, None]
    plain, beside = (
        run(x_org, mask, (0,), encoder=encoder),
        run(x_org, mask, (0,), encoder=encoder, avoid=twin),
    )
    assert torch.equal(plain.crops, beside.crops)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="avoid_weight: expected 0 or more, got -1"):
        EstimateGuidance(avoid_weight=-1)
    with pytest.raises(ValueError, match=r"avoid_similarity: expected a cosine in \[-1, 1\), got 1"):
        EstimateGuidance(avoid_similarity=1)
    for near_push in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"near_push: expected a share in \(0, 1\], got"):
            EstimateGuidance(near_push=near_push)
