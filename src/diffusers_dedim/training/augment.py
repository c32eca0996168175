"""Changes to training crops of the encoder: other photos of the same face, and the noise of x_t."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_dedim.training.data import random_similarity, to_model_range

_SEAM = 7  # pixels over which what was filled in passes into the face


def fill_unknown(images: Tensor, known: Tensor, generator: torch.Generator, *, share: float = 0.8) -> Tensor:
    """Give crops that their photo does not fill the surroundings of another face of the batch.

    Crops from tightly cut photos have no forehead, hair or background, but repeated edges (alpha 0 in the data). A
    recogniser that learns on many of them never sees what photos show there. All crops are aligned alike, so hair from
    another crop lands where hair belongs; it is shifted to the mean colour of the face it is given to.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        known: bool ``[N, 1, H, W]``, False where the photo does not reach.
        generator: source of the randomness.
        share: of the incomplete crops that are filled; the others stay as they are.

    Returns:
        uint8 ``[N, 3, H, W]``; the same images where the batch holds no complete crop.
    """
    complete = (known.flatten(1).float().mean(1) > 0.97).nonzero()[:, 0]
    if len(complete) == 0:
        return images
    draw = torch.rand(len(images), 2, generator=generator).to(images.device)
    donors = images[complete[(draw[:, 0] * len(complete)).long()]].float()
    own, inside = images.float(), known.float()
    difference = ((own - donors) * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)  # mean colours
    donors = (donors + difference[:, :, None, None]).clamp(0, 255)
    near = nn.functional.avg_pool2d(inside, _SEAM, 1, _SEAM // 2, count_include_pad=False)
    keep = (2 * near - 1).clamp(0, 1)  # 0 up to the edge of the photo, 1 from half a seam inside
    filled = torch.lerp(donors, own, keep).round().to(images.dtype)
    return torch.where(draw[:, 1, None, None, None] < share, filled, images)


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
