"""The ids of a run's inputs, read beforehand: what is missing at the end, or occurs twice, is known by name."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from diffusers_dedim.extras import import_extra
from diffusers_dedim.manifest import PhotoRecord
from diffusers_dedim.photo_jobs import (
    PARTIAL_MARK,
    READ_SUFFIXES,
    WRITTEN_ENDINGS,
    RunError,
    display_name,
    file_key,
)

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
