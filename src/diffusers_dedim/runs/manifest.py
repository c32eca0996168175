"""What an output folder remembers of its runs: who holds it, what was done, and whose files are in it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusers_dedim import __version__
from diffusers_dedim.atomic import TEMPORARY_PREFIX, file_sha256, write_atomic
from diffusers_dedim.runs.jobs import PhotoJob, RunError, display_name, result_names
from diffusers_dedim.runs.journal import BEGUN, STOPPED, Journal, parse_row, row_line
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


MANIFEST_NAME = "dedim-manifest.jsonl"
UNDER_WAY_NAME = ".dedim-under-way.jsonl"
"""Where earlier versions kept what was under way; it is read, and its content moved into the manifest."""
MOST_DEATHS = 4
"""Dead runs a photo may be named by: once in company, then alone. It is not tried again after that.

Most runs that die are killed from outside, by chance while some photo was alone: once or twice must not condemn it.
"""
_VERSION = 1  # of the file's layout
_FREE = frozenset(("max_megapixels",))  # photos that were too large are tried again with a larger one
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders that look empty
_NAMES = re.compile(
    rb'"(?:name|output)": ("(?:[ !#-\[\]-~]|\\["\\bfnrt]|\\u[0-9a-f]{4})*")'
)  # as JSON has them
_BEGUN = row_line({"kind": BEGUN}).rstrip(b"}\n")  # how such a row begins
_NO_PACKAGE = (
    "the manifest does not say which version of dedim began this run; where it was another one, its photos were "
    "protected with other settings"
)


class Manifest(Journal):
    """The file ``dedim-manifest.jsonl`` in an output folder: what its runs did.

    A header with settings and package version; a row before a photo is read, and its record once its file is on disk.
    So a photo that is recorded is there; one that is there but not recorded is done again over the same name. See
    `Journal` for the rows.

    Attributes:
        records: latest record of each photo by name, in the order they were first written.
        notes: what a user who goes on should know, in words.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.records: dict[str, PhotoRecord] = {}
        self.notes: tuple[str, ...] = ()

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
        write_atomic(out / MANIFEST_NAME, row_line(header))
        (out / UNDER_WAY_NAME).unlink(missing_ok=True)
        return cls(out / MANIFEST_NAME)

    @classmethod
    def resume(cls, out: Path, settings: Mapping[str, object]) -> Manifest:
        """Go on with the manifest of a stopped run; nothing is written yet.

        Raises:
            RunError: it was made with other settings or by another version, or is not a manifest.
            OSError: it cannot be read.
        """
        manifest = cls(out / MANIFEST_NAME)
        header: Mapping[str, Any] | None = None
        for number, row in enumerate(manifest.rows(), start=1):
            if row is None:
                raise _damaged(manifest.path, number)
            if header is None:
                header = row
                _check_header(manifest.path, header, settings)
            elif row.get("kind") not in (BEGUN, STOPPED):
                record = _record(manifest.path, number, row)
                manifest.records[record.name] = record
        if header is None:
            raise RunError(f"{manifest.path}: is empty; start again with --overwrite")
        manifest.notes = () if "package" in header else (_NO_PACKAGE,)
        manifest.deaths |= _earlier_deaths(out)
        return manifest

    def append(self, records: Iterable[PhotoRecord]) -> None:
        """Add finished photos; on return they are on disk.

        Raises:
            OSError: the disk is full or gone.
        """
        new = list(records)
        self.end({"kind": "photo", **record.to_fields()} for record in new)
        self.records.update((record.name, record) for record in new)

    def take_over(self, settled: Container[str]) -> None:
        """Move into the manifest what earlier versions have noted beside it.

        Args:
            settled: photos that are done, of which nothing is to be found out any more.

        Raises:
            OSError: the folder cannot be written.
        """
        beside = self.path.with_name(UNDER_WAY_NAME)
        if not beside.is_file():
            return
        found = _earlier_deaths(beside.parent)
        noted = Counter({name: times for name, times in found.items() if name not in settled})
        # not twice, where a kill came between these two lines
        missing = noted - Journal.read(self.path).deaths
        self._add({"kind": BEGUN, "name": name} for name in missing.elements())
        beside.unlink()

    @contextmanager
    def all_under_way(self, names: Collection[str]) -> Iterator[None]:
        """Say that these photos are under way until the run ends well: whatever is theirs on disk is no stranger's.

        For runs whose workers write without a record: a kill leaves many such files.

        Raises:
            OSError: the manifest cannot be written.
        """
        self.begin_all(names)
        yield
        self.stop()


def names_under_way(out: Path) -> frozenset[str]:
    """Photos in whose course earlier runs have died: their outputs may be on disk without a record.

    Raises:
        OSError: the manifest cannot be read.
    """
    return frozenset(Journal.read(out / MANIFEST_NAME).deaths | _earlier_deaths(out))


def _earlier_deaths(out: Path) -> Counter[str]:
    """The deaths in a file that earlier versions kept beside the manifest, those of its end included."""
    deaths, begun = Counter[str](), set[str]()
    path = out / UNDER_WAY_NAME
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
        row = parse_row(line)
        if row is None:
            # what was torn while it was only begun is not on disk
            found.update(json.loads(name) for name in _NAMES.findall(line) if not line.startswith(_BEGUN))
            continue
        earlier = row.get("earlier_outputs")
        names = [row.get("output"), *(earlier if isinstance(earlier, list) else ())]
        found.update(name for name in names if isinstance(name, str))
    return frozenset(found)


def still_holds(record: PhotoRecord, job: PhotoJob, out: Path) -> bool:
    """Whether an earlier result is settled, of this very input, and its output whole on disk."""
    if record.status not in SETTLED:
        return False
    try:
        if file_sha256(job.source) != record.source_sha256:
            return False
        return record.output is None or file_sha256(out / record.output) == record.output_sha256
    except OSError:
        return False


def _damaged(path: Path, number: int) -> RunError:
    return RunError(f"{path}: line {number} is damaged; start again with --overwrite")


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
        raise _damaged(path, 1)
    settings = json.loads(json.dumps(settings))  # as the manifest has them
    changed = [
        f"{key} was {then.get(key)!r} and is now {settings.get(key)!r}"
        for key in sorted({*then, *settings} - _FREE)
        if then.get(key) != settings.get(key)
    ]
    if changed:
        raise RunError(
            f"{path}: was made with other settings ({'; '.join(changed)}); "
            "resume with the same ones, or start again with --overwrite"
        )


def _record(path: Path, number: int, row: Mapping[str, Any]) -> PhotoRecord:
    try:
        return PhotoRecord.from_fields(
            {key: value for key, value in row.items() if key not in ("kind", "deaths")}
        )
    except (KeyError, TypeError) as error:
        raise _damaged(path, number) from error


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


def notes_of_changed(earlier: Mapping[str, PhotoRecord], out: Path) -> tuple[str, ...]:
    """What to say of results that are no more what a run wrote, before they are made anew: somebody may have meant it.

    Args:
        earlier: records of an earlier run, of photos that are going to be done again.
        out: the output folder.
    """
    count = 0
    for record in earlier.values():
        with suppress(OSError):  # it is gone
            count += record.output is not None and file_sha256(out / record.output) != record.output_sha256
    if count > 1:
        return (f"{count} results were not as an earlier run had written them, and were made anew",)
    return ("1 result was not as an earlier run had written it, and was made anew",) if count else ()


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
