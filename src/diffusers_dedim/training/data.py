"""Aligned face crops for training: parquet files, an image folder, or a `datasets` name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

CROP_SIZE = 112


class FaceCrops(Dataset[dict[str, Tensor]]):
    """Aligned 112x112 face crops.

    Args:
        source: a parquet file, a folder (of parquet files or of images) or a name on the Hub.
        split: which split a named data set is read from; for a folder of parquet files, those whose
            name begins with it; for a folder of images, its subfolder of that name. Where a source has no such
            parts all of it is used, with a warning if another split than "train" was asked for.
        require_landmarks: ask for the column ``landmarks_68``.
        keep_in_memory: decode each image once and keep it (50 KB each), which suits many passes over a
            set that fits.

    Each item holds ``image`` uint8 ``[3, 112, 112]`` RGB, ``known`` bool ``[1, 112, 112]`` (false where the
    source photo did not reach: alpha 0) and, where the data has them, ``landmarks`` float32 ``[68, 2]`` in
    crop pixels.

    Raises:
        ValueError: no images, no ``image`` column, no landmarks where asked for, or crops of another size;
            items: an image that cannot be read, or other than 68 landmarks.
    """

    def __init__(
        self, source: str | Path, split: str = "train", *, require_landmarks: bool = False, keep_in_memory: bool = False
    ) -> None:  # fmt: skip
        self.source = str(source)
        self._kept: dict[int, dict[str, Tensor]] | None = {} if keep_in_memory else None
        self.rows = _open(self.source, split)
        columns = self.rows.column_names
        if "image" not in columns:
            raise ValueError(f"data: {self.source} has no column 'image'; its columns are {sorted(columns)}.")
        self.has_landmarks = "landmarks_68" in columns
        if require_landmarks and not self.has_landmarks:
            raise ValueError(
                f"data: {self.source} has no column 'landmarks_68' (136 floats, x then y); "
                f"its columns are {sorted(columns)}."
            )
        keep = ["image", *(["landmarks_68"] if self.has_landmarks else [])]
        self.rows = _decode_images(self.rows.select_columns(keep), self.source)
        self[0]  # a crop of another size is reported before training starts, not hours later

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self._kept is None:
            return self._decode(index)
        if index not in self._kept:
            self._kept[index] = self._decode(index)
        return self._kept[index]

    def _decode(self, index: int) -> dict[str, Tensor]:
        try:
            row: dict[str, Any] = self.rows[int(index)]
        except OSError as error:  # Pillow's word for a damaged image
            raise ValueError(f"data: image {index} of {self.source} cannot be read ({error}).") from error
        image: Image.Image = row["image"]
        if image.size != (CROP_SIZE, CROP_SIZE):
            raise ValueError(
                f"data: image {index} of {self.source} is {image.width}x{image.height}, expected "
                f"{CROP_SIZE}x{CROP_SIZE}; align it with diffusers_dedim.faces.align_face first."
            )
        rgba = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1)
        item = {"image": rgba[:3].contiguous(), "known": rgba[3:] > 0}
        if self.has_landmarks:
            points = row["landmarks_68"] or []
            if len(points) != 136:
                raise ValueError(
                    f"data: row {index} of {self.source} has {len(points)} numbers in 'landmarks_68', expected "
                    "136 (68 points, x then y); drop such rows."
                )
            item["landmarks"] = torch.tensor(points, dtype=torch.float32).reshape(68, 2)
        return item


def _open(source: str, split: str) -> Any:
    """Open a parquet file, a folder or a named data set as one `datasets.Dataset`."""
    import datasets

    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        _warn_without_split(source, split)
        return datasets.load_dataset("parquet", data_files=[str(path)], split="train")
    if not path.is_dir():
        if path.suffix or path.is_absolute():
            raise ValueError(f"data: {source} is neither a .parquet file nor a folder.")
        return datasets.load_dataset(source, split=split)
    shards = sorted(str(file) for file in path.glob(f"{split}*.parquet"))
    if shards:
        return datasets.load_dataset("parquet", data_files=shards, split="train")
    if not any(file.suffix.lower() in Image.registered_extensions() for file in path.rglob("*")):
        raise ValueError(f"data: the folder {source} holds no {split}*.parquet file and no image.")
    folder = path / split
    if not folder.is_dir():
        folder = path
        _warn_without_split(source, split)
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


def _warn_without_split(source: str, split: str) -> None:
    """Figures measured on the training faces would look like those of held-out ones."""
    if split != "train":
        warnings.warn(f"data: {source} has no part {split!r}; all of it is used.", stacklevel=4)


def _decode_images(rows: Any, source: str) -> Any:
    """Let encoded bytes, as other programs write them into parquet, be read as images; refuse the rest."""
    import datasets

    if len(rows) == 0:
        raise ValueError(f"data: {source} holds no rows.")
    kind = rows.features["image"]
    if isinstance(kind, datasets.Image):
        return rows
    try:
        return rows.cast_column("image", datasets.Image())
    except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow's refusals are of these kinds
        raise ValueError(f"data: the column 'image' of {source} holds {kind}, expected images.") from error


class ResumableBatches(Sampler[list[int]]):
    """Endless shuffled batches of indices that depend only on ``seed`` and the step, so a resumed
    training sees exactly the batches that an uninterrupted one would have seen.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start_step: int = 0) -> None:
        if length < batch_size:
            raise ValueError(f"batch_size: {batch_size} is more than the {length} images of the data.")
        self.length, self.batch_size, self.seed, self.start_step = length, batch_size, seed, start_step

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.length // self.batch_size
        step = self.start_step
        while True:
            epoch, offset = divmod(step, per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            for start in range(offset, per_epoch):
                yield order[start * self.batch_size : (start + 1) * self.batch_size].tolist()
                step += 1


def batches(
    dataset: Dataset[dict[str, Tensor]], batch_size: int, seed: int, start_step: int, num_workers: int
) -> Iterator[dict[str, Tensor]]:
    """Endless collated batches from ``start_step`` on."""
    sampler = ResumableBatches(len(dataset), batch_size, seed, start_step)  # type: ignore[arg-type]
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers))


def to_model_range(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def random_similarity(
    images: Tensor, points: Tensor, generator: torch.Generator,
    max_shift: float, max_scale: float, max_degrees: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Shift, scale and turn each image a little, and its landmarks with it.

    Args:
        images: ``[N, C, H, W]``; pixels from outside repeat the border.
        points: ``[N, K, 2]`` pixels; K may be 0.
        generator: source of the randomness.
        max_shift: pixels. max_scale: share of 1. max_degrees: degrees.

    Returns:
        Warped images and points.
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
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    warped = torch.nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    centre, shift, linear = (size - 1) / 2, shift.to(points), linear.to(points)
    moved = (points - centre - shift[:, None]) @ torch.linalg.inv(linear).transpose(1, 2) + centre
    return warped, moved
