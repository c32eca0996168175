"""The videos of a run: each is one entry of the manifest, as a photo is."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_dedim.atomic import file_sha256
from diffusers_dedim.runs.jobs import PhotoJob, is_video
from diffusers_dedim.runs.records import (
    NO_POINTS,
    PhotoRecord,
    RunSettings,
    file_times,
    judge_error,
    write_failure,
)

if TYPE_CHECKING:
    from diffusers_dedim.pipeline.output import FaceResult
    from diffusers_dedim.runs.people import People
    from diffusers_dedim.video.people import People as VideoPeople
    from diffusers_dedim.video.report import PersonReport, VideoReport

OnFrame = Callable[[PhotoJob, int, int | None], object]
"""Called after each frame of a video: the job, frames that are done, and how many there are where that is known."""


def may_be_animation(job: PhotoJob, record: PhotoRecord) -> bool:
    """Whether a file that was refused as a photo is an animation, which is protected as a video."""
    if record.status != "unreadable" or is_video(job.source):
        return False
    from diffusers_dedim.video.animation import is_animation  # Pillow, once it is needed

    return is_animation(job.source)


def protect_video_job(
    pipe: Any,
    job: PhotoJob,
    settings: RunSettings,
    out: Path,
    *,
    people: People | None = None,
    seen: VideoPeople | None = None,
    on_frame: OnFrame | None = None,
) -> PhotoRecord:
    """Protect a video of a run and write it, if it may be called protected; say so, or why not.

    Args:
        pipe: a `DeDiMPipeline`.
        job: where it comes from and goes to.
        settings: of the run.
        out: the output folder.
        people: whom the settings name (`find_people`).
        seen: who was seen in the run's earlier videos, and wears the same face in this one; None for nobody.
        on_frame: see `OnFrame`.
    """
    started = time.monotonic()
    try:
        digest, times = file_sha256(job.source), file_times(job.source, settings)
    except OSError as error:
        return PhotoRecord(job.name, "unreadable", f"cannot be opened ({error.strerror})")
    try:
        report, target = _protect(pipe, job, settings, people, seen, on_frame)
        if times is not None:
            os.utime(target, ns=times)
    except MemoryError:
        return PhotoRecord(job.name, "error", "the video does not fit into memory", source_sha256=digest)
    except Exception as error:
        if isinstance(error, OSError):
            return PhotoRecord(job.name, source_sha256=digest, **write_failure(error))
        status, reason = judge_error(error)
        reason = reason.removeprefix(f"{job.source}: ")
        return PhotoRecord(job.name, status, reason, source_sha256=digest)
    status, reason = ("protected", "") if target == job.target else ("not_protected", "a face still matches")
    return PhotoRecord(
        job.name,
        status,
        reason,
        target.relative_to(out).as_posix(),
        digest,
        file_sha256(target),
        tuple(map(_face, report.people)),
        (report.summary, *report.notes),
        round(time.monotonic() - started, 3),
    )


def _protect(
    pipe: Any,
    job: PhotoJob,
    settings: RunSettings,
    people: People | None,
    seen: VideoPeople | None,
    on_frame: OnFrame | None,
) -> tuple[VideoReport, Path]:
    """What happened, and where the file is."""
    from diffusers_dedim.video.protect import protect_video  # PyTorch, which a dry run does without

    def say(done: int, total: int | None) -> None:
        if on_frame is not None:
            on_frame(job, done, total)

    job.target.parent.mkdir(parents=True, exist_ok=True)
    target = job.partial_target if settings.allow_partial else job.target
    report = protect_video(
        pipe,
        job.source,
        target,
        crf=settings.crf,
        on_frame=say,
        allow_partial=settings.allow_partial,
        preset=settings.preset,
        threshold=settings.threshold,
        small_faces=settings.small_faces,
        fallback=_fallback(settings),
        select_faces=people and people.choice(pipe),
        seed=seed_of(settings.seed, job.name),
        people=seen,
    )
    if settings.allow_partial and not report.unprotected_frames:
        target = target.replace(job.target)
    return report, target


def _fallback(settings: RunSettings) -> str:
    """What covers a face that still matches: a single frame cannot be left out, and a whole video need not be."""
    return "blur" if settings.fallback == "leave-out" else settings.fallback


def seed_of(seed: int | None, name: str) -> int | None:
    """A video's own seed, from the run's and its name; without an album neither the others nor a resume change it.

    Example:
        >>> seed_of(None, "a.mp4") is None, seed_of(0, "a.mp4") == seed_of(0, "b.mp4")
        (True, False)
    """
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big")


def _face(person: PersonReport) -> FaceResult:
    """A person of a video as a face: the frame that matches best counts."""
    from diffusers_dedim.pipeline.output import FaceResult

    return FaceResult(
        image_index=0,
        box=person.box,
        landmarks=NO_POINTS,
        similarity_before=1.0,
        similarity=person.similarity,
        probability=(person.similarity + 1) / 2,
        rounds=person.rounds,
        unet_calls=person.unet_calls,
        reached_threshold=not person.left and person.below > 0,
        treatment=person.treatment,
        reason=f"in {person.covered} of {person.frames} frames" if person.covered else "",
    )
