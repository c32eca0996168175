"""The standard LFW verification pairs as aligned crops."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks._faces import spread
from diffusers_dedim.training.data import CROP_SIZE, to_model_range


@dataclass(frozen=True)
class VerificationPairs:
    """Pairs of crops, in the order of the pairs file (whose tenths are the folds).

    Attributes:
        images: encoded crops; only those of the pairs.
        persons: identity of each crop.
        first, second: indices of each pair's crops.
        same: whether a pair shows one person.
    """

    images: Sequence[bytes] = field(repr=False)
    persons: NDArray[np.str_]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]

    def crops(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Decode crops: ``[N, 3, 112, 112]`` float32 in [-1, 1].

        Raises:
            ValueError: a crop is of another size.
        """
        pixels = [np.array(Image.open(io.BytesIO(self.images[index])).convert("RGB")) for index in indices]
        wrong = [array.shape for array in pixels if array.shape != (CROP_SIZE, CROP_SIZE, 3)]
        if wrong:
            raise ValueError(f"--pairs: expected {CROP_SIZE}x{CROP_SIZE} crops, got {wrong[0]}.")
        return to_model_range(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))

    def one_per_person(self, count: int) -> NDArray[np.int64]:
        """Indices of ``count`` crops (or all there are) of as many people, evenly spaced over them."""
        _, first_crops = np.unique(self.persons, return_index=True)
        return first_crops[spread(len(first_crops), count)]

    def genuine(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Crop indices of ``count`` pairs (or all there are) of one person, evenly spaced over them."""
        first, second = self.first[self.same], self.second[self.same]
        chosen = spread(len(first), count)
        return first[chosen], second[chosen]


def read_pairs(folder: Path, limit: int | None = None) -> VerificationPairs:
    """Read ``pairs.csv`` (a, b, same) and ``lfw_pairs_crops.parquet``, whose image paths are those names.

    Args:
        folder: holds both files. A name is ``<person>_<number>.jpg``.
        limit: this many pairs, evenly spaced over the file so that folds and labels keep their shares.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a crop of the pairs is missing.
    """
    with (folder / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [rows[index] for index in spread(len(rows), limit or len(rows))]
    table = pq.read_table(folder / "lfw_pairs_crops.parquet", columns=["image"])
    content = {row["path"]: row["bytes"] for row in table.column("image").to_pylist()}
    names = sorted({row[side] for row in rows for side in ("a", "b")})
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"--pairs: {folder} has no crop of {missing[:5]} ({len(missing)} missing).")
    index = {name: place for place, name in enumerate(names)}
    return VerificationPairs(
        images=[content[name] for name in names],
        persons=np.array([name.rsplit("_", 1)[0] for name in names]),
        first=np.array([index[row["a"]] for row in rows]),
        second=np.array([index[row["b"]] for row in rows]),
        same=np.array([row["same"] == "1" for row in rows]),
    )


@torch.no_grad()
def embed_crops(
    encoder: nn.Module,
    pairs: VerificationPairs,
    indices: NDArray[np.int64],
    batch_size: int = 64,
    *,
    mirrored: bool = False,
) -> NDArray[np.float32]:
    """Embed crops, or their mirror images, batch by batch: unit vectors ``[N, D]`` float32."""
    rows = []
    for batch in np.array_split(indices, -(-len(indices) // batch_size)):
        crops = pairs.crops(batch)
        rows.append(encoder(crops.flip(3) if mirrored else crops).float())
    embeddings: NDArray[np.float32] = torch.cat(rows).numpy()
    return embeddings
