"""Photos as rows of a Ray dataset: from folders and files, parquet tables, or webdataset archives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.image_io import PHOTO_SUFFIXES
from diffusers_dedim.photo_jobs import RunError, plan_jobs

INSTALL = 'pip install "diffusers-dedim[ray]"'
_ID_COLUMNS = ("id", "__key__", "name")
_IMAGE_COLUMNS = ("image", "bytes", "data")
_EXTENSIONS = frozenset(suffix.lstrip(".") for suffix in PHOTO_SUFFIXES)


def import_ray_data() -> Any:
    """Ray Data, or an error that says how to install it."""
    return import_extra("ray.data", "dedim run --ray", INSTALL)


def read_rows(inputs: Sequence[str | os.PathLike[str]], out: Path) -> tuple[Any, tuple[str, ...] | None]:
    """Make a dataset whose rows have an ``id`` and either ``data``, the encoded photo, or ``path``, its file.

    Args:
        inputs: folders and photo files; or parquet files with a column of ids (``id``, ``__key__`` or ``name``) and
            one of encoded photos (``image`` as `datasets` writes it, ``image``, ``bytes`` or ``data`` as binary); or
            webdataset ``.tar`` files. One kind at a time. Ids must be unique.
        out: output folder, which no input may overlap.

    Returns:
        The dataset, and the ids where they are known beforehand (folders and files), else None.

    Raises:
        RunError: an input does not exist, kinds are mixed, or a table lacks a column.
    """
    data, paths = import_ray_data(), [Path(entry) for entry in inputs]
    kinds = {path.suffix.lower() if path.suffix.lower() in (".parquet", ".tar") else "" for path in paths}
    if len(kinds) > 1:
        raise RunError("inputs: give photos and folders, or parquet files, or .tar files, not several kinds")
    if kinds <= {""}:
        jobs = plan_jobs(inputs, out).jobs
        items = [{"id": job.name, "path": str(job.source.resolve())} for job in jobs]
        return data.from_items(items), tuple(job.name for job in jobs)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise RunError(f"{missing[0]}: no such file")
    inside = [str(path) for path in paths if out.resolve() in path.resolve().parents]
    if inside:
        raise RunError(
            f"{inside[0]}: the input lies in the output folder {out}; choose another output folder"
        )
    names = [str(path.resolve()) for path in paths]
    if kinds == {".tar"}:
        return data.read_webdataset(names, decoder=None).map(_from_webdataset), None
    table = data.read_parquet(names)
    return table.map(_from_table(table.schema().names, names[0])), None


def _from_webdataset(row: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in row.items():
        if key.lower() in _EXTENSIONS and value is not None:
            return {"id": f"{row['__key__']}.{key}", "data": bytes(value)}
    return {"id": str(row["__key__"]), "data": b""}  # is recorded as unreadable


def _from_table(columns: Sequence[str], shown: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    key = next((name for name in _ID_COLUMNS if name in columns), None)
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if key is None or image is None:
        raise RunError(
            f"{shown}: expected a column of ids out of {_ID_COLUMNS} and one of encoded photos out of "
            f"{_IMAGE_COLUMNS}, got {list(columns)}; rename or add them"
        )

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        value = row[image]
        value = value.get("bytes") if isinstance(value, Mapping) else value
        return {"id": str(row[key]), "data": b"" if value is None else bytes(value)}

    return convert
