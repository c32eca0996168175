from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import ToyEncoder

from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation.adaptive import (
    AdaptedEncoder,
    CorrectionHead,
    fit_adaptive_encoder,
    fit_adaptive_head,
)
from diffusers_dedim.metrics.retrieval import rank_k_rate
from diffusers_dedim.models.mobilefacenet import MobileFaceNet

TEACHERS, VICTIMS = 192, 24


class BlockEncoder(nn.Module):
    """Linear over 7x7 block means: few enough weights that a rule learned on others carries over."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.layer = nn.Linear(3 * 7 * 7, dim, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=generator))

    def forward(self, crops: Tensor) -> Tensor:
        blocks = nn.functional.avg_pool2d(crops, 16).flatten(1)
        return nn.functional.normalize(self.layer(blocks))


def people(count: int, seed: int) -> Tensor:
    """Faces as soft blocks, [count, 3, 112, 112]; symmetric, as mirrored views are of the same person."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(count, 3, 7, 7, generator=generator) * 1.2 - 0.6
    return nn.functional.interpolate((blocks + blocks.flip(3)) / 2, size=112)


def protect(crops: Tensor) -> Tensor:
    """Lay one strong pattern over everybody: all look alike until one learns to look past it."""
    return crops + 8 * people(1, seed=77)


def rank1(probe_encoder: nn.Module, probes: Tensor, gallery_encoder: nn.Module, gallery: Tensor) -> float:
    with torch.no_grad():
        scores = probe_encoder(probes) @ gallery_encoder(gallery).T
    names = [str(index) for index in range(len(probes))]
    return rank_k_rate(scores.double().numpy(), names, names)


@pytest.fixture(scope="module")
def encoder() -> BlockEncoder:
    return BlockEncoder().requires_grad_(False)


@pytest.fixture(scope="module")
def others() -> tuple[Tensor, Tensor]:
    originals = people(TEACHERS, seed=0)
    return originals, protect(originals)


@pytest.mark.parametrize("fit", [fit_adaptive_encoder, fit_adaptive_head])
def test_what_is_learned_on_others_finds_the_victims(fit, encoder, others) -> None:
    victims = people(VICTIMS, seed=1)
    hidden = protect(victims)
    before = encoder.layer.weight.clone()
    adapted = fit(encoder, *others, steps=80, learning_rate=1e-2, batch_size=16)
    assert rank1(encoder, victims, encoder, victims) == 1
    plain, learned = rank1(encoder, hidden, encoder, victims), rank1(adapted, hidden, encoder, victims)
    assert plain < 0.2
    assert learned > 0.7
    assert rank1(adapted, victims, encoder, victims) > 0.7  # clean photos stay findable
    torch.testing.assert_close(encoder.layer.weight, before, atol=0, rtol=0)  # the given one is not changed
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
    torch.testing.assert_close(adapted(hidden).norm(dim=1), torch.ones(VICTIMS))


@pytest.mark.parametrize("fit", [fit_adaptive_encoder, fit_adaptive_head])
def test_the_seed_alone_decides(fit, encoder, others) -> None:
    def weights(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)  # the caller's random state does not matter
        adapted = fit(encoder, *others, steps=3, batch_size=4, seed=seed)
        return torch.cat([value.flatten() for value in adapted.state_dict().values()])

    assert torch.equal(weights(0, noise=1), weights(0, noise=2))
    assert not torch.equal(weights(1, noise=1), weights(0, noise=1))


def test_an_untrained_head_changes_nothing(encoder) -> None:
    crops = people(3, seed=2)
    adapted = AdaptedEncoder(encoder, CorrectionHead(24))
    torch.testing.assert_close(adapted(crops), encoder(crops))


def test_another_photo_pulls_where_it_is_known(encoder) -> None:
    originals = people(4, seed=3)
    protected, mate = protect(originals), people(1, seed=9)[0]
    target = encoder(mate[None])[0]

    def similarity(mates: dict[int, Tensor] | None) -> float:
        adapted = fit_adaptive_encoder(
            encoder, originals, protected, steps=60, learning_rate=1e-2, mates=mates
        )
        return float(adapted(protected)[2] @ target)

    assert similarity({2: mate}) > similarity(None) + 0.2


def test_it_trains_inside_no_grad_and_leaves_batch_statistics_alone() -> None:
    torch.manual_seed(0)
    encoder = MobileFaceNet().eval()
    crops = people(2, seed=4)
    with torch.no_grad():
        adapted = fit_adaptive_encoder(encoder, crops, -crops, steps=1, batch_size=2)
    old, new = encoder.state_dict(), adapted.encoder.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert not {name for name in moved if "running" in name or "num_batches" in name}
    assert any("weight" in name for name in moved)


def test_an_adapted_recogniser_is_not_taken_for_the_plain_one(encoder, others) -> None:
    adapted = fit_adaptive_encoder(encoder, *others, steps=1, batch_size=4)
    prints = {Recogniser.of("r", module).fingerprint for module in (encoder, adapted)}
    assert len(prints) == 2


class FramesItself(ToyEncoder):
    def embed_photo(self, photo: np.ndarray, face: object) -> Tensor:
        raise NotImplementedError


def test_bad_input_is_named(encoder) -> None:
    crops = people(3, seed=6)
    with pytest.raises(ValueError, match=r"crops: expected shape \[N, 3, 112, 112\]"):
        fit_adaptive_encoder(encoder, crops[:, :, :50], crops)
    with pytest.raises(ValueError, match="protected: expected the shape of originals"):
        fit_adaptive_encoder(encoder, crops, crops[:2])
    with pytest.raises(ValueError, match="originals: expected at least 2 people to tell apart, got 1"):
        fit_adaptive_encoder(encoder, crops[:1], crops[:1])
    with pytest.raises(ValueError, match=r"mates: expected rows 0..2 of originals, got \[3\]"):
        fit_adaptive_encoder(encoder, crops, crops, mates={3: crops[0]})
    with pytest.raises(ValueError, match="at least 1 step of 2 people, got 0 and 16"):
        fit_adaptive_encoder(encoder, crops, crops, steps=0)
    with pytest.raises(ValueError, match="learning_rate: expected a number above 0, got 0"):
        fit_adaptive_head(encoder, crops, crops, learning_rate=0)
    with pytest.raises(ValueError, match=r"expected a module with weights to train, got Flatten without"):
        fit_adaptive_encoder(nn.Flatten(), crops, crops)
    with pytest.raises(ValueError, match="expected one of aligned crops, got FramesItself"):
        fit_adaptive_head(FramesItself(), crops, crops)
