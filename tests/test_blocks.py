from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusers_dedim.blocks import DepthwiseConv2d


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(8, 3, 1, 1), (8, 3, 2, 1), (9, 3, 2, 1), (7, 7, 1, 0)]
)
def test_depthwise_convolution_and_its_gradients_are_those_of_torch(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    """In float64: the same sums in another order."""
    generator = torch.Generator().manual_seed(0)
    fast = DepthwiseConv2d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    plain = nn.Conv2d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 4, size, size, dtype=torch.float64, generator=generator)
    results = []
    for layer in (fast, plain):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)
        output.square().sum().backward()
        results.append((output.detach(), leaf.grad, layer.weight.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
