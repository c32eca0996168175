"""Changes to training crops of the encoder: other photos of the same face, and the noise of x_t."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_dedim.faces.align import ARCFACE_TEMPLATE
from diffusers_dedim.training.data import to_model_range


def random_similarity(
    images: Tensor,
    points: Tensor,
    generator: torch.Generator,
    max_shift: float,
    max_scale: float,
    max_degrees: float,
) -> tuple[Tensor, Tensor]:
    """Shift, scale and turn each image a little, and its landmarks with it.

    Args:
        images: ``[N, C, H, W]``; pixels from outside repeat the border.
        points: ``[N, K, 2]`` pixels; K may be 0.
        generator: source of the randomness.
        max_shift: pixels. max_scale: share of 1. max_degrees: degrees.

    Returns:
        Warped images and points, in their own types inside a region of autocast too.
    """
    count, size = len(images), images.shape[-1]

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(max_degrees).deg2rad(), 1 + uniform(max_scale)
    shift = uniform(max_shift, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # output -> input
    linear, shift = linear.to(images), shift.to(images)
    theta = torch.cat([linear, shift[:, :, None] * 2 / size], dim=2)
    # the loop's autocast would take grid and points to bfloat16, which tells places above 64 px apart by half a pixel
    with torch.autocast(images.device.type, enabled=False):
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        warped = nn.functional.grid_sample(
            images, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        centre, shift, linear = (size - 1) / 2, shift.to(points), linear.to(points)
        moved = (points - centre - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2) + centre
    return warped, moved


_ITERATIONS = 4  # of the fixed point; beside the nose, where the slope is above 1, a pixel or two is left
HEAD_CENTRE = (56.0, 66.0)  # of the head in the 112-px crop
_HEAD = (40.0, 34.0, 44.0)  # pixels: height, and spread along x and y, of a smooth bump
_NOSE = (7.0, 8.0, 9.0, 5.0)  # height, spreads, and how far below the centre the tip lies


def turn_heads(
    images: Tensor,
    generator: torch.Generator,
    *,
    share: float,
    yaw: float,
    pitch: float,
    bend_share: float = 0.0,
    bend: float = 0.0,
) -> Tensor:
    """Turn and tilt heads as if the camera had moved, and align them to the five-point template again.

    Training crops of strongly turned heads are missing from the data; photos hold many. The depth is the same
    smooth bump for everyone, so a turned face is not that person's true other view: right for learning how a
    teacher answers to such views, and nothing to learn labels from. Bent faces have the proportions of nobody in
    the data: eyes further apart, a longer nose, a fuller mouth.

    Args:
        images: ``[N, C, 112, 112]``, aligned.
        generator: source of the randomness.
        share: of the images that are turned, 0..1.
        yaw, pitch: standard deviations in degrees; draws are cut at two of them.
        bend_share: of the images that are bent, 0..1.
        bend: standard deviation in pixels of the smooth moves that bend a face, at places 37 px apart.

    Returns:
        Images of the same shape; pixels from outside mirror the photo at its border.
    """
    count = len(images)
    draw = torch.randn(count, 2, generator=generator).clamp(-2, 2) * torch.tensor([yaw, pitch]).deg2rad()
    draw = draw * (torch.rand(count, 1, generator=generator) < share)
    size = images.shape[-1]
    points = torch.tensor(ARCFACE_TEMPLATE, dtype=torch.float32).expand(count, -1, -1) - torch.tensor(
        HEAD_CENTRE
    )
    turned = _rotate(points, draw)
    row = torch.linspace(0, size - 1, size // 2 + 1)  # the field is smooth: every other pixel is enough
    pixels = torch.stack(torch.meshgrid(row, row, indexing="xy"), -1).reshape(1, -1, 2) - torch.tensor(
        HEAD_CENTRE
    )
    seen = move_alike(points, turned, pixels.expand(count, -1, -1))
    source = (_unrotate(seen, draw) + torch.tensor(HEAD_CENTRE)).reshape(count, len(row), len(row), 2)
    if bend_share:
        source = source + _bends(count, len(row), generator, bend_share, bend)
    field = nn.functional.interpolate(
        source.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=True
    )
    grid = ((2 * field + 1) / size - 1).permute(0, 2, 3, 1).to(images)
    return nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _bends(count: int, size: int, generator: torch.Generator, share: float, bend: float) -> Tensor:
    """Smooth moves ``[N, size, size, 2]`` in pixels, zero where a face is not bent."""
    moves = smooth_noise(count, 2, size, generator) * bend
    return moves.permute(0, 2, 3, 1) * (torch.rand(count, 1, 1, 1, generator=generator) < share)


def smooth_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw ``[N, channels, size, size]``: 4x4 normal values, about 1 in standard deviation there, cubic in between."""
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def head_depth(points: Tensor) -> Tensor:
    """Height of the head over the image plane at ``[N, K, 2]`` pixels from the centre, ``[N, K]``."""
    x, y = points.unbind(-1)
    height, wide, high = _HEAD
    nose, nose_wide, nose_high, below = _NOSE
    head = height * torch.exp(-((x / wide) ** 2 + (y / high) ** 2) / 2)
    return head + nose * torch.exp(-((x / nose_wide) ** 2 + ((y - below) / nose_high) ** 2) / 2)


def _rotate(points: Tensor, angles: Tensor) -> Tensor:
    """Where points of the head are seen after the turn."""
    yaw, pitch = angles[:, :1], angles[:, 1:]
    (x, y), z = points.unbind(-1), head_depth(points)
    high, deep = y * pitch.cos() - z * pitch.sin(), y * pitch.sin() + z * pitch.cos()
    return torch.stack([x * yaw.cos() + deep * yaw.sin(), high], -1)


def _unrotate(seen: Tensor, angles: Tensor) -> Tensor:
    """Points of the head that are seen at ``seen`` after the turn, by fixed-point iteration."""
    yaw, pitch = angles[:, :1], angles[:, 1:]
    points = seen
    for _ in range(_ITERATIONS):
        z = head_depth(points)
        y = (seen[..., 1] + z * pitch.sin()) / pitch.cos()
        x = (seen[..., 0] - (y * pitch.sin() + z * pitch.cos()) * yaw.sin()) / yaw.cos()
        points = torch.stack([x, y], -1)
    return points


def move_alike(source: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """Move points by the least-squares similarity that takes ``source`` to ``target``, all ``[N, K, 2]``."""
    here, there, moved = (torch.view_as_complex(value.contiguous()) for value in (source, target, points))
    start, end = here.mean(1, keepdim=True), there.mean(1, keepdim=True)
    factor = ((here - start).conj() * (there - end)).sum(1, keepdim=True)
    factor = factor / (here - start).abs().square().sum(1, keepdim=True)
    return torch.view_as_real((moved - start) * factor + end)


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
    images = soften(relight(images, generator), generator)
    for share in (0.25, 0.1):
        images = _cover(images, covers, draw, share)
    return images


def change_mildly(images: Tensor, generator: torch.Generator, *, strength: float, max_noise: float) -> Tensor:
    """Mirror, move, relight, mix and roughen a little: near to the data, where a recogniser's gradient is wanted.

    A network that was trained on heavily changed crops lends its gradients less to others (Qin et al., arXiv
    2307.07873); what it answers there is more robust, and less like what they answer.

    Args:
        images: uint8 ``[N, 3, 112, 112]``.
        generator: source of the randomness.
        strength: factor of all changes but the mirror's, 0..1.
        max_noise: largest standard deviation of the noise on half of the images, in [-1, 1] units.

    Returns:
        Changed images, float32 ``[N, 3, 112, 112]`` in [-1, 1].
    """
    draw = _Draw(images, generator)
    images = to_model_range(images)
    images = torch.where(draw.chance(0.5), images.flip(3), images)
    images, _ = random_similarity(
        images,
        images.new_zeros(len(images), 0, 2),
        generator,
        max_shift=3 * strength,
        max_scale=0.085 * strength,
        max_degrees=6 * strength,
    )
    tint = torch.cat([draw.uniform(-0.12, 0.12) for _ in range(3)], 1) + draw.uniform(-0.25, 0.25)
    images = images * (1 + strength * draw.uniform(-0.4, 0.4)) + strength * tint
    mixed = torch.where(draw.chance(0.25 * strength), draw.uniform(0, 1), 0.0)
    images = torch.lerp(images, images.roll(1, 0), mixed)
    return add_noise(images, generator, strength * max_noise).clamp(-1, 1)


class _Draw:
    """Random numbers for a batch, one an image, shaped to be multiplied with it."""

    def __init__(self, images: Tensor, generator: torch.Generator) -> None:
        self.shape, self.device, self.generator = (len(images), 1, 1, 1), images.device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        draw = torch.rand(self.shape, generator=self.generator)
        return (low + (high - low) * draw).to(self.device)

    def chance(self, share: float) -> Tensor:
        return self.uniform(0, 1) < share


def relight(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast and brightness, colour, the side the light comes from, and take the colour away, of some."""
    draw = _Draw(images, generator)
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


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """Give a share of the images the detail of a photo two, or three and a half, times smaller."""
    draw = _Draw(images, generator)
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
