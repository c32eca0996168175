"""Open what a training command's ``--data`` names: a parquet file, a folder, or a data set on the Hub."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
