"""Changes to training crops of the encoder: other photos of the same face, and the noise of x_t."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_dedim.training.data import random_similarity, to_model_range


def augment(images: Tensor, generator: torch.Generator, *, mix_share: float = 0.1) -> Tensor:
    """Mirror, move, mix, recolour, blur, compress and cover: faces and photos that the data does not hold.

    Rarely and little: the student is far from knowing the training faces by heart (measured: 160 steps with
    the strong changes that are usual gave less than the same steps with weak ones).

    Args:
        images: uint8 ``[N, 3, 112, 112]``.
        generator: source of the randomness.
        mix_share: share of the images that another face of the batch is mixed into, up to a half.

    Returns:
        Changed images, float32 ``[N, 3, 112, 112]`` about [-1, 1]; not clipped.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(count, 1, 1, 1, generator=generator)
        return (low + (high - low) * draw).to(images.device)

    def chance(share: float) -> Tensor:
        return uniform(0, 1) < share

    images = _compress(images, generator, share=0.05)
    images = to_model_range(images)
    images = torch.where(chance(0.5), images.flip(3), images)
    images, _ = random_similarity(
        images, images.new_zeros(count, 0, 2), generator, max_shift=2, max_scale=0.03, max_degrees=3
    )
    images = torch.lerp(images, images.roll(1, 0), torch.where(chance(mix_share), uniform(0, 0.5), 0.0))
    images = images * uniform(0.85, 1.15) + uniform(-0.1, 0.1)
    grey = images.mean(1, keepdim=True).expand_as(images)
    images = torch.where(chance(0.05), grey, images)
    half = nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    soft = nn.functional.interpolate(half, size=images.shape[-2:], mode="bilinear", align_corners=False)
    images = torch.where(chance(0.08), soft, images)
    place = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (((place - uniform(0, 112)[..., 0]).abs() < uniform(6, 24)[..., 0]) for _ in range(2))
    covered = (rows[:, :, :, None] & columns[:, :, None, :]) & chance(0.05)
    return torch.where(covered, uniform(-1, 1), images)


def add_noise(images: Tensor, generator: torch.Generator, max_noise: float) -> Tensor:
    """Add noise of a standard deviation up to ``max_noise`` to half of the images, as x_t carries it."""
    shape = (len(images), 1, 1, 1)
    strength = torch.rand(shape, generator=generator) * max_noise
    strength = strength * (torch.rand(shape, generator=generator) < 0.5)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + strength.to(images) * noise


def _compress(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Save and open a share of the uint8 images as JPEG of quality 30 to 95."""
    images = images.clone()
    for index in range(len(images)):
        draw, quality = torch.rand(2, generator=generator).tolist()
        if draw < share:
            file = BytesIO()
            picture = Image.fromarray(images[index].permute(1, 2, 0).cpu().numpy())
            picture.save(file, format="JPEG", quality=30 + int(65 * quality))
            images[index] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(images.device)
    return images
