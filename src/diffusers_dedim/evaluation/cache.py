"""Keep on disk, outside git, what is slow and always the same: faces and embeddings of the gallery."""

from __future__ import annotations

import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]


class ArrayCache:
    """A folder of ``.npz`` files, one per key.

    The key says everything the arrays depend on; a file that cannot be read is made anew.

    Args:
        folder: made when first written to; default ``$XDG_CACHE_HOME/diffusers-dedim/bench``.

    Example:
        >>> cache = ArrayCache("out/cache")
        >>> cache.get(("lfw", "abc"), lambda: {"x": np.ones(2)})["x"]  # doctest: +SKIP
        array([1., 1.])
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = Path(folder) if folder is not None else base / "diffusers-dedim" / "bench"

    def get(self, key: tuple[str, ...], make: Callable[[], Arrays]) -> Arrays:
        """Read the arrays of ``key``, or make and keep them."""
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()
        path = self.folder / f"{key[0]}-{name[:32]}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (
            OSError,
            ValueError,
            EOFError,
            KeyError,
            zipfile.BadZipFile,
            zlib.error,
        ):  # not there, or cut short
            pass
        arrays = make()
        self._write(path, arrays)
        return arrays

    def _write(self, path: Path, arrays: Arrays) -> None:
        """Write aside and rename, so that a killed run leaves no half file under the name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            with aside.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
