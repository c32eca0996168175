"""Record of a run, one JSON line a finished photo, that survives a kill at any moment."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from diffusers_dedim import __version__
from diffusers_dedim.atomic import TEMPORARY_PREFIX, sha256, write_atomic
from diffusers_dedim.runs.jobs import PhotoJob, RunError, display_name, result_names
from diffusers_dedim.runs.records import SETTLED, PhotoRecord

LOCK_NAME = ".dedim-lock"


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Hold an output folder within the block. The system lets go of it when the process ends, also where it is killed.

    Args:
        out: the folder, which must exist.

    Raises:
        RunError: another run holds it.
        OSError: the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, lock_folder(Path(folder)), lock_folder(Path(folder)):
        ...     pass
        Traceback (most recent call last):
        diffusers_dedim.runs.jobs.RunError: ...: another run is writing to this folder; ...
    """
    path = out / LOCK_NAME
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"{out}: another run is writing to this folder; wait for its end, or choose another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # where open files cannot be removed, it stays
            path.unlink()  # while it is held: whoever waits for the removed file sees that and opens a new one
        lock.release()


UNDER_WAY_NAME = ".dedim-under-way.jsonl"
MOST_DEATHS = 4
"""Dead runs a photo may be named by: once in company, then alone. It is not tried again after that.

Most runs that die are killed from outside, by chance while some photo was alone: once or twice must not condemn it.
"""

_MOST_LINES = 1000  # then the file is written anew: it does not grow with the number of photos


class UnderWay:
    """The file ``.dedim-under-way.jsonl`` in an output folder.

    A line is added before a photo is read and another once it is recorded: what was begun and not ended was under way
    when the run died. Several photos are at any time, so one mention says little. Nothing is synced: what a process has
    written outlives it, and a machine that crashes does so without the photo's help.

    Args:
        out: output folder.
        settled: photos of which nothing is to be found out any more, which are forgotten; None for all.

    Attributes:
        deaths: how many dead runs each photo was under way in; the others are not in it.

    Raises:
        OSError: the folder cannot be read or written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     UnderWay(Path(folder)).begin("a.png")  # and the process is killed
        ...     UnderWay(Path(folder), ()).deaths
        Counter({'a.png': 1})
    """

    def __init__(self, out: Path, settled: Container[str] | None = None) -> None:
        self._path = out / UNDER_WAY_NAME
        self._lock = Lock()  # photos are read in several threads
        found = Counter[str]() if settled is None else _read(self._path)
        # photos that are not this run's stay, for their files on disk are known by nothing else
        self.deaths = Counter({name: times for name, times in found.items() if name not in (settled or ())})
        self._begun: set[str] = set()
        self._lines, self._closed = 0, False
        self._save()

    def begin(self, name: str) -> None:
        """Say that a photo is about to be read."""
        with self._lock:
            if not self._closed:  # a thread may still be at it when the run is stopped
                self._begun.add(name)
                self._add("begun", name)

    def end(self, name: str) -> None:
        """Say that a photo was recorded, whatever became of it; nothing where it was not begun."""
        with self._lock:
            if name in self._begun:
                self._begun.remove(name)
                self.deaths.pop(name, None)
                self._add("ended", name)

    def close(self) -> None:
        """The run ends alive, so nothing that is under way is to blame: leave earlier deaths only, or no file."""
        with self._lock:
            self._closed = True
            self._begun.clear()
            self._save()

    def _add(self, event: str, name: str) -> None:
        if self._lines >= _MOST_LINES:
            self._save()  # with the event in it
            return
        with self._path.open("ab") as file:
            file.write(_event_line(event, name))
        self._lines += 1

    def _save(self) -> None:
        lines = [_event_line("died", name) for name in self.deaths.elements()]
        lines += [_event_line("begun", name) for name in sorted(self._begun)]
        self._lines = 0
        if lines:
            write_atomic(self._path, b"".join(lines))
        else:
            self._path.unlink(missing_ok=True)


def names_under_way(out: Path) -> frozenset[str]:
    """Photos in whose course earlier runs have died: their outputs may be on disk without a record.

    Raises:
        OSError: the file cannot be read.
    """
    return frozenset(_read(out / UNDER_WAY_NAME))


@contextmanager
def all_under_way(out: Path, names: Collection[str], settled: Container[str] = ()) -> Iterator[None]:
    """Say that all photos of a run are under way until it ends well: whatever is theirs on disk is no stranger's.

    For runs whose workers write without a record: a kill leaves many such files.

    Args:
        out: output folder.
        names: photos that the run may write.
        settled: photos that an earlier run has recorded.

    Raises:
        OSError: the folder cannot be read or written.
    """
    path = out / UNDER_WAY_NAME
    others = {name for name in names_under_way(out) if name not in settled}.difference(names)
    if names:
        write_atomic(path, b"".join(_event_line("begun", name) for name in sorted({*others, *names})))
    yield
    if others:  # of an earlier run with other inputs
        write_atomic(path, b"".join(_event_line("begun", name) for name in sorted(others)))
    else:
        path.unlink(missing_ok=True)


def _event_line(event: str, name: str) -> bytes:
    # ASCII also carries names that are not valid UTF-8, as in the manifest
    return json.dumps([event, name]).encode("ascii") + b"\n"


def _read(path: Path) -> Counter[str]:
    """The deaths in a file that a run has left, those of its end included."""
    deaths, begun = Counter[str](), set[str]()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            event, name = json.loads(line)
        except (ValueError, TypeError):
            continue  # torn by the kill
        if event == "died":
            deaths[name] += 1
        elif event == "begun":
            begun.add(name)
        else:
            begun.discard(name)
            deaths.pop(name, None)
    deaths.update(begun)
    return deaths


MANIFEST_NAME = "dedim-manifest.jsonl"
_VERSION = 1  # of the file's layout
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders that look empty
_NAMES = re.compile(
    rb'"(?:name|output)": ("(?:[ !#-\[\]-~]|\\["\\bfnrt]|\\u[0-9a-f]{4})*")'
)  # as JSON has them
_NO_PACKAGE = (
    "the manifest does not say which version of dedim began this run; where it was another one, its photos were "
    "protected with other settings"
)


class Manifest:
    """The file ``dedim-manifest.jsonl`` in an output folder: a header with settings and package version, then records.

    Each record is appended, flushed and synced after its photo is on disk, so a photo that is listed is
    there, and one that is there but not listed is done again over the same name. A last line torn by a kill
    is cut off before the next one is written.

    Attributes:
        records: latest record of each photo by name, in the order they were first written.
        notes: what a user who goes on should know, in words.
    """

    def __init__(
        self,
        path: Path,
        records: dict[str, PhotoRecord],
        notes: tuple[str, ...] = (),
        whole: int | None = None,
    ) -> None:
        self._path = path
        self._whole = whole  # bytes up to a torn line
        self.records = records
        self.notes = notes

    @classmethod
    def start(cls, out: Path, settings: Mapping[str, object]) -> Manifest:
        """Begin a new manifest, replacing any other one; what that one's runs have left is named in the header.

        Raises:
            OSError: the folder cannot be written.
        """
        names = {
            *outputs_of_runs(out),
            *(each for name in names_under_way(out) for each in result_names(name)),
        }
        earlier = sorted(name for name in names if os.path.lexists(out / name))
        header = {"kind": "run", "version": _VERSION, "package": __version__, "settings": dict(settings)}
        if earlier:
            header["earlier_outputs"] = earlier
        write_atomic(out / MANIFEST_NAME, _line(header))
        return cls(out / MANIFEST_NAME, {})

    @classmethod
    def resume(cls, out: Path, settings: Mapping[str, object]) -> Manifest:
        """Go on with the manifest of a stopped run; nothing is written yet.

        Raises:
            RunError: it was made with other settings or by another version, or is not a manifest.
            OSError: it cannot be read.
        """
        path = out / MANIFEST_NAME
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows = [_parse(path, number, row) for number, row in enumerate(whole.splitlines(), start=1)]
        if not rows:
            raise RunError(f"{path}: is empty; start again with --overwrite")
        _check_header(path, rows[0], settings)
        records = (_record(path, number, row) for number, row in enumerate(rows[1:], start=2))
        return cls(
            path,
            {record.name: record for record in records},
            () if "package" in rows[0] else (_NO_PACKAGE,),
            len(whole) if len(whole) < len(data) else None,
        )

    def append(self, records: Iterable[PhotoRecord]) -> None:
        """Add finished photos; on return they are on disk.

        Raises:
            OSError: the disk is full or gone.
        """
        new = list(records)
        with self._path.open("ab") as file:
            if self._whole is not None:
                file.truncate(self._whole)
                self._whole = None
            file.write(b"".join(_line({"kind": "photo", **asdict(record)}) for record in new))
            file.flush()
            os.fsync(file.fileno())
        self.records.update((record.name, record) for record in new)


def open_manifest(
    out: Path, settings: Mapping[str, object], *, resume: bool, overwrite: bool
) -> Manifest | None:
    """The manifest of ``out`` to go on with, or ``None`` to begin a new one.

    Raises:
        RunError: the folder is not empty and neither flag is set, both are, or there is no run to resume or replace.
    """
    if resume and overwrite:
        raise RunError("resume and overwrite exclude each other; give one of them")
    found = out.iterdir() if out.exists() else ()
    nobodys = (TEMPORARY_PREFIX, LOCK_NAME, *_OF_FILE_MANAGERS)
    entries = [path for path in found if not path.name.startswith(nobodys)]
    if not entries:
        return None
    if not resume and not overwrite:
        raise RunError(
            f"{out}: the output folder is not empty; go on with a stopped run (--resume), "
            "replace its results (--overwrite), or choose another folder"
        )
    if not (out / MANIFEST_NAME).is_file():
        # the files may be anybody's: photos of the same names would be replaced, or removed where one fails
        verb = "replace" if overwrite else "resume"
        raise RunError(f"{out}: has no {MANIFEST_NAME}, so there is no run to {verb}; choose another folder")
    return None if overwrite else Manifest.resume(out, settings)


def outputs_of_runs(out: Path) -> frozenset[str]:
    """Names below ``out`` that runs have written by the manifest there.

    Of a damaged line it is what can be read: a photo is on disk before its line is, which a kill may tear.

    Raises:
        OSError: the manifest cannot be read.
    """
    path = out / MANIFEST_NAME
    found: set[str] = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            found.update(json.loads(name) for name in _NAMES.findall(line))
            continue
        if isinstance(row, dict):
            earlier = row.get("earlier_outputs")
            names = [row.get("output"), *(earlier if isinstance(earlier, list) else ())]
            found.update(name for name in names if isinstance(name, str))
    return frozenset(found)


def still_holds(record: PhotoRecord, job: PhotoJob, out: Path) -> bool:
    """Whether an earlier result is settled, of this very input, and its output whole on disk."""
    if record.status not in SETTLED:
        return False
    try:
        if sha256(job.source.read_bytes()) != record.source_sha256:
            return False
        return record.output is None or sha256((out / record.output).read_bytes()) == record.output_sha256
    except (OSError, MemoryError):
        return False


def _line(row: Mapping[str, object]) -> bytes:
    # ASCII output also carries file names that are not valid UTF-8 (lone surrogates) through unharmed
    return json.dumps(row, ensure_ascii=True, allow_nan=True).encode("ascii") + b"\n"


def _parse(path: Path, number: int, row: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(row)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise RunError(f"{path}: line {number} is damaged; start again with --overwrite")
    return parsed


def _check_header(path: Path, header: Mapping[str, object], settings: Mapping[str, object]) -> None:
    if header.get("kind") != "run" or header.get("version") != _VERSION:
        raise RunError(f"{path}: not a manifest of this version of dedim; start again with --overwrite")
    package = header.get("package", __version__)
    if package != __version__:
        raise RunError(
            f"{path}: was made by dedim {package}, and this is {__version__}, whose presets may be others; "
            "resume with that version, or start again with --overwrite"
        )
    then = header.get("settings")
    if not isinstance(then, dict):
        raise RunError(f"{path}: line 1 is damaged; start again with --overwrite")
    changed = [
        f"{key} was {then.get(key)!r} and is now {settings.get(key)!r}"
        for key in sorted({*then, *settings})
        if then.get(key) != settings.get(key)
    ]
    if changed:
        raise RunError(
            f"{path}: was made with other settings ({'; '.join(changed)}); "
            "resume with the same ones, or start again with --overwrite"
        )


def _record(path: Path, number: int, row: Mapping[str, Any]) -> PhotoRecord:
    try:
        return PhotoRecord.from_fields({key: value for key, value in row.items() if key != "kind"})
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: line {number} is damaged; start again with --overwrite") from error


def refuse_foreign(targets: Iterable[Path], out: Path) -> None:
    """Refuse a run that would replace files that no run has written, or remove them where their namesakes fail.

    Args:
        targets: all files below ``out`` that the run may write, without those that a dead run may have written.
        out: output folder.

    Raises:
        RunError: one of them is there, and the manifest does not name it.
        OSError: the manifest cannot be read.
    """
    found = [path for path in targets if os.path.lexists(path)]
    ours = outputs_of_runs(out) if found else ()
    foreign = [path for path in found if path.relative_to(out).as_posix() not in ours]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RunError(
            f"{display_name(str(foreign[0]))}{more}: would be replaced, and no run that {MANIFEST_NAME} tells of has "
            "written it; move it away, or choose another folder"
        )


def remove_results(paths: Iterable[Path]) -> None:
    """Remove files, if they are there: left there, they would pass for results of this run.

    Raises:
        OSError: one cannot be removed; the others are.
    """
    errors = [error for error in map(_remove, paths) if error is not None]
    if errors:
        raise errors[0]


def _remove(path: Path) -> OSError | None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # neither can be there: the mark of an unprotected photo may make its name longer than any file's
        return None if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR) else error
    return None


def without_results(record: PhotoRecord, paths: Iterable[Path]) -> PhotoRecord:
    """The record, once these files are gone; an error that says so where they cannot be removed."""
    try:
        remove_results(paths)
    except OSError as error:
        left = f"a result of an earlier run cannot be removed ({error.strerror or error})"
        reason = f"{record.reason}; {left}" if record.reason else left
        return replace(record, status="error", reason=reason, output=None, output_sha256="")
    return record


def notes_of_replaced(earlier: Mapping[str, PhotoRecord], now: Mapping[str, PhotoRecord]) -> tuple[str, ...]:
    """What to say of photos whose earlier result was another input's: it is gone, and that may not be meant.

    Args:
        earlier: records of an earlier run, of photos that were done again.
        now: their records, and others'.

    Example:
        >>> then = {"a.png": PhotoRecord("a.png", "protected", output="a.png", source_sha256="12")}
        >>> notes_of_replaced(then, {"a.png": PhotoRecord("a.png", "no_face", source_sha256="34")})
        ('1 result of an earlier run was replaced or removed: its input has changed',)
    """
    count = sum(
        record.output is not None and now[name].source_sha256 != record.source_sha256
        for name, record in earlier.items()
    )
    if count > 1:
        return (f"{count} results of an earlier run were replaced or removed: their inputs have changed",)
    return ("1 result of an earlier run was replaced or removed: its input has changed",) if count else ()
