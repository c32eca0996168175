"""Protect probes and search for them in the gallery, the way an attacker would."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces
from diffusers_dedim.evaluation.cache import ArrayCache
from diffusers_dedim.evaluation.data import Record
from diffusers_dedim.evaluation.gallery import Gallery, find_central_faces, same_face
from diffusers_dedim.faces import MIN_FACE_SIZE, Face, FaceDetection, align_face
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.metrics.quality import haarpsi, mean_ssim, psnr
from diffusers_dedim.metrics.retrieval import genuine_ranks, rank_k_rate
from diffusers_dedim.pipeline.inputs import to_pixel_list


class ProbeFace(Protocol):
    """What is read of a pipeline's per-face result (`FaceResult`)."""

    rounds: int
    unet_calls: int
    reached_threshold: bool


@dataclass(frozen=True, eq=False)
class Probe:
    """A photo to protect and search with.

    Attributes:
        person: identity.
        photo: ``[H, W, 3]`` uint8 RGB.
        face: the face that is meant (the central one), photo px.
        name: where the photo came from, for lists; see `Record`.
    """

    person: str
    photo: PixelArray
    face: Face
    name: str = ""


@dataclass(frozen=True, eq=False)
class Protection:
    """What a method made of the probes.

    Attributes:
        photos: protected photos, each of its probe's size.
        faces: one record per protected face, people in the background included.
        seconds: time spent inside the method.
    """

    photos: tuple[PixelArray, ...]
    faces: tuple[ProbeFace, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """How well protected photos are found, and how much they changed.

    Attributes:
        similarities: recogniser name -> ``[P, G]`` cosine in [-1, 1]; -inf where the gallery face is missing.
        embeddings: recogniser name -> ``[P, D]`` unit vectors of the protected photos, float64.
        ranks: recogniser name -> ``[P]``, rank of the own person (ties go to the searcher).
        rank1: recogniser name -> share of probes found first.
        psnr: ``[P]`` dB; inf where the crop did not change.
        ssim: ``[P]`` mean SSIM of the aligned crops.
        haarpsi: ``[P]``.
        detected: ``[P]`` bool, whether the attacker's detector still finds a face; where it does not, the
            original box is matched.
        crops_before: ``[P, 3, 112, 112]`` in [-1, 1], aligned by the original landmarks.
        crops_after: the same alignment on the protected photos.
    """

    similarities: dict[str, NDArray[np.float64]]
    embeddings: dict[str, NDArray[np.float64]]
    ranks: dict[str, NDArray[np.int64]]
    rank1: dict[str, float]
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    haarpsi: NDArray[np.float64]
    detected: NDArray[np.bool_]
    crops_before: Tensor
    crops_after: Tensor

    @property
    def undetected(self) -> int:
        """Number of probes whose face is no longer found."""
        return int((~self.detected).sum())


def prepare_probes(records: Sequence[Record], detector: FaceDetection, cache: ArrayCache) -> list[Probe]:
    """Decode probes and find the face that is meant.

    Photos without a face are left out, and those whose face is under 40 px: no method changes such a face.

    Args:
        records: the probes of a protocol.
        detector: photo -> faces.
        cache: keeps the faces found.

    Raises:
        UnreadablePhotoError: a photo cannot be decoded; names the record.
    """
    faces = find_central_faces(records, detector, cache)
    return [
        Probe(record.person, record.read_photo(), face, record.name)
        for record, face in zip(records, faces, strict=True)
        if face is not None and face.size >= MIN_FACE_SIZE
    ]


def protect_probes(
    protect: Callable[[list[PixelArray]], Any], probes: Sequence[Probe], batch_size: int = 8
) -> Protection:
    """Run a method over the whole photos of the probes.

    Args:
        protect: photos -> an object with ``images`` (as the pipeline takes them) and ``faces``; a `DeDiMPipeline`
            with its settings bound by `functools.partial` is one.
        probes: the photos; every face in them is protected, the central one is measured.
        batch_size: photos per call.

    Raises:
        ValueError: the method changed the number or the size of the photos.
    """
    photos: list[PixelArray] = []
    faces: list[ProbeFace] = []
    seconds = 0.0
    for start in tqdm(range(0, len(probes), batch_size), desc="protect", leave=False):
        batch = [probe.photo for probe in probes[start : start + batch_size]]
        begin = time.perf_counter()
        output = protect(batch)
        seconds += time.perf_counter() - begin
        photos += to_pixel_list(output.images)
        faces += output.faces
    _check_same_sizes([probe.photo for probe in probes], photos)
    return Protection(tuple(photos), tuple(faces), seconds)


def search_gallery(
    probes: Sequence[Probe],
    photos: Sequence[PixelArray],
    faces: Sequence[Face],
    gallery: Gallery,
    recognisers: Sequence[Recogniser],
) -> dict[str, NDArray[np.float64]]:
    """Compare one face of each photo with the gallery: recogniser name -> cosine ``[P, G]`` in float64.

    Raises:
        ValueError: the gallery was not embedded with one of the recognisers, or the counts disagree.
    """
    _check_embedded(gallery, recognisers)
    if len(photos) != len(probes):
        raise ValueError(f"photos: expected one for each of {len(probes)} probes, got {len(photos)}.")
    return _compare(embed_all(photos, faces, recognisers), gallery)


def embed_all(
    photos: Sequence[PixelArray], faces: Sequence[Face], recognisers: Sequence[Recogniser]
) -> dict[str, NDArray[np.float64]]:
    """Embed one face of each photo by every recogniser: name -> unit vectors ``[P, D]`` in float64."""
    return {
        recogniser.name: embed_faces(recogniser.encoder, photos, faces).astype(np.float64)
        for recogniser in tqdm(recognisers, desc="search", leave=False)
    }


def _compare(embeddings: dict[str, NDArray[np.float64]], gallery: Gallery) -> dict[str, NDArray[np.float64]]:
    similarities = {}
    for name, rows in embeddings.items():
        scores = rows @ gallery.embeddings[name].T.astype(np.float64)
        similarities[name] = np.where(np.isnan(scores), -np.inf, scores)
    return similarities


def _check_embedded(gallery: Gallery, recognisers: Sequence[Recogniser]) -> None:
    for recogniser in recognisers:
        if recogniser.name not in gallery.embeddings:
            raise ValueError(
                f"recognisers: the gallery has no embeddings by {recogniser.name!r}, "
                f"only by {sorted(gallery.embeddings)}; embed it with the same recognisers."
            )


def score_photos(
    probes: Sequence[Probe],
    protected: Sequence[PixelArray],
    gallery: Gallery,
    recognisers: Sequence[Recogniser],
    detector: FaceDetection,
) -> ProbeScores:
    """Score protected photos of the probes, in their order.

    The attacker has the protected photo alone: the face is detected and aligned anew (`same_face`). Where it is
    not found any more, the original's box is searched, so that nobody else's face counts for it. Quality compares the
    aligned crops, both by the original landmarks.

    Args:
        probes: the originals.
        protected: ``[H, W, 3]`` uint8 RGB each, of the probe's size.
        gallery: embedded with the same recognisers.
        recognisers: who searches.
        detector: the attacker's, photo -> faces.

    Raises:
        ValueError: number or size of the photos differ from the probes'.
    """
    _check_same_sizes([probe.photo for probe in probes], protected)
    found = [
        same_face(photo, probe.face, detector)
        for probe, photo in zip(
            probes, tqdm(protected, desc="detect again", leave=False, mininterval=1), strict=True
        )
    ]
    faces = [face or probe.face for probe, face in zip(probes, found, strict=True)]
    _check_embedded(gallery, recognisers)
    embeddings = embed_all(protected, faces, recognisers)
    similarities = _compare(embeddings, gallery)
    persons = [probe.person for probe in probes]
    before = torch.stack([align_face(probe.photo, probe.face).crop for probe in probes])
    pairs = zip(probes, protected, strict=True)
    after = torch.stack([align_face(photo, probe.face).crop for probe, photo in pairs])
    return ProbeScores(
        similarities=similarities,
        embeddings=embeddings,
        ranks={name: genuine_ranks(s, persons, gallery.persons) for name, s in similarities.items()},
        rank1={name: rank_k_rate(s, persons, gallery.persons, k=1) for name, s in similarities.items()},
        psnr=psnr(before, after).numpy(),
        ssim=mean_ssim(before, after).numpy(),
        haarpsi=haarpsi(before, after).numpy(),
        detected=np.array([face is not None for face in found]),
        crops_before=before,
        crops_after=after,
    )


def evaluate_probes(
    protect: Callable[[list[PixelArray]], Any],
    probes: Sequence[Probe],
    gallery: Gallery,
    recognisers: Sequence[Recogniser],
    detector: FaceDetection,
    batch_size: int = 8,
) -> tuple[Protection, ProbeScores]:
    """`protect_probes`, then `score_photos` on the result.

    Args:
        protect: photos -> an object with ``images`` and ``faces``, see `protect_probes`.
        probes: from `prepare_probes`.
        gallery: from `embed_gallery`, with the same recognisers.
        recognisers: who searches.
        detector: the attacker's, photo -> faces.
        batch_size: photos per call of ``protect``.

    Example:
        >>> protect = functools.partial(pipe, preset="fast")  # doctest: +SKIP
        >>> _, scores = evaluate_probes(protect, probes, gallery, recognisers, detector)  # doctest: +SKIP
        >>> scores.rank1, scores.ssim.mean()  # doctest: +SKIP
    """
    protection = protect_probes(protect, probes, batch_size)
    return protection, score_photos(probes, protection.photos, gallery, recognisers, detector)


def _check_same_sizes(originals: Sequence[PixelArray], photos: Sequence[PixelArray]) -> None:
    if len(photos) != len(originals):
        raise ValueError(f"photos: expected {len(originals)}, one for each probe, got {len(photos)}.")
    for index, (original, photo) in enumerate(zip(originals, photos, strict=True)):
        if photo.shape != original.shape or photo.dtype != np.uint8:
            raise ValueError(
                f"photos[{index}]: expected uint8 of the probe's shape {list(original.shape)}, "
                f"got {photo.dtype} of shape {list(photo.shape)}."
            )
