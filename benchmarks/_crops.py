"""Aligned crops of the training and validation faces, and photos protected once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks._common import environment, number
from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import ArrayCache, Gallery, Probe, protect_probes
from diffusers_dedim.evaluation.methods import make_method
from diffusers_dedim.faces import whole_crop
from diffusers_dedim.metrics.intervals import Estimate
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.training.data import FaceCrops, to_model_range

Pixels = NDArray[np.uint8]
SAME_PERSON_FMR = 1e-5


@dataclass(frozen=True, eq=False)
class Protected:
    """What the pipeline made of photos.

    Attributes:
        photos: one for each given, uint8 RGB.
        reached, similarity: per face, in the order of the pipeline's records; with aligned crops one a photo.
        seconds: time spent protecting, when it was done.
    """

    photos: tuple[Pixels, ...]
    reached: NDArray[np.bool_]
    similarity: NDArray[np.float64]
    seconds: float


def crop_probes(crops: FaceCrops, rows: Sequence[int]) -> list[Probe]:
    """Take aligned crops for photos of as many people, so that everything made for probes serves them."""
    probes = []
    for row in rows:
        pixels: Pixels = crops[int(row)]["image"].permute(1, 2, 0).contiguous().numpy()
        probes.append(Probe(str(row), pixels, whole_crop(pixels).face))
    return probes


def to_crops(photos: Sequence[Pixels]) -> Tensor:
    """uint8 crops ``[112, 112, 3]`` -> ``[N, 3, 112, 112]`` in [-1, 1]."""
    return to_model_range(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2))


def resembles_gallery(people: Sequence[Probe], judge: Recogniser, gallery: Gallery) -> NDArray[np.bool_]:
    """Whether each face may be somebody in the gallery, by one recogniser, ``[N]``.

    It may if it is as much like a gallery image as one in 100,000 pairs of different gallery people are to each
    other (the most alike pair of a gallery with fewer pairs).
    """
    found = ~np.isnan(gallery.embeddings[judge.name]).any(axis=1)
    theirs, persons = gallery.embeddings[judge.name][found], np.asarray(gallery.persons)[found]
    different = np.triu(persons[:, None] != persons[None, :], 1)
    impostors = (theirs @ theirs.T)[different]
    limit = threshold_at_fmr(impostors, max(SAME_PERSON_FMR, 1 / len(impostors)))
    ours = embed_faces(judge.encoder, [person.photo for person in people], [person.face for person in people])
    similar: NDArray[np.bool_] = (ours @ theirs.T).max(axis=1) >= limit
    return similar


def choose_strangers(
    source: str, count: int, judges: Sequence[Recogniser], gallery: Gallery, seed: int
) -> tuple[list[Probe], int]:
    """Draw ``count`` training faces; give those of nobody in the gallery, and how many resembled somebody there.

    The data names nobody, so the recognisers judge; one of them is enough to leave a face out.
    """
    crops = FaceCrops(source, "train")
    order = np.random.default_rng(seed).permutation(len(crops))[:count]
    people = crop_probes(crops, order.tolist())
    known = np.any([resembles_gallery(people, judge, gallery) for judge in judges], axis=0)
    strangers = [person for person, is_known in zip(people, known, strict=True) if not is_known]
    return strangers, int(known.sum())


def protect_once(
    pipe: Any,
    probes: Sequence[Probe],
    cache: ArrayCache,
    *,
    method: str,
    seed: int,
    batch_size: int,
    aligned: bool = False,
    targets: Tensor | None = None,
) -> Protected:
    """Protect photos, or take what an earlier run of the same commit, weights, seed and photos left in the cache.

    Each call's photos are kept on their own: a run that is killed goes on where it was.

    With uncommitted changes nothing is read or kept: code that is not named by the commit could differ.

    Args:
        pipe: a `DeDiMPipeline`.
        probes: whose photos to protect.
        cache: where the result is kept.
        method: a name for `make_method`, such as "dedim:fast".
        seed: of the method.
        batch_size: photos a call.
        aligned: the photos are aligned crops; nothing is detected, as with the pipeline's ``aligned=True``.
        targets: for TIP-IM, see `make_method`.
    """

    def make(first: int, batch: Sequence[Probe]) -> dict[str, NDArray[Any]]:
        with whole_crops(pipe) if aligned else contextlib.nullcontext():
            protect = make_method(method, pipe, seed=seed, first=first, targets=targets)
            done = protect_probes(protect, batch, batch_size)
        faces: Sequence[Any] = done.faces
        return {
            "reached": np.array([face.reached_threshold for face in faces], dtype=bool),
            "similarity": np.array([face.similarity for face in faces], dtype=np.float64),
            "seconds": np.array(done.seconds),
            **{f"photo-{index:06d}": photo for index, photo in enumerate(done.photos)},
        }

    commit = environment()["commit"]
    kept = commit != "unknown" and not commit.endswith("-dirty")
    if not kept:
        print("uncommitted changes: protected photos are not kept for the next run", file=sys.stderr)
    parts = (pipe.unet, pipe.face_encoder, pipe.landmarker)
    weights = [Recogniser.of("part", part).fingerprint for part in parts] if kept else []
    device = torch.device(getattr(pipe, "device", "cpu")).type
    setting = (commit, torch.__version__, device, str(getattr(pipe, "scheduler", "")), method, str(seed))
    settings = (*setting, str(aligned), *weights)
    pieces: list[dict[str, NDArray[Any]]] = []
    for start in tqdm(range(0, len(probes), batch_size), desc=method):
        batch = probes[start : start + batch_size]
        photos = [probe.photo for probe in batch] + ([] if targets is None else [targets.numpy()])
        key = ("protected", *settings, str(start), _hash_arrays(photos))
        pieces.append(cache.get(key, partial(make, start, batch)) if kept else make(start, batch))
    return Protected(
        tuple(piece[name] for piece in pieces for name in sorted(piece) if name.startswith("photo-")),
        np.concatenate([piece["reached"] for piece in pieces]),
        np.concatenate([piece["similarity"] for piece in pieces]),
        float(sum(piece["seconds"] for piece in pieces)),
    )


@contextlib.contextmanager
def whole_crops(pipe: Any) -> Iterator[None]:
    """Let every method that asks the pipeline's detector take a crop for the face that it is."""
    detector, pipe.face_detector = pipe.face_detector, lambda photo: [whole_crop(photo).face]
    try:
        yield
    finally:
        pipe.face_detector = detector


def interval(estimate: Estimate) -> dict[str, float | None]:
    """A mean and its 95 % interval as JSON."""
    ends = {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value is None else number(value) for name, value in ends.items()}


def _hash_arrays(arrays: Sequence[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
