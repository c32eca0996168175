"""Train the network that tells the visible face from what covers it, on faces with covers drawn over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.models.visibility import VisibilityNet
from diffusers_dedim.training import covers
from diffusers_dedim.training.augment import add_noise, random_similarity, relight, soften
from diffusers_dedim.training.config import VisibilityConfig
from diffusers_dedim.training.covers import Draw, Scene, add_cover
from diffusers_dedim.training.data import FaceCrops, to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask
from diffusers_dedim.training.pose import turn_far

_BROW_LIFT = 14.0  # px above the brows that are taken for skin; higher up it may be hair
_DOUBT = 7  # px: width of the line around the face that is left out of the loss
_TURNED = 0.15  # share of the heads that are turned out of the camera's sight
_CUT = 0.08  # share of the crops that are given another edge of their photo
_COVERS = (0.3, 0.55, 0.15)  # shares of the crops with no, one and two covers
# A face that is said to be visible, in which the network is this sure of a cover, wears one: the data is of photos as
# they are, with hands, hair and dark glasses that nobody has marked.
_LARGEST_LOSS = 2.5


class VisibilityTask(FaceTask[FaceCrops]):
    """Cross-entropy of the visible face, under drawn covers, far turns of the head and photo edges.

    Args:
        train_data, val_data: crops with landmarks, see `FaceCrops`.
        config: the settings.
        model: network to train on; a new one by default.
    """

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        config: VisibilityConfig,
        *,
        model: VisibilityNet | None = None,
    ) -> None:
        self.model: nn.Module = model or VisibilityNet()
        super().__init__(train_data, val_data, config)
        self.config = config

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy over the pixels that are known."""
        images, visible, weight = cover_faces(batch, generator)
        images = soften(relight(to_model_range(images), generator), generator)
        images = add_noise(images, generator, 0.1).clamp(-1, 1)
        probability = model(images).clamp(1e-6, 1 - 1e-6)
        errors = torch.where(visible, -probability.log().clamp_min(-_LARGEST_LOSS), -(1 - probability).log())
        loss: Tensor = (errors * weight).sum() / weight.sum().clamp_min(1)
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure on kinds of cover that were drawn in no training, and on plain faces."""
        return visibility_figures(model, self.val_data, min(self.config.val_images, len(self.val_data)))


def cover_faces(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw covers over a batch of faces.

    Args:
        batch: ``image`` uint8 ``[N, 3, 112, 112]``, ``known`` bool ``[N, 1, 112, 112]`` and ``landmarks``
            ``[N, 68, 2]``.
        generator: source of the randomness.

    Returns:
        Images 0..255, whether each pixel shows the face, bool ``[N, 1, 112, 112]``, and its weight in the loss, 0
        or 1.
    """
    device = batch["image"].device
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    images = batch["image"].float().cpu()
    labels = torch.stack([face_region(points.numpy()) for points in batch["landmarks"].cpu()])
    labels[:, 1:] *= batch["known"].cpu()
    turned = torch.rand(len(images), generator=generator) < _TURNED
    others = images.roll(1, 0)
    if turned.any():
        moved = turn_far(torch.cat([images, labels], 1)[turned], others[turned], generator)
        images[turned], labels[turned] = moved[:, :3], moved[:, 3:]
    scenes = zip(images, others.flip(3), batch["landmarks"].cpu(), turned.tolist(), strict=True)
    for row, (image, other, points, is_turned) in enumerate(scenes):
        count = 0 if is_turned and rng.random() < 0.7 else int(rng.choice(3, p=_COVERS))
        drawn = [covers.TRAINED[int(rng.integers(len(covers.TRAINED)))] for _ in range(count)]
        images[row], labels[row] = _covered(image, other, points, labels[row], drawn, rng)
        if rng.random() < _CUT:
            images[row], labels[row] = _cut(images[row], labels[row], rng)
    together, _ = random_similarity(
        torch.cat([images, labels], 1),
        torch.zeros(len(images), 0, 2),
        generator,
        max_shift=6,
        max_scale=0.12,
        max_degrees=12,
    )
    flip = (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5).expand_as(together)
    together = torch.where(flip, together.flip(3), together).to(device)
    return together[:, :3], together[:, 3:4] > 0.5, (together[:, 4:] > 0.99).float()


def face_region(points: NDArray[Any]) -> Tensor:
    """Where a face is in its crop, by its landmarks.

    Args:
        points: ``[68, 2]`` landmarks, crop px.

    Returns:
        ``[2, 112, 112]`` float32: 1 on the face, from the jaw to a little above the brows; and 1 where that is sure:
        0 along its outline, and above it, where skin and hair have no landmark between them.
    """
    up = points[27] - points[8]
    up = up / max(1e-6, float(np.linalg.norm(up)))
    brows = points[17:27] + _BROW_LIFT * up
    outline = [*map(tuple, points[:17]), *map(tuple, brows[::-1])]
    region, unsure = (Image.new("L", (CROP_SIZE, CROP_SIZE)) for _ in range(2))
    ImageDraw.Draw(region).polygon(outline, fill=1)
    draw = ImageDraw.Draw(unsure)
    draw.line([*outline, outline[0]], fill=1, width=_DOUBT, joint="curve")
    ends = [tuple(points[16] + 90 * up), tuple(points[0] + 90 * up)]
    draw.polygon([tuple(points[0]), *map(tuple, brows), tuple(points[16]), *ends], fill=1)
    return torch.from_numpy(np.stack([np.asarray(region), 1 - np.asarray(unsure)]).astype(np.float32))


def _covered(
    image: Tensor,
    other: Tensor,
    points: Tensor,
    labels: Tensor,
    drawn: Sequence[Draw],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """A face ``[3, 112, 112]`` under covers, and its labels: what is covered is known not to be the face."""
    for draw in drawn:
        scene = Scene(_channels_last(image), _channels_last(other), points.double().numpy(), rng)
        picture, hidden = add_cover(scene, draw)
        image = torch.from_numpy(picture).permute(2, 0, 1)
        under = torch.from_numpy(hidden)
        labels = torch.stack([labels[0].masked_fill(under, 0), labels[1].masked_fill(under, 1)])
    return image, labels


def _cut(image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """End the photo somewhere, as `align_face` shows it: its last row goes on, and nothing is known there."""
    place, side = int(rng.integers(62, 104)), int(rng.integers(4))
    image, labels = image.rot90(side, (1, 2)).clone(), labels.rot90(side, (1, 2)).clone()
    image[:, place:] = image[:, place - 1 : place]
    labels[:, place:] = 0
    return image.rot90(-side, (1, 2)), labels.rot90(-side, (1, 2))


def _channels_last(image: Tensor) -> NDArray[np.float32]:
    return image.permute(1, 2, 0).numpy()


def visibility_figures(
    model: nn.Module, data: FaceCrops, count: int, batch_size: int = 64
) -> dict[str, float]:
    """Measure how well covers are found, and what is lost of faces without one.

    Args:
        model: the network.
        data: crops with landmarks that were not trained on.
        count: how many of them.
        batch_size: crops at a time.

    Returns:
        ``iou_<kind>`` for each kind of cover that was held back, and ``iou_trained`` over all others: intersection
        over union of what is covered and what is called so (below one half), over the pixels that are known, of all
        faces together. ``kept_plain``: share of the known face that is called visible where nothing was drawn.
    """
    device = next(model.parameters()).device
    kinds = {draw.__name__: (draw,) for draw in covers.HELD_BACK} | {"trained": covers.TRAINED, "plain": ()}
    sums = {name: np.zeros(2) for name in kinds}
    for start in range(0, count, batch_size):
        items = [data[index] for index in range(start, min(start + batch_size, count))]
        for name, draws in kinds.items():
            images, labels = _drawn(items, draws, start)
            with torch.no_grad():
                called = model(to_model_range(images).to(device)).cpu() >= 0.5
            face, known = labels[:, :1] > 0.5, labels[:, 1:] > 0.5
            if draws:
                hidden = ~face & known
                sums[name] += [int((hidden & ~called).sum()), int(((hidden | ~called) & known).sum())]
            else:
                sums[name] += [int((face & known & called).sum()), int((face & known).sum())]
    ratios = {name: float(part / max(1, whole)) for name, (part, whole) in sums.items()}
    return {("kept_" if name == "plain" else "iou_") + name: value for name, value in ratios.items()}


def _drawn(items: Sequence[dict[str, Tensor]], draws: Sequence[Draw], seed: int) -> tuple[Tensor, Tensor]:
    """Faces ``[N, 3, 112, 112]`` under one cover each, the kinds in turn, and their labels inside the face."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, item in enumerate(items):
        image, other = item["image"].float(), items[index - 1]["image"].float()
        labels = face_region(item["landmarks"].numpy()) * torch.cat(
            [torch.ones_like(item["known"]), item["known"]]
        )
        labels[1] *= labels[0]  # beside the face it is not asked
        face = labels[0] > 0.5
        chosen = [draws[(seed + index) % len(draws)]] if draws else []
        image, labels = _covered(image, other, item["landmarks"], labels, chosen, rng)
        rows.append((image, torch.stack([labels[0], labels[1] * face])))
    images, all_labels = zip(*rows, strict=True)
    return torch.stack(images), torch.stack(all_labels)
