"""Pairs of protected faces and what they were: what an attacker learns from, and what tells the two apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from diffusers_dedim.training.config import PairConfig
from diffusers_dedim.training.data import FaceCrops, batches, check_batch_size
from diffusers_dedim.training.loop import Batch

PAIR_PARTS = ("protected", "original")
"""What a folder of pairs holds: ``NAME.parquet``, or a folder NAME of images, for each."""

_HELD_OUT = 0.1


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


class PairTask:
    """Base of the tasks on pairs: pairs in batches, and what a resumed training must share with the first.

    Args:
        train_data, val_data: pairs.
        config: batch size, seed and number of worker processes are read.

    Attributes:
        model: the network, which the subclass makes.

    Raises:
        ValueError: the batch is larger than the training data.
    """

    model: nn.Module

    def __init__(self, train_data: FacePairs, val_data: FacePairs, config: PairConfig) -> None:
        check_batch_size(config.batch_size, len(train_data))
        self.train_data: FacePairs = train_data
        self.val_data: FacePairs = val_data
        self._loading = config

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the training pairs; the held-out ones are looked through too."""
        _ = self.val_data.fingerprint
        return {"data": self.train_data.fingerprint}

    def batches(self, start_batch: int) -> Iterator[Batch]:
        """Yield pairs, collated."""
        config = self._loading
        return batches(
            self.train_data,
            config.batch_size,
            config.seed,
            start_batch,
            config.num_workers,
            pin_memory=next(self.model.parameters()).is_cuda,
        )


def _find_part(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.parquet", folder / name):
        if path.exists():
            return path
    raise ValueError(
        f"data: expected {name}.parquet, or a folder {name} of images, in {folder}: pairs of protected and original "
        "faces, in the same order."
    )
