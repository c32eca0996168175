"""Train the network that tells photos from protected ones, on pairs of the two under the same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusers_dedim.models.discriminator import PATCH, PatchDiscriminator
from diffusers_dedim.training.augment import random_similarity
from diffusers_dedim.training.config import DiscriminatorConfig
from diffusers_dedim.training.data import to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask, cosine_decay
from diffusers_dedim.training.pairs import PAIR_PARTS, FacePairs

LEVELS = (0.02, 0.05, 0.1)
"""Standard deviations of the noise at which held-out pairs are measured."""

# Level of a pair's noise: the least, and what a random share u ** 1.5 of is added. A network that knows nothing begins
# with what can be seen.
_LEAST_NOISE, _NOISE, _FIRST_NOISE = 0.01, 0.2, 0.06
_FIRST_SHARE = 0.05  # of the budget
_LIGHT = 0.1  # largest change of gain and of offset
_SHARPNESS = 4.0  # of the comparison within a pair
_PENALISED = 0.25  # share of the steps with a gradient penalty, which take longer
_CLOSED = 5  # px: a change reaches this far, so that a face's has no holes


class DiscriminatorTask(FaceTask[FacePairs]):
    """Tell a protected face from its own original, and every patch of it by itself, where the two differ.

    Both sides get the same flip, place, light and noise, so that nothing but the protection tells them apart.

    Args:
        train_data, val_data: pairs. Those that differ nowhere weigh nothing.
        config: the settings.
        model: network to train on; a new one by default, which sees little noise at first.

    Raises:
        ValueError: the batch is larger than the training data.

    Source:
        Relativistic pairs: Jolicoeur-Martineau 2018; with R1 (Mescheder et al. 2018) as in Huang et al. 2024 (R3GAN).
    """

    def __init__(
        self,
        train_data: FacePairs,
        val_data: FacePairs,
        config: DiscriminatorConfig,
        *,
        model: PatchDiscriminator | None = None,
    ) -> None:
        super().__init__(train_data, val_data, config)
        self.model: nn.Module = model or PatchDiscriminator()
        self.config: DiscriminatorConfig = config
        self._new = model is None
        self._noise = _NOISE

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the pairs.

        Raises:
            ValueError: no held-out pair differs, so nothing could be measured.
        """
        _ = self._held_out
        return super().identity()

    def begin_step(self, share: float) -> float:
        """Follow a cosine over the budget down to 2 % of the peak rate."""
        self._noise = _FIRST_NOISE if self._new and share < _FIRST_SHARE else _NOISE
        return cosine_decay(share, 0.02)

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of a pair's comparison, plus ``patch_weight`` cross-entropy, now and then plus the penalty.

        The penalty is ``penalty_weight`` times the squared norm of the gradient of an original's mean logit.
        """
        config = self.config
        protected, original, weight = _moved(batch, generator)
        count = len(original)
        level = _LEAST_NOISE + self._noise * torch.rand(count, generator=generator) ** 1.5
        level = level.to(original.device)
        noise = level.reshape(-1, 1, 1, 1) * _grey_noise(original, generator)
        original, protected = original + noise, protected + noise
        penalised = bool(torch.rand((), generator=generator) < _PENALISED and config.penalty_weight)
        penalised = penalised and torch.is_grad_enabled()
        original.requires_grad_(penalised)
        # what torch.compile makes has no second derivative
        of_original = (self.model if penalised else model)(original, level)
        of_protected = model(protected, level)
        ours, theirs = _mean(of_original, weight), _mean(of_protected, weight)
        errors = functional.softplus(_SHARPNESS * (ours - theirs))
        patches = functional.softplus(of_original) + functional.softplus(-of_protected)
        errors = errors + config.patch_weight * _mean(patches, weight)
        if penalised:
            (slope,) = torch.autograd.grad(ours.sum(), original, create_graph=True)
            errors = errors + config.penalty_weight * slope.square().flatten(1).sum(1)
        differs = weight.flatten(1).any(1)
        loss: Tensor = (errors * differs).sum() / differs.sum().clamp_min(1)
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the held-out pairs that differ, see `discriminator_figures`."""
        protected, original, weight = self._held_out
        return discriminator_figures(model, protected, original, weight, self.config.batch_size)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        items = [self.val_data[row] for row in range(min(self.config.val_images, len(self.val_data)))]
        protected, original = (torch.stack([item[name] for item in items]) for name in PAIR_PARTS)
        differs = (protected != original).flatten(1).any(1)
        if not differs.any():
            raise ValueError(
                f"data: none of the {len(items)} held-out protected faces differs from its original; expected "
                "protected faces, which do."
            )
        protected, original = protected[differs], original[differs]
        weight = _patch_weight(where_changed(protected, original))
        return to_model_range(protected), to_model_range(original), weight


def where_changed(protected: Tensor, original: Tensor) -> Tensor:
    """Where pairs differ, and 2 px around it.

    Args:
        protected, original: ``[N, 3, H, W]`` of equal type; a difference in one channel is one.

    Returns:
        ``[N, 1, H, W]`` float32, 0 or 1.
    """
    changed = (protected != original).any(1, keepdim=True).float()
    return functional.max_pool2d(changed, _CLOSED, stride=1, padding=_CLOSED // 2)


def discriminator_figures(
    model: nn.Module, protected: Tensor, original: Tensor, weight: Tensor, batch_size: int = 24
) -> dict[str, float]:
    """Measure how well faces are told apart under the same noise in every call.

    Args:
        model: crops and level of the noise -> logits ``[N, 1, 14, 14]``.
        protected, original: pairs ``[N, 3, 112, 112]`` in [-1, 1].
        weight: of each patch, ``[N, 1, 14, 14]``, 1 in sum.
        batch_size: pairs at a time.

    Returns:
        For each of `LEVELS`, named by its hundredths of a unit as ``002``: ``accuracy``, the share of faces on the
        right side of 0; ``auc``, how often any protected face is above any original, ties half; and ``paired``, how
        often one is above its own original. 0.5, 0.5 and 0 for a network with one answer.
    """
    figures = {}
    for level in LEVELS:
        noise = level * _grey_noise(original, torch.Generator().manual_seed(0))
        ours, theirs = (
            _judged(model, side + noise, level, weight, batch_size) for side in (original, protected)
        )
        name = f"{round(100 * level):03d}"
        figures[f"accuracy_{name}"] = float(torch.cat([theirs > 0, ours <= 0]).float().mean())
        figures[f"auc_{name}"] = float(((theirs[:, None] - ours).sign() / 2 + 0.5).mean())
        figures[f"paired_{name}"] = float((theirs > ours).float().mean())
    return figures


def _judged(model: nn.Module, crops: Tensor, level: float, weight: Tensor, batch_size: int) -> Tensor:
    """Mean logit of each face, ``[N]`` on the CPU."""
    device = next(model.parameters()).device
    pieces = zip(torch.split(crops, batch_size), torch.split(weight, batch_size), strict=True)
    with torch.no_grad():
        return torch.cat(
            [_mean(model(piece.to(device), level), share.to(device)).cpu() for piece, share in pieces]
        )


def _moved(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Protected and original faces, both flipped, moved and lit alike, and the weight of their patches."""
    sides = [batch[name] for name in PAIR_PARTS]
    layers = torch.cat([*map(to_model_range, sides), where_changed(*sides)], 1)
    count, device = len(layers), layers.device
    flip = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(device)
    layers = torch.where(flip, layers.flip(3), layers)
    no_points = layers.new_zeros(count, 0, 2)
    layers, _ = random_similarity(layers, no_points, generator, max_shift=4, max_scale=0.06, max_degrees=6)
    gain, offset = (_LIGHT * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)).to(device)
    protected, original = (layers[:, :6] * (1 + gain) + offset).chunk(2, dim=1)
    return protected, original, _patch_weight(layers[:, 6:])


def _patch_weight(changed: Tensor) -> Tensor:
    """Share of each patch in what is changed of its face, ``[N, 1, 14, 14]``: 1 in sum, or 0 for an unchanged face."""
    weight = functional.avg_pool2d(changed, PATCH)
    return weight / weight.sum((1, 2, 3), keepdim=True).clamp_min(1e-6)


def _grey_noise(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of standard deviation 1 that is the same in every channel, ``[N, 1, H, W]``."""
    return torch.randn(len(crops), 1, *crops.shape[2:], generator=generator).to(crops.device)


def _mean(logits: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the patches of each face, ``[N]``."""
    return (logits * weight).sum((1, 2, 3))
