"""An attacker's tool: a small network that learns on strangers to take a protection off again.

It is trained to measure the protection against (`dedim evaluate --robustness --purifier`); no weights are shipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from diffusers_dedim.models.blocks import check_crops
from diffusers_dedim.training.augment import random_similarity
from diffusers_dedim.training.config import PurifierConfig
from diffusers_dedim.training.data import FaceCrops, batches, check_batch_size, to_model_range
from diffusers_dedim.training.loop import Batch, cosine_decay

PAIR_PARTS = ("protected", "original")
"""What a folder of pairs holds: ``NAME.parquet``, or a folder NAME of images, for each."""

_CHANNELS = (32, 64, 96)  # at 56, 28 and 14 px
_DEPTHS = (1, 2, 3)  # residual convolutions on the way down; up again as many, but for the coarsest map
_PATCH = 2  # px: the side of what a place of the finest map stands for
_HELD_OUT = 0.1


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


class FacePairs(Dataset[dict[str, Tensor]]):
    """Protected faces beside what they were.

    Args:
        folder: with ``protected`` and ``original`` (`PAIR_PARTS`), each a parquet file or a folder of images of
            112x112 px, in the same order.
        part: "train", or "val" for the last tenth, which is not trained on.
        keep_in_memory: keep decoded faces.

    Each item holds ``protected`` and ``original``, uint8 ``[3, 112, 112]``.

    Raises:
        ValueError: a part is missing, the two are not of one length, or there are fewer than two pairs.
    """

    def __init__(self, folder: str | Path, part: str = "train", *, keep_in_memory: bool = False) -> None:
        self.sides: list[FaceCrops] = [
            FaceCrops(_find_part(Path(folder), name), keep_in_memory=keep_in_memory) for name in PAIR_PARTS
        ]
        counts = [len(side) for side in self.sides]
        if len(set(counts)) > 1 or counts[0] < 2:
            raise ValueError(
                f"data: expected as many protected as original faces in {folder}, at least 2, got {counts[0]} and "
                f"{counts[1]}; row by row they are the same faces."
            )
        held_out = max(1, round(_HELD_OUT * counts[0]))
        rows = range(counts[0])
        self.rows: range = rows[:-held_out] if part == "train" else rows[-held_out:]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        return {name: side[row]["image"] for name, side in zip(PAIR_PARTS, self.sides, strict=True)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both sides as they are stored."""
        prints = " ".join(side.fingerprint for side in self.sides)
        return hashlib.sha256(f"{prints} {self.rows}".encode()).hexdigest()


class PurifierTask:
    """Bring protected faces back: by their pixels, and to what the guides answer to the originals.

    Args:
        train_data, val_data: pairs.
        config: the settings.
        encoder: crops ``[N, 3, 112, 112]`` -> unit embeddings ``[N, D]``, with gradients: a recogniser that the
            attacker has. The guides that protected are in the package.
        model: network to train on; a new one by default.

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
        check_batch_size(config.batch_size, len(train_data))
        self.model: nn.Module = model or PurifierNet()
        self.encoder: nn.Module = encoder.eval().requires_grad_(False)
        self.train_data: FacePairs = train_data
        self.val_data: FacePairs = val_data
        self.config: PurifierConfig = config

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the pairs."""
        _ = self.val_data.fingerprint
        return {"data": self.train_data.fingerprint}

    def begin_step(self, share: float) -> float:
        """Follow a cosine over the budget down to 1 % of the peak rate."""
        return cosine_decay(share)

    def batches(self, start_batch: int) -> Iterator[Batch]:
        """Yield pairs, collated."""
        config = self.config
        return batches(self.train_data, config.batch_size, config.seed, start_batch, config.num_workers)

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


def _find_part(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.parquet", folder / name):
        if path.exists():
            return path
    raise ValueError(
        f"data: expected {name}.parquet, or a folder {name} of images, in {folder}: pairs of protected and original "
        "faces, in the same order."
    )
