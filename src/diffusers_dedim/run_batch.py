"""The photos of a run: load them, call the pipeline, judge what may be called protected."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from diffusers_dedim.errors import (
    DeDiMError,
    FaceTooSmallError,
    NoFaceError,
    NotProtectedError,
    UnreadablePhotoError,
)
from diffusers_dedim.image_io import Photo, decode_photo
from diffusers_dedim.image_modes import PixelArray, as_written
from diffusers_dedim.manifest import FaceRecord, PhotoRecord, Status, sha256
from diffusers_dedim.photo_jobs import REFUSED_SUFFIXES, PhotoJob

if TYPE_CHECKING:
    import torch

    from diffusers_dedim.faces import Face

# Most raw formats are built as TIFF is, with a small picture first, which would be taken for the photo.
_PREVIEW = (
    "raw photos are not supported: only a preview in it can be read; convert it to JPEG, PNG or TIFF first"
)

Pipeline = Callable[..., Any]
"""A ``DeDiMPipeline`` or anything that is called and answers like one."""

Outcome = tuple[PixelArray, tuple[FaceRecord, ...]] | Exception
"""Protected pixels and face records of one photo, or why the pipeline gave none."""


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of a run; a stopped run goes on only with the same settings.

    Attributes:
        preset: name of a preset of ``DeDiMPipeline``.
        threshold: probability below which a face counts as protected, in (0, 1), or the preset's.
        max_rounds: most rounds of Algorithm 2, at least 1, or the preset's.
        small_faces: what a face too small to protect does: "error" fails its photo, "skip" leaves it.
        seed: each photo gets its own generator from it and its name; ``None`` draws afresh.
        weights: which weights the pipeline was loaded from, as the user named them.
        keep_metadata: write EXIF (with GPS position, without thumbnail) beside the protected pixels.
        allow_partial: write a photo whose face stayed above the threshold, under a name that says so.

    Raises:
        ValueError: a value outside its range.
    """

    preset: str = "fast"
    threshold: float | None = None
    max_rounds: int | None = None
    small_faces: Literal["error", "skip"] = "error"
    seed: int | None = None
    weights: str = "bundled"
    keep_metadata: bool = False
    allow_partial: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        if self.max_rounds is not None and self.max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {self.max_rounds}")
        if self.small_faces not in ("error", "skip"):
            raise ValueError(f'small_faces must be "error" or "skip", got {self.small_faces!r}')


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo in memory beside its job and the digest of its file; its faces where they were found already."""

    job: PhotoJob
    photo: Photo
    source_sha256: str
    faces: tuple[Face, ...] | None = None


@dataclass(frozen=True)
class ProtectedPhoto:
    """What the pipeline made of a photo, and its share of the time."""

    item: LoadedPhoto
    outcome: Outcome
    seconds: float


def load_photo(job: PhotoJob) -> LoadedPhoto | PhotoRecord:
    """Read a photo, or return the record that says why it cannot be read."""
    try:
        data = job.source.read_bytes()
    except OSError as error:
        return PhotoRecord(job.name, "unreadable", f"cannot be opened ({error.strerror})")
    except MemoryError:
        return PhotoRecord(job.name, "error", "the file does not fit into memory")
    return decode_job(job, data)


def decode_job(job: PhotoJob, data: bytes) -> LoadedPhoto | PhotoRecord:
    """Decode the bytes of a job's file, or return the record that says why that cannot be."""
    digest = sha256(data)
    try:
        photo = decode_photo(data)
        if photo.format == "TIFF" and job.source.suffix.lower() in REFUSED_SUFFIXES:
            raise UnreadablePhotoError(_PREVIEW)
        return LoadedPhoto(job, photo, digest)
    except UnreadablePhotoError as error:
        return PhotoRecord(job.name, "unreadable", str(error), source_sha256=digest)
    except MemoryError:
        return PhotoRecord(job.name, "error", "the photo does not fit into memory", source_sha256=digest)
    except Exception as error:  # whatever a file provokes in a decoder, the run goes on to the next
        reason = f"cannot be decoded ({type(error).__name__}: {error})"
        return PhotoRecord(job.name, "error", reason, source_sha256=digest)


def protect_batches(
    pipe: Pipeline, photos: Iterator[LoadedPhoto | PhotoRecord], settings: RunSettings, batch_size: int
) -> Iterator[ProtectedPhoto | PhotoRecord]:
    """Protect photos batch by batch; records of those that could not be loaded are passed on."""
    while batch := list(islice(photos, batch_size)):
        yield from (item for item in batch if isinstance(item, PhotoRecord))
        loaded = [item for item in batch if isinstance(item, LoadedPhoto)]
        started = time.monotonic()
        outcomes = protect_batch(pipe, loaded, settings) if loaded else []
        seconds = (time.monotonic() - started) / max(len(loaded), 1)
        for item, outcome in zip(loaded, outcomes, strict=True):
            yield ProtectedPhoto(item, outcome, seconds)


def protect_batch(pipe: Pipeline, loaded: Sequence[LoadedPhoto], settings: RunSettings) -> list[Outcome]:
    """Run a batch; where it fails as a whole, run its photos one by one, so only the bad fail."""
    try:
        return list(_call(pipe, loaded, settings))
    except Exception as error:  # whatever a photo provokes, the run goes on to the next
        if len(loaded) == 1:
            return [error]
    return [outcome for item in loaded for outcome in protect_batch(pipe, [item], settings)]


def _call(pipe: Pipeline, loaded: Sequence[LoadedPhoto], settings: RunSettings) -> Iterator[Outcome]:
    """Pixels and face records of each photo of a batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a face above the threshold is in the record and listed
        out = pipe(
            [Image.fromarray(item.photo.pixels) for item in loaded],
            preset=settings.preset,
            threshold=settings.threshold,
            max_rounds=settings.max_rounds,
            small_faces=settings.small_faces,
            generator=generators(settings.seed, [item.job.name for item in loaded]),
            output_type="pil",
        )
    if len(out.images) != len(loaded):
        raise RuntimeError(f"the pipeline returned {len(out.images)} images for {len(loaded)} photos")
    for index, (item, image) in enumerate(zip(loaded, out.images, strict=True)):
        faces = tuple(face_record(face) for face in out.faces if face.image_index == index)
        yield as_written(np.asarray(image.convert("RGB")), grey=item.photo.grey), faces


def face_record(face: Any) -> FaceRecord:
    """The numbers of a `FaceResult`, as plain values."""
    x0, y0, x1, y1 = (float(edge) for edge in face.box)
    return FaceRecord(
        (x0, y0, x1, y1), float(face.similarity_before), float(face.similarity), float(face.probability),
        int(face.rounds), int(face.unet_calls), bool(face.reached_threshold),
    )  # fmt: skip


def generators(seed: int | None, names: Sequence[str]) -> list[torch.Generator] | None:
    """One generator a photo, from the seed and its name: neither the batch nor a resume changes a result."""
    if seed is None:
        return None
    import torch  # heavy, and not needed without a seed

    def derived(name: str) -> int:
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:7], "big")

    return [torch.Generator("cpu").manual_seed(derived(name)) for name in names]


def judge(photo: Photo, outcome: Outcome) -> tuple[Status, str]:
    """Whether a photo may be called protected; in doubt it may not."""
    if isinstance(outcome, Exception):
        return _judge_error(outcome)
    pixels, faces = outcome
    if not faces:
        return "no_face", "no face that is large enough to be protected"
    if pixels.shape != photo.pixels.shape:
        return "error", f"the pipeline returned shape {pixels.shape} for {photo.pixels.shape}"
    left = [face for face in faces if not face.reached_threshold]
    if left:
        worst = max(face.similarity for face in left)
        return "not_protected", f"{len(left)} of {len(faces)} faces still match (similarity {worst:.2f})"
    if np.array_equal(pixels, photo.pixels):
        return "not_protected", "no pixel changed"
    return "protected", ""


def record_outcome(done: ProtectedPhoto, settings: RunSettings) -> tuple[PhotoRecord, Path | None]:
    """The record of a photo, and where it is to be written, if anywhere; the record does not name that yet."""
    item, outcome = done.item, done.outcome
    status, reason = judge(item.photo, outcome)
    record = PhotoRecord(
        item.job.name, status, reason, source_sha256=item.source_sha256, seconds=round(done.seconds, 3)
    )
    if isinstance(outcome, Exception):
        return record, None
    exif_notes = item.photo.exif_notes if settings.keep_metadata else ()
    record = replace(record, faces=outcome[1], notes=(*item.photo.notes, *exif_notes))
    if status == "protected":
        return record, item.job.target
    changed = not np.array_equal(outcome[0], item.photo.pixels)
    partial = status == "not_protected" and settings.allow_partial and changed
    return record, item.job.partial_target if partial else None


def write_failure(record: PhotoRecord, error: Exception) -> PhotoRecord:
    """The record of a photo whose result could not be encoded or written: a full disk, an encoder that refuses it."""
    why = (error.strerror if isinstance(error, OSError) else None) or error
    return replace(record, status="error", reason=f"cannot be written ({why})")


def _judge_error(error: Exception) -> tuple[Status, str]:
    kinds: tuple[tuple[type[DeDiMError], Status], ...] = (
        (NoFaceError, "no_face"),
        (FaceTooSmallError, "face_too_small"),
        (NotProtectedError, "not_protected"),
        (UnreadablePhotoError, "unreadable"),
    )
    for kind, status in kinds:
        if isinstance(error, kind):
            # "image 0" is the photo's place in a call of one; the record names the photo itself
            return status, str(error).removeprefix("image 0: ").rstrip(".")
    return "error", f"{type(error).__name__}: {error}"
