"""Aligned face crops for training: parquet files, an image folder, or a `datasets` name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diffusers_dedim.training.sources import open_rows

CROP_SIZE = 112


class FaceCrops(Dataset[dict[str, Tensor]]):
    """Aligned 112x112 face crops.

    Args:
        source: a parquet file, a folder (of parquet files or of images) or a name on the Hub (`open_rows`).
        split: "train" or "val", see `open_rows` for what that means in each kind of source.
        require_landmarks: ask for the column ``landmarks_68``.
        keep_in_memory: decode each image once and keep it (50 KB each), which suits many passes over a
            set that fits; each worker process of a loader would keep its own.
        label_column: column of identities, text or whole numbers; in a folder of images ``"label"`` is the
            name of the folder that an image lies in.

    Attributes:
        labels: int64 ``[N]``, the identities numbered from 0; empty without ``label_column``.

    Each item holds ``image`` uint8 ``[3, 112, 112]`` RGB, ``known`` bool ``[1, 112, 112]`` (false where the
    source photo did not reach: alpha 0) and, where the data has them, ``landmarks`` float32 ``[68, 2]`` in
    crop pixels, and ``label`` int64 where asked for.

    Raises:
        ValueError: no images, no ``image`` column, no landmarks or labels where asked for, or a first crop of
            another size; items: an image that cannot be read, or other than 68 landmarks, all of them numbers.
        ImportError: `datasets` is not installed; the message has the command that installs it.
    """

    def __init__(
        self, source: str | Path, split: str = "train", *, require_landmarks: bool = False,
        keep_in_memory: bool = False, label_column: str | None = None,
    ) -> None:  # fmt: skip
        self.source = str(source)
        self._kept: dict[int, dict[str, Tensor]] | None = {} if keep_in_memory else None
        self.rows = open_rows(self.source, split, with_labels=label_column is not None)
        columns = self.rows.column_names
        if "image" not in columns:
            raise ValueError(f"data: {self.source} has no column 'image'; its columns are {sorted(columns)}.")
        self.has_landmarks = "landmarks_68" in columns
        if require_landmarks and not self.has_landmarks:
            raise ValueError(
                f"data: {self.source} has no column 'landmarks_68' (136 floats, x then y); "
                f"its columns are {sorted(columns)}."
            )
        self.labels = (
            np.empty(0, np.int64) if label_column is None else _labels(self.rows, label_column, self.source)
        )
        keep = ["image", *(["landmarks_68"] if self.has_landmarks else [])]
        self.rows = _decode_images(self.rows.select_columns(keep), self.source)
        self[0]  # a crop of another size is reported before training starts, not hours later

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images (as stored), landmarks and labels in their order, wherever they lie.

        Every row is looked at, so that a wrong one is an error before a training and not hours into it; only
        the pixels are not decoded.

        Raises:
            ValueError: a crop of another size, a file that is no image, or other than 68 landmarks that are numbers.
        """
        import datasets

        digest = hashlib.sha256(json.dumps([len(self), self.has_landmarks]).encode())
        for index, row in enumerate(self.rows.cast_column("image", datasets.Image(decode=False))):
            stored = row["image"] or {}
            content = stored.get("bytes") or (
                Path(stored["path"]).read_bytes() if stored.get("path") else b""
            )
            try:
                self._check_size(index, Image.open(BytesIO(content)))
            except OSError as error:
                raise self._unreadable(index, error) from error
            digest.update(hashlib.sha256(content).digest())
            if self.has_landmarks:
                digest.update(self._points(index, row).tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

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
            raise self._unreadable(index, error) from error
        image: Image.Image = row["image"]
        self._check_size(index, image)
        rgba = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1)
        item = {"image": rgba[:3].contiguous(), "known": rgba[3:] > 0}
        if self.has_landmarks:
            item["landmarks"] = torch.from_numpy(self._points(index, row)).reshape(68, 2)
        if len(self.labels):
            item["label"] = torch.tensor(self.labels[index])
        return item

    def _unreadable(self, index: int, error: OSError) -> ValueError:
        return ValueError(f"data: image {index} of {self.source} cannot be read ({error}).")

    def _check_size(self, index: int, image: Image.Image) -> None:
        if image.size != (CROP_SIZE, CROP_SIZE):
            raise ValueError(
                f"data: image {index} of {self.source} is {image.width}x{image.height}, expected "
                f"{CROP_SIZE}x{CROP_SIZE}; align it with diffusers_dedim.faces.align_face first."
            )

    def _points(self, index: int, row: dict[str, Any]) -> NDArray[np.float32]:
        """Landmarks of a row, ``[136]``."""
        points = row["landmarks_68"] or []
        if len(points) != 136:
            raise ValueError(
                f"data: row {index} of {self.source} has {len(points)} numbers in 'landmarks_68', expected "
                "136 (68 points, x then y); drop such rows."
            )
        numbers = np.array(points, dtype=np.float32)  # a number that is null becomes NaN
        wrong = int((~np.isfinite(numbers)).sum())
        if wrong:
            raise ValueError(
                f"data: row {index} of {self.source} has {wrong} of 136 numbers in 'landmarks_68' that are "
                "null, NaN or infinite; drop such rows."
            )
        return numbers


def _labels(rows: Any, column: str, source: str) -> NDArray[np.int64]:
    """Number the identities of a column from 0, in the order of their names."""
    if column not in rows.column_names:
        raise ValueError(
            f"labels: {source} has no column {column!r}; its columns are {sorted(rows.column_names)}. "
            "Give --labels COLUMN, or one folder of images per identity."
        )
    values = rows.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise ValueError(f"labels: {values.null_count} rows of {source} have no {column!r}; drop them.")
    names = np.asarray(values.to_pylist())
    if names.dtype.kind not in "iuU" or names.ndim != 1:
        raise ValueError(
            f"labels: the column {column!r} of {source} holds {values.type}, expected text or whole numbers."
        )
    people, numbers = np.unique(names, return_inverse=True)
    if len(people) < 2:
        raise ValueError(
            f"labels: the column {column!r} of {source} names one identity only, expected at least 2."
        )
    return numbers.astype(np.int64)


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


def check_batch_size(batch_size: int, length: int) -> None:
    """Refuse a batch that the data cannot fill.

    Raises:
        ValueError: ``batch_size`` is more than ``length``.
    """
    if length < batch_size:
        raise ValueError(f"batch_size: {batch_size} is more than the {length} images of the data.")


class ResumableBatches(Sampler[list[int]]):
    """Endless shuffled batches of indices that depend only on ``seed`` and their number, so a resumed
    training sees exactly the batches that an uninterrupted one would have seen.

    Args:
        length: images of the data.
        batch_size: indices a batch; what is left over at the end of a pass is another rest each time.
        seed: of the order, which is another one in each pass.
        start_batch: how many batches were seen before, 0 or more.

    Raises:
        ValueError: there are fewer images than a batch takes.

    Example:
        >>> from itertools import islice
        >>> whole = list(islice(ResumableBatches(7, 3, seed=0), 4))
        >>> list(islice(ResumableBatches(7, 3, seed=0, start_batch=3), 1)) == whole[3:]
        True
    """

    def __init__(self, length: int, batch_size: int, seed: int, start_batch: int = 0) -> None:
        check_batch_size(batch_size, length)
        self.length, self.batch_size, self.seed, self.start_batch = length, batch_size, seed, start_batch

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.length // self.batch_size
        step = self.start_batch
        while True:
            epoch, offset = divmod(step, per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            for start in range(offset, per_epoch):
                yield order[start * self.batch_size : (start + 1) * self.batch_size].tolist()
                step += 1


def batches(
    dataset: Dataset[dict[str, Tensor]], batch_size: int, seed: int, start_batch: int, num_workers: int,
    *, pin_memory: bool = False,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Endless collated batches from ``start_batch`` on, in pinned memory if they are to be copied to CUDA."""
    sampler = ResumableBatches(len(dataset), batch_size, seed, start_batch)  # type: ignore[arg-type]
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, pin_memory=pin_memory))


def to_model_range(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
