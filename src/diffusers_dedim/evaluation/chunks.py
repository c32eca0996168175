"""Protect and score probes piece by piece, each piece kept on disk: a killed run loses one piece at most."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from diffusers_dedim.evaluation import probes as search
from diffusers_dedim.evaluation import quality
from diffusers_dedim.evaluation.cache import ArrayCache, Arrays
from diffusers_dedim.evaluation.gallery import Detector, Gallery, code_of, encoder_code, face_code
from diffusers_dedim.evaluation.probes import Pixels, Probe, protect_probes, score_photos
from diffusers_dedim.evaluation.quality import Lpips, landmark_shift
from diffusers_dedim.evaluation.recogniser import Recogniser

Protect = Callable[[list[Pixels]], Any]
Transform = Callable[[list[Pixels]], list[Pixels]]
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


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that searches and measures; the same for every method.

    Attributes:
        recognisers: who searches.
        gallery: embedded with the same recognisers.
        detector: the attacker's, photo -> faces.
        landmarker: crops -> 51 landmarks.
        cache: where pieces are kept.
        lpips: the optional measure.
    """

    recognisers: tuple[Recogniser, ...]
    gallery: Gallery
    detector: Detector
    landmarker: nn.Module
    cache: ArrayCache
    lpips: Lpips | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all of it."""
        digest = hashlib.sha256(face_code(self.detector).encode())
        for module in (search, quality):  # how photos are searched for and measured
            digest.update(code_of(module).encode())
        digest.update(str([version(package) for package in ("torch", "piq")]).encode())
        for recogniser in self.recognisers:
            digest.update(f"{recogniser.name} {recogniser.fingerprint} {encoder_code(recogniser)}".encode())
            digest.update(self.gallery.embeddings[recogniser.name].tobytes())
        digest.update(Recogniser.of("", self.landmarker).fingerprint.encode())
        digest.update((self.lpips.fingerprint if self.lpips else "").encode())
        return digest.hexdigest()


def split_probes(probes: Sequence[Probe], size: int) -> Iterator[Chunk]:
    """Cut into pieces at multiples of ``size``, so that more probes later leave the earlier pieces as they are."""
    for start in range(0, len(probes), size):
        yield Chunk(start, tuple(probes[start : start + size]))


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


def restore_photos(chunk: Chunk, protected: Arrays) -> list[Pixels]:
    """The protected photos of a piece, to the last bit."""
    changes = (protected[f"change_{index}"].astype(np.uint8) for index in range(len(chunk.probes)))
    return [probe.photo + change for probe, change in zip(chunk.probes, changes, strict=True)]


def score_chunk(
    chunk: Chunk, photos: Callable[[], list[Pixels]], bench: Bench, identity: str, transform: str = ""
) -> Arrays:
    """Search for the photos of one piece and measure them, or read what came out before.

    Args:
        chunk: the originals.
        photos: gives the photos; called only where nothing is kept yet.
        bench: who searches and measures.
        identity: everything that decides the photos; part of the cache key.
        transform: name of what was done to them after protection; quality is not measured then.

    Returns:
        ``similarities_0``, ... float64 ``[P, G]`` one a recogniser; ``detected`` bool ``[P]``; and, without
        transform, ``psnr``, ``ssim``, ``haarpsi``, ``landmark_shift`` and ``lpips`` (nan without it), ``[P]``.
    """

    def score() -> Arrays:
        scores = score_photos(chunk.probes, photos(), bench.gallery, bench.recognisers, bench.detector)
        found: Arrays = {
            f"similarities_{index}": scores.similarities[recogniser.name]
            for index, recogniser in enumerate(bench.recognisers)
        }
        found["detected"] = scores.detected
        if transform:
            return found
        pair = (scores.crops_before, scores.crops_after)
        found |= {"psnr": scores.psnr, "ssim": scores.ssim, "haarpsi": scores.haarpsi}
        found["landmark_shift"] = landmark_shift(bench.landmarker, *pair).numpy()
        found["lpips"] = bench.lpips(*pair).numpy() if bench.lpips else np.full(len(chunk.probes), math.nan)
        return found

    return bench.cache.get(("scores", identity, transform, chunk.fingerprint, bench.fingerprint), score)


def join_arrays(pieces: Sequence[Arrays], name: str) -> NDArray[Any]:
    """One array over all pieces, in the order of the probes."""
    return np.concatenate([piece[name] for piece in pieces])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
