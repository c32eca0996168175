"""Changes to training crops of the encoder: other photos of the same face, and the noise of x_t."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_dedim.training.data import to_model_range
from diffusers_dedim.training.geometry import random_similarity
from diffusers_dedim.training.pose import smooth_noise, turn_heads

_SEAM = 15  # pixels over which what was filled in passes into the face


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


def blend_faces(images: Tensor, generator: torch.Generator, *, share: float) -> Tensor:
    """Give faces some parts of another's: eyes of one, mouth and jaw of the next, with soft borders.

    All crops are aligned alike, so that the result is still one face, of somebody who is not in the data. A teacher
    answers to it as to any other (mixing is what function matching lives on: Beyer et al. 2022), which shows the
    student more people than there are photos.

    Args:
        images: ``[N, 3, H, W]``, aligned.
        generator: source of the randomness.
        share: of the images that are blended with the one before them, 0..1.

    Returns:
        Images of the same shape and type. The other face is brought to the mean colour of the one it goes into.
    """
    draw = _Draw(images, generator)
    others = images.roll(1, 0)
    others = others + (images - others).mean((2, 3), keepdim=True)
    field = smooth_noise(len(images), 1, images.shape[-1], generator).to(images)
    weight = torch.sigmoid(draw.uniform(1, 8) * (field - draw.uniform(-0.3, 0.9)))
    return torch.where(draw.chance(share), torch.lerp(images, others, weight), images)


def augment(images: Tensor, generator: torch.Generator, *, mix_share: float = 0.1) -> Tensor:
    """Mirror, blend, turn, bend, move, mix, relight, blur, compress and cover: faces and photos not in the data.

    Args:
        images: uint8 ``[N, 3, 112, 112]``.
        generator: source of the randomness.
        mix_share: share of the images that another face of the batch is mixed into, up to a half.

    Returns:
        Changed images, float32 ``[N, 3, 112, 112]`` about [-1, 1]; not clipped.
    """
    draw = _Draw(images, generator)
    images = to_model_range(_compress(images, generator, share=0.05))
    images = torch.where(draw.chance(0.5), images.flip(3), images)
    covers = images.roll(2, 0).roll((37, 23), (2, 3))  # of other faces, taken from other places
    images = blend_faces(images, generator, share=0.4)
    images = turn_heads(images, generator, share=0.6, yaw=22, pitch=11, bend_share=0.4, bend=2.5)
    images, _ = random_similarity(
        images, images.new_zeros(len(images), 0, 2), generator, max_shift=3, max_scale=0.06, max_degrees=5
    )
    images = torch.lerp(
        images, images.roll(1, 0), torch.where(draw.chance(mix_share), draw.uniform(0, 0.5), 0.0)
    )
    images = _soften(_relight(images, draw), draw)
    for share in (0.25, 0.1):
        images = _cover(images, covers, draw, share)
    return images


class _Draw:
    """Random numbers for a batch, one an image, shaped to be multiplied with it."""

    def __init__(self, images: Tensor, generator: torch.Generator) -> None:
        self.shape, self.device, self.generator = (len(images), 1, 1, 1), images.device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        draw = torch.rand(self.shape, generator=self.generator)
        return (low + (high - low) * draw).to(self.device)

    def chance(self, share: float) -> Tensor:
        return self.uniform(0, 1) < share


def _relight(images: Tensor, draw: _Draw) -> Tensor:
    """Change contrast and brightness, colour, the side the light comes from, and take the colour away."""
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, torch.where(draw.chance(0.3), draw.uniform(0.3, 1.5), 1.0))
    tint = torch.cat([draw.uniform(-0.12, 0.12) for _ in range(3)], 1)
    images = images + torch.where(draw.chance(0.3), tint, 0.0)
    place = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    slope = draw.uniform(-0.5, 0.5) * place + draw.uniform(-0.5, 0.5) * place[:, None]
    light = 1 + torch.where(draw.chance(0.3), slope, 0.0)
    images = (images + 1) * light - 1
    images = images * draw.uniform(0.8, 1.2) + draw.uniform(-0.15, 0.15)
    return torch.where(draw.chance(0.05), images.mean(1, keepdim=True).expand_as(images), images)


def _soften(images: Tensor, draw: _Draw) -> Tensor:
    """Give a share of the images the detail of a photo two, or three and a half, times smaller."""
    images = images.clone()
    for share, size in ((0.15, 56), (0.05, 32)):
        chosen = draw.chance(share).flatten()
        small = nn.functional.interpolate(images[chosen], size=(size, size), mode="area")
        images[chosen] = nn.functional.interpolate(small, size=images.shape[-2:], mode="bicubic")
    return images


def _cover(images: Tensor, covers: Tensor, draw: _Draw, share: float) -> Tensor:
    """Cover a rectangle, or the ellipse inside it, with one colour or with a piece of another photo."""
    place = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    across = (place - draw.uniform(0, 112)) / draw.uniform(6, 28)
    down = (place[:, None] - draw.uniform(0, 112)) / draw.uniform(6, 28)
    box = (across.abs() < 1) & (down.abs() < 1)
    shape = torch.where(draw.chance(0.5), box, across.square() + down.square() < 1)
    content = torch.where(draw.chance(0.5), covers, torch.cat([draw.uniform(-1, 1) for _ in range(3)], 1))
    return torch.where(shape & draw.chance(share), content, images)


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
