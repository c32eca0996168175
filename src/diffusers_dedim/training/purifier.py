"""An attacker's tool: a small network that learns on strangers to take a protection off again.

It is trained to measure the protection against (`dedim evaluate --robustness --purifier`); no weights are shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from diffusers_dedim.models.blocks import check_crops
from diffusers_dedim.training.augment import random_similarity
from diffusers_dedim.training.config import PurifierConfig
from diffusers_dedim.training.data import to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask
from diffusers_dedim.training.pairs import PAIR_PARTS, FacePairs

_CHANNELS = (32, 64, 96)  # at 56, 28 and 14 px
_DEPTHS = (1, 2, 3)  # residual convolutions on the way down; up again as many, but for the coarsest map
_PATCH = 2  # px: the side of what a place of the finest map stands for


class PurifierNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers ships no types
    """Undo a change of aligned crops: a small U-Net whose answer is added to what it saw.

    Untrained it changes nothing. No norm: brightness and contrast of a face must come through as they are.

    Args:
        width: factor of the channels; 1.0 has 0.5 M parameters.

    Source:
        Ours; the plan follows Ronneberger et al. 2015 and, for the residual answer, Zhang et al. 2017 (DnCNN).

    Example:
        >>> crops = torch.rand(2, 3, 112, 112) * 2 - 1
        >>> torch.equal(PurifierNet()(crops), crops)
        True
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = [max(4, round(width * count)) for count in _CHANNELS]
        steps = [nn.Conv2d(finer, coarser, 3, stride=2, padding=1) for finer, coarser in pairwise(channels)]
        entries = [nn.Conv2d(3 * _PATCH**2, channels[0], 3, padding=1), *steps]
        self.down: nn.ModuleList = nn.ModuleList(
            nn.Sequential(entry, nn.ReLU(), *(_Residual(count) for _ in range(depth)))
            for entry, count, depth in zip(entries, channels, _DEPTHS, strict=True)
        )
        upwards, depths = channels[::-1], _DEPTHS[-2::-1]
        self.lateral: nn.ModuleList = nn.ModuleList(nn.Conv2d(c, f, 1) for c, f in pairwise(upwards))
        self.up: nn.ModuleList = nn.ModuleList(
            nn.Sequential(*(_Residual(count) for _ in range(depth)))
            for count, depth in zip(upwards[1:], depths, strict=True)
        )
        self.head: nn.Conv2d = nn.Conv2d(channels[0], 3 * _PATCH**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, crops: Tensor) -> Tensor:
        """Restore crops.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            The same shape, float32, not cut to [-1, 1].

        Raises:
            ValueError: the crops have another shape.
        """
        check_crops(crops)
        x = functional.pixel_unshuffle(crops.to(self.dtype), _PATCH)
        maps = []
        for stage in self.down:
            x = stage(x.contiguous(memory_format=torch.channels_last))
            maps.append(x)
        for lateral, block, finer in zip(self.lateral, self.up, maps[-2::-1], strict=True):
            x = block(finer + functional.interpolate(lateral(x), size=finer.shape[-2:], mode="bilinear"))
        return crops.float() + functional.pixel_shuffle(self.head(x), _PATCH).float()


class _Residual(nn.Module):
    """A 3x3 convolution whose answer is added to what it saw."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return x + functional.relu(self.layer(x))


class PurifierTask(FaceTask[FacePairs]):
    """Bring protected faces back: by their pixels, and to what the guides answer to the originals.

    Args:
        train_data, val_data: pairs.
        config: the settings.
        encoder: crops ``[N, 3, 112, 112]`` -> unit embeddings ``[N, D]``, with gradients: a recogniser that the
            attacker has. The guides that protected are in the package.
        model: network to train on; a new one of ``config.width`` by default.

    Raises:
        ValueError: the batch is larger than the training data.
    """

    def __init__(
        self,
        train_data: FacePairs,
        val_data: FacePairs,
        config: PurifierConfig,
        encoder: nn.Module,
        *,
        model: PurifierNet | None = None,
    ) -> None:
        super().__init__(train_data, val_data, config)
        self.model: nn.Module = model or PurifierNet(config.width)
        self.encoder: nn.Module = encoder.eval().requires_grad_(False)
        self.config: PurifierConfig = config

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Squared error of the pixels as a share of the protection's, plus ``identity_weight`` (1 - cosine).

        Squared, because the absolute error of a change of unknown sign is least where nothing is undone.
        """
        sides = torch.cat([to_model_range(batch[name]) for name in PAIR_PARTS], 1)
        flip = (torch.rand(len(sides), 1, 1, 1, generator=generator) < 0.5).to(sides.device)
        sides = torch.where(flip, sides.flip(3), sides)
        # a searcher's alignment is not that of the crops it learnt from
        no_points = sides.new_zeros(len(sides), 0, 2)
        sides, _ = random_similarity(
            sides, no_points, generator, max_shift=1.5, max_scale=0.02, max_degrees=2
        )
        protected, original = sides.clamp(-1, 1).chunk(2, dim=1)
        restored = model(protected)
        worst = (protected - original).square().mean().clamp_min(1e-5)
        loss: Tensor = (restored - original).square().mean() / worst
        if self.config.identity_weight:
            loss = loss + self.config.identity_weight * (1 - self._cosine(restored, original).mean())
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the held-out pairs, before and after: PSNR in dB, and cosine with the original by the encoder."""
        items = [self.val_data[row] for row in range(min(self.config.val_images, len(self.val_data)))]
        device = next(model.parameters()).device
        sides = [
            to_model_range(torch.stack([item[name] for item in items])).to(device) for name in PAIR_PARTS
        ]
        protected, original = sides
        restored = torch.cat(
            [model(piece) for piece in torch.split(protected, self.config.batch_size)]
        ).clamp(-1, 1)
        figures = {}
        for name, crops in (("protected", protected), ("restored", restored)):
            error = (crops - original).square().flatten(1).mean(1).clamp_min(1e-8)
            figures[f"psnr_{name}"] = float((10 * torch.log10(4 / error)).mean())
            figures[f"cosine_{name}"] = float(self._cosine(crops, original).mean())
        return figures

    def _cosine(self, crops: Tensor, originals: Tensor) -> Tensor:
        encoder = self.encoder.to(crops.device)
        with torch.no_grad():
            target = encoder(originals)
        cosine: Tensor = (encoder(crops.float()) * target).sum(1)
        return cosine
