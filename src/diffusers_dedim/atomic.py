"""Files that are there whole or not at all: written aside and renamed."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

TEMPORARY_PREFIX = ".dedim-tmp-"
"""Files with this prefix are unfinished writes of a killed run and can be removed."""


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
        private: nobody but its owner can read it, also while it is written.

    Raises:
        OSError: the folder is missing or full; the temporary file is removed.
    """
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
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        temporary.touch(0o600 if private else 0o666, exist_ok=False)  # less what the umask takes
        with temporary.open("r+b") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if times is not None:
            os.utime(temporary, ns=times)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Hex digest that tells whether a file is still the one that was recorded."""
    return hashlib.sha256(data).hexdigest()
