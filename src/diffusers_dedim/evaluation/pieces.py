"""Photos protected a few at a time, each piece kept: a measurement that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.evaluation.cache import ArrayCache, Arrays
from diffusers_dedim.evaluation.probes import Probe, protect_probes
from diffusers_dedim.images.modes import PixelArray

Protect = Callable[[list[PixelArray]], Any]

_EFFORT = ("rounds", "unet_calls", "reached_threshold")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive probes.

    Attributes:
        start: index of the first among all probes.
        probes: the probes.
    """

    start: int
    probes: tuple[Probe, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over place, photos and faces."""
        digest = hashlib.sha256(str(self.start).encode())
        for probe in self.probes:
            digest.update(f"{probe.photo.shape} {probe.face.box} {probe.face.landmarks.tolist()}".encode())
            digest.update(probe.photo.tobytes())
        return digest.hexdigest()


def split_probes(probes: Sequence[Probe], size: int, first: int = 0) -> Iterator[Chunk]:
    """Cut into pieces at multiples of ``size``, so that more probes later leave the earlier pieces as they are.

    Args:
        probes: in their order.
        size: of a piece.
        first: place of the first among all photos that are protected.
    """
    for start in range(0, len(probes), size):
        yield Chunk(first + start, tuple(probes[start : start + size]))


def protect_chunk(make: Callable[[int], Protect], chunk: Chunk, method: str, cache: ArrayCache) -> Arrays:
    """Run a method over one piece, or read what it gave before.

    Only the change is kept (the difference of the 8-bit levels modulo 256): exact, small, and no photo of
    anybody by itself.

    Args:
        make: index of the first probe -> the method, seeded for that place.
        chunk: the piece.
        method: name and everything else that decides the result; part of the cache key.
        cache: where it is kept.

    Returns:
        ``change_0``, ... uint8 one a photo; ``effort`` float64 ``[F, 3]`` rounds, UNet calls and whether the
        threshold was reached, one row a face, nan where a method has none; ``seconds`` float64.
    """

    def protect() -> Arrays:
        done = protect_probes(make(chunk.start), chunk.probes, batch_size=len(chunk.probes))
        # uint8 wraps around, which is what makes the difference exact
        changes = {
            f"change_{index}": photo - probe.photo
            for index, (probe, photo) in enumerate(zip(chunk.probes, done.photos, strict=True))
        }
        effort = [[_number(getattr(face, name, None)) for name in _EFFORT] for face in done.faces]
        rows = np.array(effort, dtype=np.float64).reshape(-1, len(_EFFORT))
        return {**changes, "effort": rows, "seconds": np.float64(done.seconds)[None]}

    return cache.get(("protected", method, chunk.fingerprint), protect)


def restore_photos(chunk: Chunk, protected: Arrays) -> list[PixelArray]:
    """The protected photos of a piece, to the last bit."""
    changes = (protected[f"change_{index}"].astype(np.uint8) for index in range(len(chunk.probes)))
    return [probe.photo + change for probe, change in zip(chunk.probes, changes, strict=True)]


def join_arrays(pieces: Sequence[Arrays], name: str) -> NDArray[Any]:
    """One array over all pieces, in the order of the probes."""
    return np.concatenate([piece[name] for piece in pieces])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
