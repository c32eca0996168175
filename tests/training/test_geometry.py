from __future__ import annotations

import pytest
import torch

from diffusers_dedim.training.augment import random_similarity, turn_heads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_move_with_the_pixels(dtype: torch.dtype) -> None:
    """A soft spot is painted at each point; after the warp its centre of mass is where the point went."""
    points = torch.tensor([[[40.0, 50.0]], [[70.0, 61.0]], [[55.5, 80.0]], [[33.0, 77.0]]], dtype=dtype)
    axis = torch.arange(112, dtype=dtype)
    distance = (axis - points[..., :1]).square()[:, :, None] + (axis - points[..., 1:]).square()[..., None]
    images = torch.exp(-distance / 18)
    warped, moved = random_similarity(
        images, points, torch.Generator().manual_seed(0), max_shift=6, max_scale=0.1, max_degrees=15
    )
    assert moved.dtype == warped.dtype == dtype
    assert (moved - points).norm(dim=2).min() > 1  # they did move
    mass = warped.sum((2, 3))
    centre = torch.stack([(warped.sum(2) * axis).sum(2) / mass, (warped.sum(3) * axis).sum(2) / mass], dim=2)
    # bilinear sampling keeps a centre of mass but for the spot's curvature within a pixel
    torch.testing.assert_close(centre, moved, rtol=0, atol=0.02)


def test_no_movement_is_the_identity() -> None:
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    warped, moved = random_similarity(images, torch.zeros(2, 0, 2), torch.Generator(), 0, 0, 0)
    assert moved.shape == (2, 0, 2)
    torch.testing.assert_close(warped, images, rtol=0, atol=1e-4)  # float32 grid coordinates: 1e-5 of a pixel


def test_autocast_leaves_places_as_they_are() -> None:
    """bfloat16 tells apart places above 64 px by half a pixel: landmarks would be taught rounded."""
    images = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    points = torch.rand(3, 51, 2, generator=torch.Generator().manual_seed(1)) * 112

    def moved() -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(2)
        turned = turn_heads(images, generator, share=1.0, yaw=22, pitch=11)
        return (turned, *random_similarity(images, points, generator, 4, 0.08, 8))

    plain = moved()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(*pair) for pair in zip(plain, moved(), strict=True))
