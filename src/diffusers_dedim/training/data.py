"""Aligned face crops for training: parquet files, an image folder, or a `datasets` name."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diffusers_dedim.extras import import_extra
from diffusers_dedim.models.blocks import CROP_SIZE


def open_rows(source: str, split: str, *, with_labels: bool = False) -> Any:
    """Open a part of a data set.

    A part is found by its name, and "val" also as "validation". A source without such a part is taken whole; but
    where another part is asked for than "train" and the source has one of that name, that is taken. Both with a
    warning: figures measured on the training faces would look like those of held-out ones.

    Args:
        source: a parquet file; a folder of parquet files, in it or in its folder ``data``, whose names begin with the
            part's; a folder of images, the parts as subfolders; or a name on the Hub, ``OWNER/NAME``. The Hub is
            asked only where there is no folder OWNER here.
        split: "train" or "val".
        with_labels: in a folder of images, name each image's folder in the column ``label``.

    Returns:
        `datasets.Dataset`.

    Raises:
        ImportError: datasets is missing; the message has the command that installs it.
        ValueError: there is no such file or folder, here or on the Hub; the folder, or the part of it that is asked
            for, holds nothing of use; or there is a part for validation and none for training.
    """
    datasets = import_extra("datasets", "dedim train", 'pip install "diffusers-dedim[train]"')
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        rows, found = _load_parquet(datasets, [path]), None
    elif path.is_dir():
        rows, found = _open_folder(datasets, path, split, with_labels)
    elif path.exists():
        raise ValueError(f"data: {source} is neither a .parquet file nor a folder.")
    else:
        rows, found = _open_hub(datasets, source, split)
    if split != "train" and (found is None or not found.startswith(split)):
        used = "all of it" if found is None else f"its part {found!r}"
        warnings.warn(f"data: {source} has no part {split!r}; {used} is used.", stacklevel=3)
    return rows


def _open_hub(datasets: Any, source: str, split: str) -> tuple[Any, str | None]:
    """The rows of a data set on the Hub, and the name of the part that they are of."""
    if not _may_be_on_the_hub(source):
        raise ValueError(
            f"data: there is no such folder or file here: {source}; expected a .parquet file, a folder, or "
            "OWNER/NAME of a data set on the Hub."
        )
    with _hub_reason(source):
        names = datasets.get_dataset_split_names(source)
    found = _choose(split, names, source)
    with _hub_reason(source):
        return datasets.load_dataset(source, split=found or "+".join(names)), found


@contextmanager
def _hub_reason(source: str) -> Iterator[None]:
    """Say both that there is nothing here and why the Hub gave nothing: either may be the mistake."""
    try:
        yield
    except Exception as error:  # of datasets, huggingface_hub, httpx or fsspec: no class is common to them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"data: there is no such folder or file here: {source}; and as a data set on the Hub it could not be "
            f"opened ({reason})."
        ) from error


def _may_be_on_the_hub(source: str) -> bool:
    """Only OWNER/NAME, and not where OWNER is a folder here: that is a mistyped path."""
    owner, _, name = source.partition("/")
    valid = all(re.fullmatch(r"\w([\w.-]*\w)?", part, re.ASCII) for part in (owner, name))
    return valid and not name.endswith(".parquet") and not Path(owner).exists()


def _choose(split: str, names: Iterable[str], source: str) -> str | None:
    """The part to take: of that name, of a longer one ("validation"), the training part, or none of them.

    Raises:
        ValueError: the rest would be trained on together with the part for validation.
    """
    ordered = sorted(names)
    for wanted in (split, "train"):
        for name in ordered:
            if name.startswith(wanted):
                return name
    if split == "train" and any(name.startswith("val") for name in ordered):
        raise ValueError(f"data: {source} has a part for validation and none whose name begins with 'train'.")
    return None


def _open_folder(datasets: Any, folder: Path, split: str, with_labels: bool) -> tuple[Any, str | None]:
    """The rows, and the name of the part that they are of."""
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    if files:
        found, shards = _shards(files, split, folder)
        return _load_parquet(datasets, shards), found
    if not _holds_images(folder):
        raise ValueError(f"data: the folder {folder} holds no .parquet file and no image.")
    found = _choose(
        split, (part.name for part in folder.iterdir() if part.is_dir() and _is_part(part.name)), str(folder)
    )
    part = folder / found if found else folder
    if not _holds_images(part):
        raise ValueError(
            f"data: the folder {part} holds no image, but {folder} does; put the faces of this part there, or "
            "remove the empty folder."
        )
    labels = {"drop_labels": False} if with_labels else {}
    # without data_files, datasets guesses parts from words in the names of files and people, and leaves the rest out
    images = {"train": f"{_literal(part)}/**"}
    return datasets.load_dataset("imagefolder", split="train", data_files=images, **labels), found


def _holds_images(folder: Path) -> bool:
    """Whether there is an image that `datasets` would take: it passes over hidden files and folders."""
    images = (file for file in folder.rglob("*") if file.suffix.lower() in Image.registered_extensions())
    return any(
        not any(name.startswith((".", "__")) for name in file.relative_to(folder).parent.parts)
        and not file.name.startswith(".")
        for file in images
    )


def _load_parquet(datasets: Any, files: Sequence[Path]) -> Any:
    return datasets.load_dataset("parquet", data_files=[_literal(file) for file in files], split="train")


def _literal(path: Path) -> str:
    """The path for `datasets`, which takes every one for a pattern."""
    return glob.escape(path.resolve().as_posix())


def _is_part(name: str) -> bool:
    """Folders of people may begin with the same letters."""
    return name in ("train", "val", "validation")


def _shards(files: Sequence[Path], split: str, folder: Path) -> tuple[str | None, list[Path]]:
    """The part's name and its files, or None and all of them."""
    first = _choose(split, (file.name for file in files), str(folder))
    if first is None:
        return None, list(files)
    part = split if first.startswith(split) else "train"
    return part, [file for file in files if file.name.startswith(part)]


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
        self,
        source: str | Path,
        split: str = "train",
        *,
        require_landmarks: bool = False,
        keep_in_memory: bool = False,
        label_column: str | None = None,
    ) -> None:
        self.source: str = str(source)
        self._kept: dict[int, dict[str, Tensor]] | None = {} if keep_in_memory else None
        self.rows: Any = open_rows(self.source, split, with_labels=label_column is not None)
        columns = self.rows.column_names
        if "image" not in columns:
            raise ValueError(f"data: {self.source} has no column 'image'; its columns are {sorted(columns)}.")
        self.has_landmarks: bool = "landmarks_68" in columns
        if require_landmarks and not self.has_landmarks:
            raise ValueError(
                f"data: {self.source} has no column 'landmarks_68' (136 floats, x then y); "
                f"its columns are {sorted(columns)}."
            )
        self.labels: NDArray[np.int64] = (
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


class FaceData(Protocol):
    """What a task trains on: faces by their number, and a fingerprint of them all."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is stored."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]:
        """A face, or a pair of them."""
        ...


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
        self.length: int = length
        self.batch_size: int = batch_size
        self.seed: int = seed
        self.start_batch: int = start_batch

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
    dataset: FaceData,
    batch_size: int,
    seed: int,
    start_batch: int,
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Endless collated batches from ``start_batch`` on, in pinned memory if they are to be copied to CUDA."""
    sampler = ResumableBatches(len(dataset), batch_size, seed, start_batch)
    loader: Any = DataLoader(
        dataset,  # type: ignore[arg-type]  # it asks for no more than this
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    return iter(loader)


def to_model_range(images: Tensor) -> Tensor:
    """Map uint8 images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
