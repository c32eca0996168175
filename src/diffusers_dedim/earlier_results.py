"""What lies where a run writes: files of earlier runs, which may be replaced, and anybody else's, which may not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from diffusers_dedim.manifest import MANIFEST_NAME, PhotoRecord, outputs_of_runs
from diffusers_dedim.photo_jobs import RunError, display_name


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
