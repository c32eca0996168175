"""Keep on disk, outside git, what is slow and always the same: faces and embeddings of the gallery."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.atomic import write_atomic

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
        self.folder: Path = Path(folder) if folder is not None else base / "diffusers-dedim" / "bench"

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
        packed = BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, packed.getvalue())
        return arrays
