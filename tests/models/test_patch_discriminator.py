from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusers_dedim.models.discriminator import PATCH, PatchDiscriminator


@pytest.fixture
def network() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(0.2).eval()


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_small_and_answers_for_each_patch(crops: torch.Tensor) -> None:
    network = PatchDiscriminator()
    assert 5e5 < sum(value.numel() for value in network.parameters()) < 7e5  # "0.6 M" in its docstring
    answer = network(crops, 0.05)
    assert answer.shape == (3, 1, 112 // PATCH, 112 // PATCH)
    assert answer.dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected shape \[N, 3, 112, 112\]"):
        network(crops[..., :64])


def test_a_level_is_one_for_all_or_one_a_face(network: PatchDiscriminator, crops: torch.Tensor) -> None:
    for_all = network(crops, 0.1)
    torch.testing.assert_close(network(crops, torch.full((3,), 0.1)), for_all)
    torch.testing.assert_close(network(crops, torch.tensor(0.1)), for_all)
    torch.testing.assert_close(network(crops), network(crops, 0.0))
    each = network(crops, torch.tensor([0.1, 0.1, 0.02]))
    torch.testing.assert_close(each[:2], for_all[:2])
    assert (each[2] - for_all[2]).abs().max() > 1e-5


def test_a_face_is_judged_by_itself(network: PatchDiscriminator, crops: torch.Tensor) -> None:
    together = network(crops, 0.05)
    alone = torch.cat([network(crop[None], 0.05) for crop in crops])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_light_counts_and_colour_does_not(network: PatchDiscriminator, crops: torch.Tensor) -> None:
    tinted = crops + torch.tensor([0.2, -0.3, 0.1]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(network(tinted), network(crops), rtol=1e-4, atol=1e-5)
    assert (network(crops + 0.2) - network(crops)).abs().max() > 1e-4


def test_a_gradient_reaches_the_crops_and_one_of_it_the_weights(
    network: PatchDiscriminator, crops: torch.Tensor
) -> None:
    leaf = crops.requires_grad_()
    (slope,) = torch.autograd.grad(network(leaf, 0.05).sum(), leaf, create_graph=True)
    assert slope.shape == crops.shape
    assert (slope.abs().flatten(1).amax(1) > 0).all()
    slope.square().sum().backward()
    assert network.entries[0].weight.grad.abs().max() > 0


def test_saved_and_loaded_it_answers_the_same(
    network: PatchDiscriminator, crops: torch.Tensor, tmp_path: Path
) -> None:
    network.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path)
    assert loaded.config.width == 0.2
    assert torch.equal(loaded(crops, 0.05), network(crops, 0.05))
    half = PatchDiscriminator.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.dtype == torch.float32
