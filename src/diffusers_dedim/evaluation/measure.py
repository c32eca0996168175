"""Run the experiment: every method over the same probes, searched by the same recognisers.

Probes are protected and searched in pieces, and each piece is kept: a run that was killed goes on where it was.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

import diffusers_dedim
from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation import probes as search
from diffusers_dedim.evaluation.cache import ArrayCache, Arrays
from diffusers_dedim.evaluation.gallery import Gallery, code_of, encoder_code, face_code
from diffusers_dedim.evaluation.mates import (
    GALLERIES,
    MATES_FIRST,
    PROTECTED,
    UNPROTECTED,
    SearchedGallery,
    add_mates,
    embed_mates,
)
from diffusers_dedim.evaluation.methods import denoises, takes_targets
from diffusers_dedim.evaluation.pieces import (
    Chunk,
    Protect,
    join_arrays,
    protect_chunk,
    restore_photos,
    split_probes,
)
from diffusers_dedim.evaluation.probes import Probe, embed_all, score_photos
from diffusers_dedim.evaluation.rates import Subject, impostor_scores, rate_entry
from diffusers_dedim.evaluation.results import MethodEntry, RateEntry
from diffusers_dedim.evaluation.robustness import uses_denoiser
from diffusers_dedim.faces import FaceDetection
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.metrics import quality
from diffusers_dedim.metrics.intervals import bootstrap_mean
from diffusers_dedim.metrics.quality import Lpips, landmark_shift
from diffusers_dedim.pipeline.guides import is_guide

Transform = Callable[[list[PixelArray]], list[PixelArray]]

# What decides a protected photo besides the weights: a change of these folders empties the cache.
_METHOD_CODE = (
    "baselines/",
    "diffusion/",
    "encoders/",
    "evaluation/methods",
    "evaluation/robustness",
    "faces/",
    "models/",
    "pipeline/",
)


@dataclass(frozen=True)
class EvaluationSettings:
    """What decides the numbers, beside data and recognisers.

    Attributes:
        methods: names for ``make_method``.
        seed: of the methods; each probe's noise depends on it and on the probe's place alone.
        chunk: probes protected at a time and kept together: what a kill may lose.
        gallery: whether the mates in the gallery are "unprotected", "protected" by the same method, or "both", one
            after the other (`GALLERIES`).

    Raises:
        ValueError: no method, one named twice, a chunk below 1, or an unknown kind of gallery.
    """

    methods: tuple[str, ...]
    seed: int = 0
    chunk: int = 8
    gallery: str = UNPROTECTED

    def __post_init__(self) -> None:
        if self.gallery not in GALLERIES:
            raise ValueError(f"gallery: expected one of {list(GALLERIES)}, got {self.gallery!r}.")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods: expected at least one, each named once, got {list(self.methods)}.")
        if self.chunk < 1:
            raise ValueError(f"chunk: expected at least 1 probe, got {self.chunk}.")


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
    detector: FaceDetection
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


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Measures methods on the probes of one experiment.

    Attributes:
        pipe: the `DeDiMPipeline` whose networks the methods use.
        probes: from `prepare_probes`.
        bench: who searches and measures.
        settings: methods and seed.
        make_method: ``make_method(name, pipe, seed=, first=, targets=)`` -> photos -> object with images and faces.
        targets: aligned crops ``[K, 3, 112, 112]`` of target identities for TIP-IM, or None for its own.
        transforms: name -> what is done to protected photos for the robustness rates.
        mates: row of the gallery -> photo of a probe's person there, from `find_mates`; asked for only where the
            settings want them protected.
    """

    pipe: Any
    probes: Sequence[Probe]
    bench: Bench
    settings: EvaluationSettings
    make_method: Callable[..., Protect]
    targets: Tensor | None = None
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    mates: Mapping[int, Probe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        method_code()  # before the first piece, not hours later

    def impostors(self) -> dict[str, NDArray[np.float64]]:
        """Recogniser name -> similarities of different people in the unprotected gallery."""
        return {each.name: impostor_scores(self.bench.gallery, each.name) for each in self.bench.recognisers}

    def measure(
        self, method: str, impostors: Mapping[str, NDArray[np.float64]]
    ) -> tuple[MethodEntry, list[RateEntry]]:
        """Protect, search and measure; what was measured before is read from the cache.

        Args:
            method: one of the settings' names.
            impostors: from `impostors`.

        Returns:
            The method's entry, and its rates by every recogniser, those after transforms last.

        Raises:
            DeDiMError: the method failed on a piece; names both. Pieces before it are kept.
        """
        identity = self._identity(method)
        searched = self._searched(method, identity)
        bench = replace(self.bench, gallery=searched.gallery)
        pieces = list(split_probes(self.probes, self.settings.chunk))
        protected, scored = [], []
        for chunk in tqdm(pieces, desc=method, unit="piece"):
            done = self._protect(method, chunk, identity)
            protected.append(done)
            scored.append(score_chunk(chunk, partial(restore_photos, chunk, done), bench, identity))
        rates = self._rates(method, "", scored, searched, impostors)
        for name in self.transforms:
            after = [
                self._transformed(name, chunk, done, identity, bench)
                for chunk, done in tqdm(
                    list(zip(pieces, protected, strict=True)), desc=f"{method}, {name}", unit="piece"
                )
            ]
            rates += self._rates(method, name, after, searched, impostors)
        return self._method_entry(method, protected, scored), rates

    def photos(self, method: str, count: int) -> list[PixelArray]:
        """The first protected photos of a measured method, for the panel."""
        identity, photos = self._identity(method), list[PixelArray]()
        for chunk in split_probes(self.probes, self.settings.chunk):
            if len(photos) < count:
                photos += restore_photos(chunk, self._protect(method, chunk, identity))
        return photos[:count]

    def _make(self, method: str, start: int) -> Protect:
        return self.make_method(method, self.pipe, seed=self.settings.seed, first=start, targets=self.targets)

    def _identity(self, method: str) -> str:
        """Everything that decides what a method makes of a photo."""
        targets = ""
        if takes_targets(method) and self.targets is not None:
            targets = hashlib.sha256(self.targets.cpu().numpy().tobytes()).hexdigest()
        return f"{method} {self._fingerprints[denoises(method)]} {targets}"

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        """Of methods without the UNet, which a newly trained one leaves as they were, and of those with it."""
        networks = ("face_encoder", "landmarker")
        return self._fingerprint(*networks), self._fingerprint(*networks, "unet", "scheduler")

    def _fingerprint(self, *components: str) -> str:
        """SHA-256 over seed, code, versions, kind of device and the pipeline's components."""
        device = torch.device(getattr(self.pipe, "device", "cpu")).type
        versions = [torch.__version__, diffusers.__version__, version("facenet-pytorch")]
        digest = hashlib.sha256(f"{self.settings.seed} {method_code()} {device} {versions}".encode())
        for name in components:
            part = getattr(self.pipe, name, None)
            told = Recogniser.of(name, part).fingerprint if isinstance(part, nn.Module) else part
            digest.update(f"{name} {told}".encode())
        return digest.hexdigest()

    def _protect(self, method: str, chunk: Chunk, identity: str) -> Arrays:
        try:
            return protect_chunk(partial(self._make, method), chunk, identity, self.bench.cache)
        except DeDiMError as error:
            names = ", ".join(probe.name for probe in chunk.probes)
            raise DeDiMError(
                f"{method}: failed on probes {chunk.start} to {chunk.start + len(chunk.probes) - 1} ({names}): "
                f"{error} What was measured before is kept; go on with --resume."
            ) from error

    def _searched(self, method: str, identity: str) -> SearchedGallery:
        """The gallery that the method's probes are searched in, with protected mates where they are wanted."""
        gallery, bench = self.bench.gallery, self.bench
        if PROTECTED not in GALLERIES[self.settings.gallery]:
            return SearchedGallery(gallery, {UNPROTECTED: np.arange(len(gallery.persons))})
        pieces = list(split_probes(list(self.mates.values()), self.settings.chunk, first=MATES_FIRST))
        embedded = []
        for chunk in tqdm(pieces, desc=f"{method}, gallery", unit="piece"):
            photos = partial(restore_photos, chunk, self._protect(method, chunk, identity))
            key = ("mates", identity, chunk.fingerprint, bench.fingerprint)
            made = partial(embed_mates, chunk, photos, bench.recognisers, bench.detector)
            embedded.append(bench.cache.get(key, made))
        return add_mates(gallery, list(self.mates), embedded)

    def _transformed(self, name: str, chunk: Chunk, done: Arrays, identity: str, bench: Bench) -> Arrays:
        transform = self.transforms[name]
        if uses_denoiser(name):  # the method itself may not
            identity = f"{identity} {self._fingerprints[True]}"
        identity += str(getattr(transform, "fingerprint", ""))  # of a network that is not the pipeline's
        return score_chunk(chunk, lambda: transform(restore_photos(chunk, done)), bench, identity, name)

    def _rates(
        self,
        method: str,
        transform: str,
        scored: Sequence[Arrays],
        searched: SearchedGallery,
        impostors: Mapping[str, NDArray[np.float64]],
    ) -> list[RateEntry]:
        persons = [probe.person for probe in self.probes]
        return [
            rate_entry(
                Subject(method, recogniser.name, is_guide(recogniser.name), transform, kind),
                join_arrays(scored, f"similarities_{index}")[:, searched.columns[kind]],
                persons,
                searched.take(kind),
                impostors[recogniser.name],
                _own_photo(scored, index),
            )
            for kind in GALLERIES[self.settings.gallery]
            for index, recogniser in enumerate(self.bench.recognisers)
        ]

    def _method_entry(
        self, method: str, protected: Sequence[Arrays], scored: Sequence[Arrays]
    ) -> MethodEntry:
        persons = [probe.person for probe in self.probes]
        quality = {
            name: bootstrap_mean(join_arrays(scored, name), persons)
            for name in ("psnr", "ssim", "haarpsi", "landmark_shift", "lpips")
        }
        effort, seconds = join_arrays(protected, "effort"), float(join_arrays(protected, "seconds").sum())
        means = [_finite_mean(column) for column in effort.T]
        counted = [place for place, each in enumerate(self.bench.recognisers) if not is_guide(each.name)]
        places = counted or range(len(self.bench.recognisers))
        own = np.mean([_own_photo(scored, place) for place in places], axis=0)
        lost = np.flatnonzero(~join_arrays(scored, "detected")).tolist()
        return MethodEntry(
            method=method,
            probes=len(self.probes),
            psnr=quality["psnr"],
            ssim=quality["ssim"],
            haarpsi=quality["haarpsi"],
            lpips=quality["lpips"] if self.bench.lpips else None,
            landmark_shift=quality["landmark_shift"],
            unchanged=int(np.isposinf(join_arrays(scored, "psnr")).sum()),
            faces=len(effort),
            seconds_per_face=seconds / (len(effort) or len(self.probes)),
            rounds=means[0],
            unet_calls=means[1],
            reached_threshold=means[2],
            dodging=bootstrap_mean((1 - own) / 2, persons),
            undetected=tuple(f"{self.probes[index].person} ({self.probes[index].name})" for index in lost),
        )


def score_chunk(
    chunk: Chunk, photos: Callable[[], list[PixelArray]], bench: Bench, identity: str, transform: str = ""
) -> Arrays:
    """Search for the photos of one piece and measure them, or read what came out before.

    Args:
        chunk: the originals.
        photos: gives the photos; called only where nothing is kept yet.
        bench: who searches and measures.
        identity: everything that decides the photos; part of the cache key.
        transform: name of what was done to them after protection; quality is not measured then.

    Returns:
        ``similarities_0``, ... float64 ``[P, G]`` one a recogniser; ``own_photo_0``, ... ``[P]`` cosine with the
        original; ``detected`` bool ``[P]``; and, without transform, ``psnr``, ``ssim``, ``haarpsi``,
        ``landmark_shift`` and ``lpips`` (nan without it), ``[P]``.
    """

    def score() -> Arrays:
        scores = score_photos(chunk.probes, photos(), bench.gallery, bench.recognisers, bench.detector)
        found: Arrays = {
            f"similarities_{index}": scores.similarities[recogniser.name]
            for index, recogniser in enumerate(bench.recognisers)
        }
        originals = _embed_originals(chunk, bench)
        for index, recogniser in enumerate(bench.recognisers):
            original = originals[f"original_{index}"].astype(np.float64)
            found[f"own_photo_{index}"] = (scores.embeddings[recogniser.name] * original).sum(1)
        found["detected"] = scores.detected
        if transform:
            return found
        pair = (scores.crops_before, scores.crops_after)
        found |= {"psnr": scores.psnr, "ssim": scores.ssim, "haarpsi": scores.haarpsi}
        found["landmark_shift"] = landmark_shift(bench.landmarker, *pair).numpy()
        found["lpips"] = bench.lpips(*pair).numpy() if bench.lpips else np.full(len(chunk.probes), math.nan)
        return found

    return bench.cache.get(("scores", identity, transform, chunk.fingerprint, bench.fingerprint), score)


def _own_photo(scored: Sequence[Arrays], recogniser: int) -> NDArray[np.float64]:
    """Cosine of each probe with its own photo; float32 embeddings are not quite of length 1."""
    return np.clip(join_arrays(scored, f"own_photo_{recogniser}").astype(np.float64), -1, 1)


def _embed_originals(chunk: Chunk, bench: Bench) -> Arrays:
    """``original_0``, ... float64 ``[P, D]``, one a recogniser: worked out once for all methods and transforms."""

    def embed() -> Arrays:
        photos, faces = [probe.photo for probe in chunk.probes], [probe.face for probe in chunk.probes]
        embeddings = embed_all(photos, faces, bench.recognisers)
        return {f"original_{index}": embeddings[each.name] for index, each in enumerate(bench.recognisers)}

    return bench.cache.get(("originals", chunk.fingerprint, bench.fingerprint), embed)


@cache
def method_code() -> str:
    """SHA-256 over the code that makes protected photos, without comments and layout.

    Read once a process: a file edited during a run is not what runs.
    """
    root = Path(diffusers_dedim.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).with_suffix("").as_posix()
        if name.startswith(_METHOD_CODE):
            digest.update(f"{name} {ast.dump(ast.parse(file.read_text()))}".encode())
    return digest.hexdigest()


def _finite_mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
