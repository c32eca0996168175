"""Photos as rows of a Ray dataset: from folders and files, parquet tables, or webdataset archives."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.runs.jobs import (
    OWN_PREFIX,
    PARTIAL_MARK,
    READ_SUFFIXES,
    WRITTEN_ENDINGS,
    PhotoJob,
    RunError,
    display_name,
    file_key,
    follow,
    make_job,
    plan_jobs,
    result_names,
)
from diffusers_dedim.runs.records import PhotoRecord


def job_of(name: str, out: Path) -> PhotoJob:
    """The job of a row.

    Raises:
        ValueError: the id would lead out of the output folder, or to a file that runs keep there themselves.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"the id {name!r} is no path below the output folder; give ids like folder/0001")
    if any(part.casefold().startswith(OWN_PREFIX) for part in path.parts):
        raise ValueError(
            f"the id {name!r} has a part that begins with {OWN_PREFIX!r}, as dedim's own files do; give it another"
        )
    return make_job(path, Path(name), out)


def name_of(row_id: object, out: Path) -> str:
    """What a row is called in the manifest."""
    try:
        return job_of(str(row_id), out).name
    except ValueError:
        return str(row_id)  # is recorded with the reason


def possible_outputs(name: str, out: Path) -> tuple[Path, ...]:
    """The files that a row's result may be, whatever becomes of it; none where the id is refused.

    Example:
        >>> [path.name for path in possible_outputs("a.png", Path("out"))]
        ['a.png', 'a.not-protected.png']
    """
    try:
        job = job_of(name, out)
    except ValueError:
        return ()
    # a row without an ending always gets one, unlike a photo that is given as a file
    results = (out / each for each in result_names(job.name))
    return tuple(path for path in results if path.suffix.lower() in READ_SUFFIXES)


def pack_name(name: str) -> bytes:
    """A name as it goes through Ray's tables, whose texts hold nothing but Unicode; file names may hold any bytes."""
    return name.encode("utf-8", "surrogatepass")


def unpack_name(packed: bytes) -> str:
    """The inverse of `pack_name`.

    Example:
        >>> name = "caf" + chr(0xDCE9) + ".png"  # as Python has a byte 0xE9 that is no UTF-8
        >>> unpack_name(pack_name(name)) == name
        True
    """
    return packed.decode("utf-8", "surrogatepass")


_AGAIN = " (again)"
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and extensions, as webdataset divides a name


def parquet_ids(path: Path, column: str) -> Iterator[str]:
    """The ids of a table.

    Raises:
        RunError: the file cannot be read.
    """
    parquet = import_extra("pyarrow.parquet", "dedim run --ray")
    try:
        for batch in parquet.ParquetFile(path).iter_batches(columns=[column]):
            yield from map(str, batch.column(column).to_pylist())
    except (OSError, ValueError, LookupError) as error:  # pyarrow's errors are of these kinds
        raise RunError(f"{path}: cannot be read ({error})") from error


def tar_ids(path: Path, damaged: list[PhotoRecord]) -> Iterator[str]:
    """The ids of a webdataset archive, from its headers; what it says of an archive cut short goes into ``damaged``.

    Raises:
        RunError: a name in it is no UTF-8; Ray's reader would lose the whole archive.
    """
    key, extensions, count = None, list[str](), 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name) if member.isreg() else None
                if not is_text(member.name):
                    raise RunError(
                        f"{path}: the name {display_name(member.name)} is no UTF-8, which Ray needs; rename it, or "
                        "unpack the archive and give the folder"
                    )
                if match and match[1] != key:
                    if key is not None:
                        yield webdataset_id(key, extensions)
                    key, extensions, count = match[1], [], count + 1
                if match:
                    extensions.append(match[2])
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = f"the archive is damaged after {count} photos ({error}); what follows is missing"
        damaged.append(PhotoRecord(path.name, "unreadable", reason))
    if key is not None:
        yield webdataset_id(key, extensions)


def is_text(name: str) -> bool:
    """Whether a name is Unicode, and not bytes that Python could not decode."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def webdataset_id(key: str, extensions: Sequence[str]) -> str:
    """``key.extension`` of the photo among a sample's files; the key alone where there is none."""
    photo = photo_extension(extensions)
    return f"{key}.{photo}" if photo else key


def photo_extension(extensions: Sequence[str]) -> str | None:
    """The first in the alphabet that belongs to a photo, or None."""
    return min((name for name in extensions if f".{name.lower()}" in READ_SUFFIXES), default=None)


def shared_targets(names: Sequence[str]) -> dict[str, str]:
    """Names that would be written over an earlier one's file, and the reason for each to be left out.

    ``a`` may become ``a.png``; what a disk may not tell apart is the same, see `file_key`.

    Example:
        >>> shared_targets(["a", "b.png", "a.png", "B.png", "b.png"])
        {'a.png': "would be written to the same file as 'a'; ids must differ", 'B.png': ...}
    """
    names = list(dict.fromkeys(names))  # the same name again is another matter
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(file_key(name), place)
    refused = {}
    for place, name in enumerate(names):
        for other in _rivals(file_key(name)):
            found = places.get(other, place)
            if names[found] != name:
                first, second = sorted((found, place))
                refused[names[second]] = (
                    f"would be written to the same file as {names[first]!r}; ids must differ"
                )
    return refused


def _rivals(name: str) -> Iterator[str]:
    """Names, as `file_key` has them, whose file may be this one's."""
    unmarked = name.replace(PARTIAL_MARK, "")
    for file in dict.fromkeys((name, unmarked)):
        yield file
        path = PurePosixPath(file)
        bare = path.with_suffix("") if path.name else path
        if path.suffix in WRITTEN_ENDINGS and bare.suffix not in READ_SUFFIXES:
            yield str(bare)
    if name.endswith(PARTIAL_MARK):  # and may become a.not-protected.png, as a.png may
        yield from (unmarked + ending for ending in WRITTEN_ENDINGS)


def absent_records(
    names: Sequence[str], records: Container[str], refused: Mapping[str, str]
) -> list[PhotoRecord]:
    """A record for each row that has none: it was refused, lost, or its id is another's."""
    counts = Counter(names)
    lost = sum(name not in records and name not in refused for name in counts)
    found = []
    for name, times in counts.items():
        if name not in records:
            reason = refused.get(name) or (
                f"its worker died each time, or what holds it cannot be read ({lost} missing in all)"
            )
            found.append(PhotoRecord(name, "error", reason))
        for again in range(1, times):
            reason = "another photo has the same id, and the first one is taken; ids must be unique"
            found.append(PhotoRecord(name + _AGAIN * again, "error", reason))
    return found


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
        items = [{"id": pack_name(job.name), "path": pack_name(str(follow(job.source)))} for job in plan.jobs]
        return Source(
            data.from_items(items), tuple(job.name for job in plan.jobs), other_files=plan.other_files
        )
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise RunError(f"{missing[0]}: no such file")
    inside = [str(path) for path in paths if follow(out) in follow(path).parents]
    if inside:
        raise RunError(
            f"{inside[0]}: the input lies in the output folder {out}; choose another output folder"
        )
    files = list(dict.fromkeys(follow(path) for path in paths))
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
