from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusers_dedim.models.blocks import ConvNormAct, DepthwiseConv2d


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


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "linear"), [(1, 1, 1, True), (3, 2, 4, False), (8, 1, 4, True)]
)
def test_the_folded_norm_gives_the_same_numbers_and_gradients(
    kernel: int, stride: int, groups: int, linear: bool
) -> None:
    """Against the layers one after another; float32 on both sides, so rounding only."""
    generator = torch.Generator().manual_seed(0)
    block = ConvNormAct(4, 4, kernel, stride, kernel // 2 if kernel == 3 else 0, groups, linear=linear)
    block[1].running_mean.normal_(generator=generator)
    block[1].running_var.uniform_(0.5, 2, generator=generator)
    nn.init.normal_(block[1].weight, generator=generator)
    block.eval()
    results = []
    for run in (block, lambda x: nn.Sequential.forward(block, x)):
        leaf = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = run(leaf)
        gradients = torch.autograd.grad(output.square().sum(), [leaf, *block.parameters()])
        results.append((output.detach(), *gradients))
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)


def test_training_still_updates_the_norm() -> None:
    block = ConvNormAct(3, 4, 1)
    block(torch.randn(2, 3, 4, 4))
    assert int(block[1].num_batches_tracked) == 1
