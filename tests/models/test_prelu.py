from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusers_dedim.models.blocks import PReLU


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (3, 4)])
def test_a_frozen_prelu_and_its_gradient_are_those_of_torch(channels: int, shape: tuple[int, ...]) -> None:
    """Bit for bit: both multiply by 1 or by the slope, 0 counting as negative."""
    generator = torch.Generator().manual_seed(0)
    ours, reference = PReLU(channels), nn.PReLU(channels)
    with torch.no_grad():
        reference.weight.copy_(torch.randn(channels, generator=generator))
    ours.load_state_dict(reference.state_dict())
    assert repr(ours) == repr(reference), "fingerprints of recognisers hold the layers' names"
    ours.requires_grad_(False)
    values, cotangent = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    values.flatten()[0] = 0
    results = []
    for layer in (ours, reference):
        leaf = values.clone().requires_grad_()
        output = layer(leaf)
        results.append((output.detach(), torch.autograd.grad(output, leaf, cotangent)[0]))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
    with torch.no_grad():
        assert torch.equal(ours(values), results[1][0])


def test_a_prelu_in_training_learns_its_slopes() -> None:
    layer, values = PReLU(3), torch.full((1, 3, 2, 2), -1.0, requires_grad=True)
    layer(values).sum().backward()
    assert layer.weight.grad.tolist() == [-4, -4, -4]
