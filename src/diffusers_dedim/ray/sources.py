"""Photos as rows of a Ray dataset: from folders and files, parquet tables, or webdataset archives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.manifest import PhotoRecord
from diffusers_dedim.photo_jobs import RunError, plan_jobs
from diffusers_dedim.ray.ids import parquet_ids, photo_extension, tar_ids, webdataset_id
from diffusers_dedim.ray.names import pack_name

INSTALL = 'pip install "diffusers-dedim[ray]"'
_ID_COLUMNS = ("id", "__key__", "name")
_IMAGE_COLUMNS = ("image", "bytes", "data")


@dataclass(frozen=True)
class Source:
    """The photos of a run.

    Attributes:
        rows: a dataset whose rows have an ``id`` and either ``data``, the encoded photo, or ``path``, its file; ids
            and paths are packed, see `pack_name`.
        ids: of all rows, in their order; some 100 bytes each.
        damaged: archives that end too early, each as a record.
        other_files: how many files were passed over because they are no photos.
    """

    rows: Any
    ids: tuple[str, ...]
    damaged: tuple[PhotoRecord, ...] = ()
    other_files: int = 0


def import_ray_data() -> Any:
    """Ray Data, or an error that says how to install it."""
    return import_extra("ray.data", "dedim run --ray", INSTALL)


def read_rows(inputs: Sequence[str | os.PathLike[str]], out: Path, retries: int) -> Source:
    """List the photos of a run and make a dataset of them.

    Args:
        inputs: folders and photo files; or parquet files with a column of ids (``id``, ``__key__`` or ``name``) and
            one of encoded photos (``image`` as `datasets` writes it, ``image``, ``bytes`` or ``data`` as binary); or
            webdataset ``.tar`` files. One kind at a time. Ids should be unique. The ids of tables and the headers of
            archives are read here, before any work.
        out: output folder, which no input may overlap.
        retries: of a reading task whose worker died.

    Raises:
        RunError: an input does not exist or cannot be read, kinds are mixed, a table lacks a column, or there is no
            photo.
    """
    data, paths = import_ray_data(), [Path(entry) for entry in inputs]
    kinds = {path.suffix.lower() if path.suffix.lower() in (".parquet", ".tar") else "" for path in paths}
    if len(kinds) > 1:
        raise RunError("inputs: give photos and folders, or parquet files, or .tar files, not several kinds")
    if kinds <= {""}:
        plan = plan_jobs(inputs, out)
        items = [
            {"id": pack_name(job.name), "path": pack_name(str(job.source.resolve()))} for job in plan.jobs
        ]
        return Source(
            data.from_items(items), tuple(job.name for job in plan.jobs), other_files=plan.other_files
        )
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise RunError(f"{missing[0]}: no such file")
    inside = [str(path) for path in paths if out.resolve() in path.resolve().parents]
    if inside:
        raise RunError(
            f"{inside[0]}: the input lies in the output folder {out}; choose another output folder"
        )
    files = list(dict.fromkeys(path.resolve() for path in paths))
    source = (_archives if kinds == {".tar"} else _tables)(data, files, {"max_retries": retries})
    if not source.ids:
        raise RunError(f"{inputs[0]}: no photo in the inputs; is it a whole file of its kind?")
    return source


def _archives(data: Any, files: Sequence[Path], limits: dict[str, Any]) -> Source:
    damaged: list[PhotoRecord] = []
    ids = tuple(name for file in files for name in tar_ids(file, damaged))
    # read and map with the same limits become one task
    rows = data.read_webdataset([str(file) for file in files], decoder=None, ray_remote_args=limits)
    return Source(rows.map(_from_webdataset, **limits), ids, tuple(damaged))


def _tables(data: Any, files: Sequence[Path], limits: dict[str, Any]) -> Source:
    table = data.read_parquet([str(file) for file in files], ray_remote_args=limits)
    key, image = _columns(table.schema().names, str(files[0]))
    ids = tuple(name for file in files for name in parquet_ids(file, key))
    return Source(table.map(_from_table(key, image), **limits), ids)


def _from_webdataset(row: Mapping[str, Any]) -> dict[str, Any]:
    files = {
        name: value for name, value in row.items() if isinstance(value, bytes)
    }  # no other photo's extensions
    photo = photo_extension(list(files))
    # without a photo it is recorded as unreadable
    name = webdataset_id(str(row["__key__"]), list(files))
    return {"id": pack_name(name), "data": files[photo] if photo else b""}


def _columns(columns: Sequence[str], shown: str) -> tuple[str, str]:
    """The columns of ids and of photos."""
    key = next((name for name in _ID_COLUMNS if name in columns), None)
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if key is None or image is None:
        raise RunError(
            f"{shown}: expected a column of ids out of {_ID_COLUMNS} and one of encoded photos out of "
            f"{_IMAGE_COLUMNS}, got {list(columns)}; rename or add them"
        )
    return key, image


def _from_table(key: str, image: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        value = row[image]
        value = value.get("bytes") if isinstance(value, Mapping) else value
        return {"id": pack_name(str(row[key])), "data": b"" if value is None else bytes(value)}

    return convert
