"""Open what a training command's ``--data`` names: a parquet file, a folder, or a data set on the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_dedim.extras import import_extra


def open_rows(source: str, split: str, *, with_labels: bool = False) -> Any:
    """Open a part of a data set.

    A part is found by its name, and "val" also as "validation". A source without such a part is taken whole; but
    where another part is asked for than "train" and the source has one of that name, that is taken. Both with a
    warning: figures measured on the training faces would look like those of held-out ones.

    Args:
        source: a parquet file; a folder of parquet files, in it or in its folder ``data``, whose names begin with the
            part's; a folder of images, the parts as subfolders; or a name on the Hub.
        split: "train" or "val".
        with_labels: in a folder of images, name each image's folder in the column ``label``.

    Returns:
        `datasets.Dataset`.

    Raises:
        ImportError: datasets is missing; the message has the command that installs it.
        ValueError: there is no such file or folder, the folder holds nothing of use, or there is a part for
            validation and none for training.
    """
    datasets = import_extra("datasets", "dedim train", 'pip install "diffusers-dedim[train]"')
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        rows, found = datasets.load_dataset("parquet", data_files=[str(path)], split="train"), None
    elif path.is_dir():
        rows, found = _open_folder(datasets, path, split, with_labels)
    elif path.suffix == ".parquet" or path.is_absolute() or len(path.parts) > 2 or source.startswith("."):
        raise ValueError(f"data: {source} is neither a .parquet file nor a folder.")
    else:
        names = datasets.get_dataset_split_names(source)
        found = _choose(split, names, source)
        rows = datasets.load_dataset(source, split=found or "+".join(names))
    if split != "train" and (found is None or not found.startswith(split)):
        used = "all of it" if found is None else f"its part {found!r}"
        warnings.warn(f"data: {source} has no part {split!r}; {used} is used.", stacklevel=3)
    return rows


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
        return datasets.load_dataset("parquet", data_files=shards, split="train"), found
    if not any(file.suffix.lower() in Image.registered_extensions() for file in folder.rglob("*")):
        raise ValueError(f"data: the folder {folder} holds no .parquet file and no image.")
    found = _choose(
        split, (part.name for part in folder.iterdir() if part.is_dir() and _is_part(part.name)), str(folder)
    )
    labels = {"drop_labels": False} if with_labels else {}
    # without data_files, datasets guesses parts from words in the names of files and people, and leaves the rest out
    where = {"data_dir": str(folder / found if found else folder), "data_files": {"train": "**"}}
    return datasets.load_dataset("imagefolder", split="train", **where, **labels), found


def _is_part(name: str) -> bool:
    """Folders of people may begin with the same letters."""
    return name in ("train", "val", "validation")


def _shards(files: Sequence[Path], split: str, folder: Path) -> tuple[str | None, list[str]]:
    """The part's name and its files, or None and all of them."""
    first = _choose(split, (file.name for file in files), str(folder))
    if first is None:
        return None, [str(file) for file in files]
    part = split if first.startswith(split) else "train"
    return part, [str(file) for file in files if file.name.startswith(part)]
