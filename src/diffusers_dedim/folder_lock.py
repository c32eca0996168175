"""One run at a time in an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from diffusers_dedim.photo_jobs import RunError

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
        diffusers_dedim.photo_jobs.RunError: ...: another run is writing to this folder; ...
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
