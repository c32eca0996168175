"""What of a push lowers the structural similarity, and what is left without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffusers_dedim.diffusion.structure import spare_structure, structure_gradient
from diffusers_dedim.metrics.quality import mean_ssim

INSIDE = torch.ones(2, 1, 48, 48)


def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Two originals, what became of them, and a push, all grey."""
    generator = torch.Generator().manual_seed(0)
    original = (torch.rand(2, 1, 48, 48, generator=generator) - 0.5).expand(-1, 3, -1, -1)
    noise, push = (
        torch.randn(2, 1, 48, 48, generator=generator).expand(-1, 3, -1, -1).clone() for _ in range(2)
    )
    changed = original + 0.1 * noise
    # subtracted, the first adds to the noise, the second takes it away
    return original, changed, push + noise * torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)


def test_a_step_along_the_gradient_raises_the_index() -> None:
    original, changed, _ = pictures()
    gradient = structure_gradient(changed, original)
    better = changed + 1e-3 * gradient
    assert (mean_ssim(original, better) > mean_ssim(original, changed)).all()


def test_the_closed_form_is_the_gradient() -> None:
    original, changed, _ = pictures()
    x = (1 + changed[:, :1]).requires_grad_()
    y = 1 + original[:, :1]

    def blur(values: Tensor) -> Tensor:
        return gaussian_blur(values, 11, 1.5)

    mean_x, mean_y = blur(x), blur(y)
    light = (2 * mean_x * mean_y + 0.0004) / (mean_x**2 + mean_y**2 + 0.0004)
    variances = blur(x**2) - mean_x**2 + blur(y**2) - mean_y**2
    index = light * (2 * (blur(x * y) - mean_x * mean_y) + 0.0036) / (variances + 0.0036)
    (expected,) = torch.autograd.grad(index.sum(), x)
    assert torch.allclose(structure_gradient(changed, original), expected, rtol=1e-3, atol=1e-3)


def test_a_push_leaves_the_index_where_it_is() -> None:
    original, changed, push = pictures()
    inside = torch.zeros_like(INSIDE)
    inside[..., 11:-11, 11:-11] = 1  # where no window reaches over the edge
    push, before = push * inside, mean_ssim(original, changed)
    fell = before - mean_ssim(original, changed - 1e-3 * push)
    spared = before - mean_ssim(
        original, changed - 1e-3 * spare_structure(push, changed, original, 1.0, inside)
    )
    assert fell[0] > 0
    assert abs(spared[0]) < 0.05 * fell[0]


def test_a_push_that_raises_the_index_stays() -> None:
    original, changed, _ = pictures()
    push = -structure_gradient(changed, original).expand(-1, 3, -1, -1)
    assert torch.equal(spare_structure(push, changed, original, 1.0, INSIDE), push)


def test_half_of_it_is_half_way() -> None:
    original, changed, push = pictures()
    whole, half = (spare_structure(push, changed, original, share, INSIDE) for share in (1.0, 0.5))
    assert torch.allclose(half, (push + whole) / 2, atol=1e-6)


def test_what_lies_outside_of_the_mask_does_not_count() -> None:
    original, changed, push = pictures()
    inside = INSIDE.clone()
    inside[..., 24:] = 0
    spared = spare_structure(push, changed, original, 1.0, inside)
    assert torch.equal(spared[..., 24:], push[..., 24:])
    assert spared.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_unchanged_picture_gives_no_nan(share: float) -> None:
    flat = torch.zeros(2, 3, 48, 48)
    assert spare_structure(pictures()[2], flat, flat, share, INSIDE).isfinite().all()
