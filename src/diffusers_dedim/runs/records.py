"""The photos of a run: load them, call the pipeline, judge what may be called protected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffusers_dedim.errors import (
    DeDiMError,
    FaceTooSmallError,
    NoFaceError,
    NotProtectedError,
    UnreadablePhotoError,
)
from diffusers_dedim.images.files import Photo
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.runs.jobs import PhotoJob

if TYPE_CHECKING:
    from diffusers_dedim.faces import Face


@dataclass(frozen=True)
class RunResult:
    """What became of every photo of a run, including those finished before a resume.

    Attributes:
        out: the output folder.
        settings: as given.
        jobs: the photos in their order.
        records: one for each job, in the same order.
        resumed: how many of them an earlier run had finished.
        other_files: files passed over because they are no photos.
        seconds: duration of this run.
        notes: what concerns no single photo, in words.
    """

    out: Path
    settings: RunSettings
    jobs: tuple[PhotoJob, ...]
    records: tuple[PhotoRecord, ...]
    resumed: int
    other_files: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def protected(self) -> tuple[PhotoRecord, ...]:
        """Photos written under their own name."""
        return tuple(record for record in self.records if record.status == "protected")

    @property
    def failures(self) -> tuple[PhotoRecord, ...]:
        """Photos that are not protected, whatever the reason."""
        return tuple(record for record in self.records if record.status != "protected")


Status = Literal["protected", "not_protected", "no_face", "face_too_small", "unreadable", "error"]
"""What became of a photo. Only "protected" is written under its own name."""

SETTLED: frozenset[Status] = frozenset(("protected", "not_protected", "no_face", "face_too_small"))
"""Results of the photo and the settings; the others may be different on another try."""


@dataclass(frozen=True)
class FaceRecord:
    """Scores of one face.

    Attributes:
        box: x0, y0, x1, y1 in photo pixels.
        similarity_before: cosine to the original face before, in [-1, 1].
        similarity: cosine to the original face after, in [-1, 1].
        probability: Eq. 4, that it is still matched, in [0, 1].
        rounds: rounds of Algorithm 2 used.
        unet_calls: UNet evaluations used.
        reached_threshold: whether the probability fell below the threshold.
    """

    box: tuple[float, float, float, float]
    similarity_before: float
    similarity: float
    probability: float
    rounds: int
    unet_calls: int
    reached_threshold: bool


@dataclass(frozen=True)
class PhotoRecord:
    """What a run did with one photo.

    Attributes:
        name: path below the output folder, as in the job.
        status: see :data:`Status`.
        reason: in words, why it was not protected; empty where it was.
        output: path of the written file below the output folder, ``None`` where nothing was written.
        source_sha256: of the input file, empty where it could not be read.
        output_sha256: of the written file, empty where nothing was written.
        faces: the protected faces, in the pipeline's order.
        notes: what reading or writing could not keep, in words.
        seconds: time spent, the photo's equal share where it ran in a batch.
    """

    name: str
    status: Status
    reason: str = ""
    output: str | None = None
    source_sha256: str = ""
    output_sha256: str = ""
    faces: tuple[FaceRecord, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> PhotoRecord:
        """The inverse of `dataclasses.asdict`, from JSON.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        fields = dict(row)
        faces = tuple(FaceRecord(**{**face, "box": tuple(face["box"])}) for face in fields.pop("faces"))
        return cls(faces=faces, notes=tuple(fields.pop("notes")), **fields)


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


def face_record(face: Any) -> FaceRecord:
    """The numbers of a `FaceResult`, as plain values."""
    x0, y0, x1, y1 = (float(edge) for edge in face.box)
    return FaceRecord(
        (x0, y0, x1, y1),
        float(face.similarity_before),
        float(face.similarity),
        float(face.probability),
        int(face.rounds),
        int(face.unet_calls),
        bool(face.reached_threshold),
    )


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
