"""Files that are there whole or not at all: written aside and renamed."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which does not let anybody remove a file that is open
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".dedim-tmp-"
"""Files with this prefix are unfinished writes of a killed run and can be removed."""

_PIECE = 2**20  # bytes that are read at a time
_YOUNG = 60  # seconds in which a file that nothing is in may be one that is about to be written

FileTimes = tuple[int, int]
"""When a file was last read and last changed, in nanoseconds since 1970."""


def write_atomic(
    path: str | os.PathLike[str], data: bytes, times: FileTimes | None = None, *, private: bool = False
) -> None:
    """Write a file so that at any moment the path holds the old file, the whole new one, or none.

    Args:
        path: where to; the folder must exist.
        data: the content.
        times: what the new file has for its own; None for now.
        private: nobody but its owner can read it, also while it is written, and `remove_unfinished` finds what a
            kill leaves of it.

    Raises:
        OSError: the folder is missing or full; the temporary file is removed. It names ``path``.
    """
    with named_errors(path):
        write_pieces(path, [data], times, private=private)


def write_pieces(
    path: str | os.PathLike[str],
    pieces: Iterable[bytes],
    times: FileTimes | None = None,
    *,
    private: bool = False,
) -> None:
    """The same as :func:`write_atomic` for a file that comes in pieces, of which one at a time is in memory.

    Raises:
        OSError: as :func:`write_atomic`; what making a piece raises is passed on, and the temporary file removed.
    """
    path = Path(path)
    # The name does not grow with the target's, which may already be as long as the file system takes.
    temporary = path.parent / f"{_prefix(path) if private else TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        temporary.touch(0o600 if private else 0o666, exist_ok=False)  # less what the umask takes
        with _held(temporary) if private else nullcontext():
            with temporary.open("r+b") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            if times is not None:
                os.utime(temporary, ns=times)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: str | os.PathLike[str]) -> int:
    """Remove what killed processes left of private writes of one file; what is being written now stays.

    Args:
        path: the file that they were to become; need not be there.

    Returns:
        How many were removed.
    """
    path = Path(path)
    removed = 0
    for leftover in path.parent.glob(f"{_prefix(path)}*"):
        with suppress(OSError), _held(leftover, wait=False):  # in use, somebody else's, or gone by now
            # who writes has made the file before holding it, and puts nothing in before that
            if leftover.stat().st_size or time.time() - leftover.stat().st_mtime > _YOUNG:
                leftover.unlink()
                removed += 1
    return removed


def _prefix(path: Path) -> str:
    """Begins the names of the private temporary files of one file, and of no other one in its folder."""
    return f"{TEMPORARY_PREFIX}{sha256(os.fsencode(path.name))[:16]}-"


@contextmanager
def _held(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file as the one who writes it; the system lets go of it where the process ends, for any reason.

    Raises:
        OSError: without ``wait``, another one holds it, or the file system does not tell.
    """
    if fcntl is None:
        yield
        return
    held = os.open(path, os.O_RDWR)
    try:
        if wait:
            with suppress(OSError):  # a file system that knows no locks: then nothing of it is removed either
                fcntl.flock(held, fcntl.LOCK_EX)
        else:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


@contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system that name no file, as a full disk's, or a temporary one, name this one."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno and (name is None or (isinstance(name, str) and TEMPORARY_PREFIX in name)):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def sha256(data: bytes) -> str:
    """Hex digest that tells whether a file is still the one that was recorded."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """`sha256` of a file, as a video, that need not fit into memory.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
