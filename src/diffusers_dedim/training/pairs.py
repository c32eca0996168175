"""Pairs of protected faces and what they were: what an attacker learns from, and what tells the two apart."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from diffusers_dedim.training.data import FaceCrops

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


def _find_part(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.parquet", folder / name):
        if path.exists():
            return path
    raise ValueError(
        f"data: expected {name}.parquet, or a folder {name} of images, in {folder}: pairs of protected and original "
        "faces, in the same order."
    )
