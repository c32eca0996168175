"""Train the 51-landmark regressor on crops annotated by a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_dedim.models.landmarks import (
    NUM_LANDMARKS,
    OUTER_EYE_CORNERS,
    LandmarkRegressor,
    mirror_landmarks,
)
from diffusers_dedim.training.augment import random_similarity
from diffusers_dedim.training.config import LandmarkConfig
from diffusers_dedim.training.data import FaceCrops, to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask

_JAW_POINTS = 17


class LandmarkTask(FaceTask[FaceCrops]):
    """L1 regression of 51 points under small similarity transforms, colour change and noise.

    Args:
        train_data, val_data: crops with landmarks, see `FaceCrops`.
        config: the settings.
        model: network to train on; a new one by default, which starts at the mean face of the data.

    Raises:
        ValueError: ``model`` has another number of landmarks.
    """

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        config: LandmarkConfig,
        *,
        model: LandmarkRegressor | None = None,
    ) -> None:
        network = model or LandmarkRegressor()
        self.model: nn.Module = network
        found = network.config.num_landmarks
        if found != NUM_LANDMARKS:
            raise ValueError(
                f"initial_weights: the regressor has {found} landmarks, expected {NUM_LANDMARKS}."
            )
        super().__init__(train_data, val_data, config)
        self.config = config
        if model is not None:
            return
        count = min(1000, len(train_data))
        shapes = [train_data[index]["landmarks"][_JAW_POINTS:] for index in range(count)]
        network.mean_shape.copy_(torch.stack(shapes).mean(0))

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean absolute error in pixels."""
        images, points = to_model_range(batch["image"]), batch["landmarks"][:, _JAW_POINTS:]
        flip = torch.rand(len(images), generator=generator).to(images.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        points = torch.where(flip[:, None, None], mirror_landmarks(points), points)
        images, moved = random_similarity(
            images, points, generator, max_shift=4, max_scale=0.08, max_degrees=8
        )
        gain = 1 + 0.3 * (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1)
        noise = torch.randn(images.shape, generator=generator) * torch.rand(1, generator=generator) * 0.08
        predicted: Tensor = model(images * gain.to(images) + noise.to(images))
        return (predicted - moved).abs().mean()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the error against the teacher and the disagreement under mirroring."""
        return landmark_errors(model, self.val_data, min(self.config.val_images, len(self.val_data)))


def landmark_errors(model: nn.Module, data: FaceCrops, count: int, batch_size: int = 64) -> dict[str, float]:
    """Mean point-to-point distance over the distance of the outer eye corners (the 300-W convention).

    Returns:
        ``error_iod`` against the teacher's points, ``flip_iod`` between a crop's points and those of its mirror
        image, mirrored back.
    """
    device = next(model.parameters()).device
    totals = {"error_iod": 0.0, "flip_iod": 0.0}
    for start in range(0, count, batch_size):
        items = [data[index] for index in range(start, min(start + batch_size, count))]
        images = to_model_range(torch.stack([item["image"] for item in items])).to(device)
        truth = torch.stack([item["landmarks"] for item in items])[:, _JAW_POINTS:].to(device)
        left, right = (truth[:, index] for index in OUTER_EYE_CORNERS)
        ocular = (left - right).norm(dim=1)
        with torch.no_grad():
            predicted, mirrored = model(images), mirror_landmarks(model(images.flip(3)))
        for name, other in (("error_iod", truth), ("flip_iod", mirrored)):
            totals[name] += float(((predicted - other).norm(dim=2).mean(1) / ocular).sum())
    return {name: total / count for name, total in totals.items()}
