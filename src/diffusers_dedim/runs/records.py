"""The photos of a run: load them, judge what may be called protected, record what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffusers_dedim.atomic import FileTimes, sha256
from diffusers_dedim.errors import (
    DeDiMError,
    FaceTooSmallError,
    NoFaceError,
    NotProtectedError,
    UnreadablePhotoError,
)
from diffusers_dedim.images.coding import Quality, check_quality
from diffusers_dedim.images.files import MAX_PIXELS, Photo, decode_photo
from diffusers_dedim.images.modes import PixelArray, same_pixels
from diffusers_dedim.runs.jobs import REFUSED_SUFFIXES, PhotoJob, is_video
from diffusers_dedim.video.writing import DEFAULT_CRF

if TYPE_CHECKING:
    from diffusers_dedim.faces import Face
    from diffusers_dedim.pipeline.output import FaceResult
    from diffusers_dedim.pipeline.photos import StreamResult


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

_FACE_FIELDS = (
    *("box", "similarity_before", "similarity", "probability", "rounds", "unet_calls", "reached_threshold"),
    *("treatment", "reason", "attempts"),
)
NO_POINTS = np.empty((0, 2))
"""Landmarks of a face whose landmarks are not kept."""


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
        faces: those that were changed or covered, or were to be, in the pipeline's order; as in the manifest, without
            landmarks and with index 0.
        notes: what reading or writing could not keep, in words.
        seconds: time spent, the photo's equal share where it ran in a batch.
    """

    name: str
    status: Status
    reason: str = ""
    output: str | None = None
    source_sha256: str = ""
    output_sha256: str = ""
    faces: tuple[FaceResult, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_fields(self) -> dict[str, Any]:
        """What goes into the manifest, in this order; JSON knows all of it."""
        faces = [{name: getattr(face, name) for name in _FACE_FIELDS} for face in self.faces]
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "faces": faces}

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> PhotoRecord:
        """The inverse of `to_fields`, from JSON.

        Raises:
            KeyError, TypeError: a field is missing or unknown.
        """
        given = dict(row)
        faces, notes = given.pop("faces"), given.pop("notes")
        return cls(faces=tuple(map(_read_face, faces)), notes=tuple(notes), **given)


def _read_face(row: Mapping[str, Any]) -> FaceResult:
    from diffusers_dedim.pipeline.output import FaceResult  # PyTorch, which help and usage errors do without

    several = {name: tuple(row[name]) for name in ("box", "attempts") if name in row}
    return FaceResult(image_index=0, landmarks=NO_POINTS, **{**row, **several})


def as_recorded(face: FaceResult) -> FaceResult:
    """A face as the manifest has it: Python's own numbers, and without the landmarks, which would fill the memory."""
    x0, y0, x1, y1 = (float(edge) for edge in face.box)
    return replace(
        face,
        image_index=0,
        box=(x0, y0, x1, y1),
        landmarks=NO_POINTS,
        similarity_before=float(face.similarity_before),
        similarity=float(face.similarity),
        probability=float(face.probability),
        rounds=int(face.rounds),
        unet_calls=int(face.unet_calls),
        reached_threshold=bool(face.reached_threshold),
    )


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of a run; a stopped run goes on only with the same settings.

    Attributes:
        preset: name of a preset of ``DeDiMPipeline``.
        threshold: probability below which a face counts as protected, in (0, 1), or the preset's.
        max_rounds: most rounds of Algorithm 2, at least 1, or the preset's.
        small_faces: a face with too little to change (too small, covered, turned away) is covered ("blur",
            "pixelate"); or one that is too small is left ("skip"), or fails its photo ("error"), and the others are
            left to ``fallback``.
        fallback: a face that stays above the threshold whatever is tried fails its photo ("leave-out") or is covered
            ("blur", "pixelate").
        only, all_but: photos of a person, to protect nobody else, or everybody else; at most one of the two.
        seed: each photo gets its own generator from it and its name; ``None`` draws afresh.
        weights: which weights the pipeline was loaded from, as the user named them.
        guides: the recognisers that guide, as the user named them, one after the other with commas.
        keep_metadata: write EXIF (with GPS position, without thumbnail) beside the protected pixels.
        allow_partial: write a photo whose face stayed above the threshold, under a name that says so.
        quality: how finely the photos are packed: "same" as their own files, "best", or 1 to 100; finer where that
            would bring a face back.
        keep_times: give the written files the dates of those they were made from.
        max_megapixels: largest photo that is decoded, in millions of pixels.
        crf: quality of the H.264 of videos, 0 (without loss) to 51.
        album: tell a person's photos apart from one another (`Album`); a photo's result then depends on those before
            it. Ray's workers have none.
        detector: what finds the faces, as the user named it.

    Raises:
        ValueError: a value outside its range.
    """

    preset: str = "fast"
    threshold: float | None = None
    max_rounds: int | None = None
    small_faces: Literal["blur", "pixelate", "skip", "error"] = "blur"
    fallback: Literal["leave-out", "blur", "pixelate"] = "leave-out"
    seed: int | None = None
    weights: str = "bundled"
    guides: str = "own"
    only: tuple[str, ...] = ()
    all_but: tuple[str, ...] = ()
    keep_metadata: bool = False
    allow_partial: bool = False
    quality: Quality = "same"
    keep_times: bool = False
    max_megapixels: float = MAX_PIXELS / 1e6
    crf: int = DEFAULT_CRF
    album: bool = True
    detector: str = "mtcnn"

    def __post_init__(self) -> None:
        check_quality(self.quality)
        if not 0 < self.max_megapixels < float("inf"):
            raise ValueError(f"max_megapixels must be a number above 0, got {self.max_megapixels}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {self.threshold}")
        if self.max_rounds is not None and self.max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {self.max_rounds}")
        for name, known in (
            ("small_faces", ("blur", "pixelate", "skip", "error")),
            ("fallback", ("leave-out", "blur", "pixelate")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.only and self.all_but:
            raise ValueError("only and all_but exclude each other; give one of them")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be 0 to 51, got {self.crf}")

    def described(self) -> dict[str, Any]:
        """What the manifest says of the settings: of the photos of a person the digests alone.

        Raises:
            OSError: one of them cannot be read.
        """
        digests = {
            name: [sha256(Path(photo).read_bytes()) for photo in getattr(self, name)]
            for name in ("only", "all_but")
        }
        return {**asdict(self), **digests}


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo in memory beside its job and the digest of its file.

    Attributes:
        job, photo, source_sha256: these.
        faces: where they were found already.
        times: of its file, where they are to be kept.
    """

    job: PhotoJob
    photo: Photo
    source_sha256: str
    faces: tuple[Face, ...] | None = None
    times: FileTimes | None = None


# Most raw formats are built as TIFF is, with a small picture first, which would be taken for the photo.
_PREVIEW = (
    "raw photos are not supported: only a preview in it can be read; convert it to JPEG, PNG or TIFF first"
)


def load_photo(job: PhotoJob, settings: RunSettings) -> LoadedPhoto | PhotoRecord:
    """Read a photo, or return the record that says why it cannot be read."""
    if is_video(job.source):  # a run on one machine takes videos another way
        return PhotoRecord(job.name, "unreadable", "videos are not protected with --ray; run them without")
    try:
        data, times = job.source.read_bytes(), file_times(job.source, settings)
    except OSError as error:
        return PhotoRecord(job.name, "unreadable", f"cannot be opened ({error.strerror})")
    except MemoryError:
        return PhotoRecord(job.name, "error", "the file does not fit into memory")
    item = decode_job(job, data, settings)
    return item if isinstance(item, PhotoRecord) else replace(item, times=times)


def file_times(path: Path, settings: RunSettings) -> FileTimes | None:
    """When a photo's file was last read and changed, if its result is to say the same.

    Raises:
        OSError: the file is not there.
    """
    if not settings.keep_times:
        return None
    status = path.stat()
    return status.st_atime_ns, status.st_mtime_ns


def decode_job(job: PhotoJob, data: bytes, settings: RunSettings) -> LoadedPhoto | PhotoRecord:
    """Decode the bytes of a job's file, or return the record that says why that cannot be."""
    digest = sha256(data)
    try:
        photo = decode_photo(data, round(settings.max_megapixels * 1e6))
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


def judge(photo: Photo, pixels: PixelArray, faces: Sequence[FaceResult]) -> tuple[Status, str]:
    """Whether a photo may be called protected; in doubt it may not."""
    if not faces:
        return "no_face", "no face that is large enough to be protected"
    if pixels.shape != photo.pixels.shape:
        return "error", f"the pipeline returned shape {pixels.shape} for {photo.pixels.shape}"
    if not all(face.is_protected for face in faces):
        return "not_protected", _say_unprotected(faces)
    if same_pixels(pixels, photo.pixels):
        return "not_protected", "no pixel changed"
    return "protected", ""


def _say_unprotected(faces: Sequence[FaceResult]) -> str:
    """Why faces are not protected."""
    unreached = [face.similarity for face in faces if face.treatment == "changed" and not face.is_protected]
    left = [face.reason for face in faces if face.treatment == "left"]
    said = []
    if unreached:
        said.append(f"{len(unreached)} of {len(faces)} faces still match (similarity {max(unreached):.2f})")
    if left:
        reasons = ", ".join(sorted(set(left)))
        said.append(f"{len(left)} of {len(faces)} faces cannot be changed ({reasons})")
    return "; ".join(said)


def record_result(
    result: StreamResult, settings: RunSettings, seconds: float
) -> tuple[PhotoRecord, Path | None]:
    """The record of a photo, and where it is to be written, if anywhere; the record does not name that yet.

    Args:
        result: of the photo, whose owner is a `LoadedPhoto`.
        settings: of the run.
        seconds: time spent on it.
    """
    item: LoadedPhoto = result.photo.owner
    error = result.error
    status, reason = judge_error(error) if error else judge(item.photo, result.pixels, result.faces)
    record = PhotoRecord(
        item.job.name, status, reason, source_sha256=item.source_sha256, seconds=round(seconds, 3)
    )
    if error:
        return record, None
    exif_notes = item.photo.exif_notes if settings.keep_metadata else ()
    notes = (*item.photo.notes, *_note_faces(result), *exif_notes)
    record = replace(record, faces=tuple(map(as_recorded, result.faces)), notes=notes)
    if status == "protected":
        return record, item.job.target
    changed = not same_pixels(result.pixels, item.photo.pixels)
    partial = status == "not_protected" and settings.allow_partial and changed
    return record, item.job.partial_target if partial else None


def _note_faces(result: StreamResult) -> tuple[str, ...]:
    """Say which faces were covered, and which were left as they are."""
    found = len(result.faces) + len(result.small_faces)
    covered = Counter(
        (face.treatment, face.reason) for face in result.faces if face.treatment in ("blurred", "pixelated")
    )
    notes = [
        f"{count} of {found} faces {'was' if count == 1 else 'were'} {treatment} ({reason})"
        for (treatment, reason), count in covered.items()
    ]
    if result.small_faces:
        from diffusers_dedim.faces import MIN_FACE_SIZE

        small = len(result.small_faces)
        notes.append(
            f"{small} of {found} faces are smaller than {MIN_FACE_SIZE} px and were left UNPROTECTED"
        )
    if result.unchosen:
        left = len(result.unchosen)
        was = "was not chosen and left as it is" if left == 1 else "were not chosen and left as they are"
        notes.append(f"{left} of {found + left} faces {was}")
    return tuple(notes)


def write_failure(error: Exception) -> dict[str, Any]:
    """Fields for the record of a photo whose result could not be encoded or written, as on a full disk."""
    why = (error.strerror if isinstance(error, OSError) else None) or error
    return {"status": "error", "reason": f"cannot be written ({why})"}


def judge_error(error: Exception) -> tuple[Status, str]:
    """What an error makes of a photo or video, and the reason in words."""
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
