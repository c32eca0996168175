"""Videos in, protected videos out: `protect_frames` for who reads frames, `protect_video` for files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.diffusion.guidance import autocast_as
from diffusers_dedim.errors import NoFaceError, NotProtectedError
from diffusers_dedim.faces.find import SmallFaces
from diffusers_dedim.faces.types import check_photo
from diffusers_dedim.pipeline.presets import DeDiMPreset, resolve_preset
from diffusers_dedim.pipeline.rescue import Choice
from diffusers_dedim.video.animation import AnimationReader, AnimationWriter, is_animation
from diffusers_dedim.video.frame_faces import FrameFace
from diffusers_dedim.video.people import People
from diffusers_dedim.video.reading import Frame, VideoReader
from diffusers_dedim.video.report import FrameTally, VideoReport
from diffusers_dedim.video.steady import SteadyFaces
from diffusers_dedim.video.tracks import FaceTracker
from diffusers_dedim.video.writing import DEFAULT_CRF, VideoWriter

Fallback = Literal["blur", "pixelate", "leave-out"]
FrameInput = Frame | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FrameResult:
    """A frame of a video, protected.

    Attributes:
        frame: as it came.
        pixels: uint8 RGB ``[H, W, 3]``.
        faces: what happened to each of its faces.
    """

    frame: Frame
    pixels: NDArray[np.uint8]
    faces: tuple[FrameFace, ...]

    @property
    def is_protected(self) -> bool:
        """Whether all faces that were found ended below the threshold or are covered; True where none was found."""
        return all(face.is_protected for face in self.faces)


def protect_frames(
    pipe: Any,
    frames: Iterable[FrameInput],
    *,
    preset: str | DeDiMPreset = "fast",
    threshold: float | None = None,
    small_faces: SmallFaces = "blur",
    fallback: Fallback = "blur",
    select_faces: Choice | None = None,
    detect_every: int = 5,
    seed: int | None = None,
    people: People | None = None,
) -> Iterator[FrameResult]:
    """Protect the faces of a video frame by frame, each person with one face from the first frame to the last.

    Results come ``detect_every`` frames late: what is found in a frame is followed back to where it came from.

    Args:
        pipe: a `DeDiMPipeline`.
        frames: uint8 RGB arrays ``[H, W, 3]`` of one size, upright, 25 a second; or `Frame`, which brings its time. May
            be endless.
        preset: "gentle", "fast", "strong", "paper" or a `DeDiMPreset`.
        threshold: h, which overrides the preset's.
        small_faces: a face under 40 px, covered or turned away is covered ("blur", "pixelate"); one under 40 px may be
            left as it is ("skip"), or an "error".
        fallback: one that does not come below h is covered ("blur", "pixelate") or left there ("leave-out").
        select_faces: says of each face that is detected whether it is to be protected, or a `PersonChoice`, which knows
            by the recogniser; None for all.
        detect_every: frames from one look of the detector to the next, at least 1.
        seed: makes the result repeatable; None draws one.
        people: who was seen in earlier videos, and gets who is seen in this one: each wears one changed face in all of
            them. None for this video alone.

    Yields:
        A `FrameResult` for each frame, in order.

    Raises:
        ValueError, TypeError: a setting or a frame is of the wrong type, shape or range.
        FaceTooSmallError: a face is under 40 px, with ``small_faces="error"``.

    Example:
        >>> for result in protect_frames(pipe, webcam):  # doctest: +SKIP
        ...     show(result.pixels)
    """
    settings = resolve_preset(preset, threshold=threshold)
    for name, value, known in (
        ("small_faces", small_faces, get_args(SmallFaces)),
        ("fallback", fallback, get_args(Fallback)),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}.")

    def quick(crops: Tensor) -> Tensor:
        """The recogniser in the denoiser's number type: half the time, for an error of a cosine below 0.01."""
        with autocast_as(pipe.unet, crops.device):
            embeddings: Tensor = pipe.face_encoder(crops)
        return embeddings.float()

    tracker = FaceTracker(
        pipe.face_detector,
        pipe.landmarker,
        quick,
        pipe.device,
        visibility=getattr(pipe, "visibility", None),
        every=detect_every,
        select_faces=select_faces,
        people=people,
    )
    steady = SteadyFaces(
        pipe.sampler,
        pipe.face_encoder,
        settings,
        device=pipe.device,
        quick=quick,
        small_faces=small_faces,
        fallback=fallback,
        seed=int(torch.randint(2**31, (1,))) if seed is None else seed,
    )
    return _protect(tracker, steady, frames)


def _protect(
    tracker: FaceTracker, steady: SteadyFaces, frames: Iterable[FrameInput]
) -> Iterator[FrameResult]:
    for stretch in tracker.follow(_as_frames(frames)):
        done = steady.protect_all([(frame.pixels, placed) for frame, placed in stretch])
        for (frame, _), (pixels, faces) in zip(stretch, done, strict=True):
            yield FrameResult(frame, pixels, tuple(faces))
    tracker.people.end_video()


def _as_frames(frames: Iterable[FrameInput]) -> Iterator[Frame]:
    """Frames of one size, with times."""
    shape = None
    for index, item in enumerate(frames):
        frame = item if isinstance(item, Frame) else Frame(item, Fraction(index, 25))
        check_photo(frame.pixels)
        frame = replace(
            frame, pixels=frame.pixels.copy()
        )  # a camera may read the next one into the same array
        if shape is not None and frame.pixels.shape != shape:
            raise ValueError(
                f"frames: expected all of the size of the first, {list(shape)}, got {list(frame.pixels.shape)} at "
                f"frame {index}; begin a new video there."
            )
        shape = frame.pixels.shape
        yield frame


def protect_video(
    pipe: Any,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    crf: int = DEFAULT_CRF,
    on_frame: Callable[[int, int | None], object] | None = None,
    allow_partial: bool = False,
    **settings: Any,
) -> VideoReport:
    """Protect a video file: same size, frame times and sound; the target is there when it is whole.

    Args:
        pipe: a `DeDiMPipeline`.
        source: a video that FFmpeg reads, or an animated GIF, WebP or PNG.
        target: where to: MP4, MOV or Matroska for a video, PNG or WebP for an animation, by the ending.
        crf: quality of H.264, 0 (without loss) to 51.
        on_frame: called after each frame with how many are done and how many there are, None where that is not known.
        allow_partial: write it even where a face stayed above the threshold.
        **settings: of `protect_frames`.

    Returns:
        What happened, in numbers.

    Raises:
        UnreadablePhotoError: the source is no video, or damaged.
        NoFaceError: no face was found in any frame; nothing is written.
        NotProtectedError: a face stayed above the threshold in a frame (``fallback="leave-out"``); nothing is written
            but with ``allow_partial``. Its ``report`` has the numbers.
        OSError: the target cannot be written; nothing is left behind.
        ImportError: PyAV is not installed.
        ValueError, TypeError: a setting is of the wrong type or range.

    Example:
        >>> report = protect_video(pipe, "clip.mp4", "protected.mp4")  # doctest: +SKIP
        >>> report.below_share  # doctest: +SKIP
        1.0
    """
    started = time.monotonic()
    if Path(target).exists() and Path(target).samefile(source):
        raise ValueError(f"target: expected another file than the source, got {target} for both.")
    animated = is_animation(source)
    with AnimationReader(source) if animated else VideoReader(source) as clip:
        tally = FrameTally()
        writer: Any = (
            AnimationWriter(target, clip)
            if isinstance(clip, AnimationReader)
            else VideoWriter(target, clip, crf)
        )
        with writer:
            frames = clip.frames(writer.add_sound) if isinstance(clip, VideoReader) else clip.frames()
            for result in protect_frames(pipe, frames, **settings):
                writer.add(result.pixels, result.frame)
                tally.add(result.faces)
                if on_frame is not None:
                    on_frame(tally.frames, clip.expected_frames)
            report = tally.report(tuple(clip.notes), time.monotonic() - started)
            _refuse(Path(source), report, allow_partial)
    return report


def _refuse(source: Path, report: VideoReport, allow_partial: bool) -> None:
    """Raise where the video may not be called protected: then it is not written."""
    if not report.face_frames:
        raise NoFaceError(f"{source}: no face was found in {report.frames} frames, so nothing was protected.")
    if report.unprotected_frames and not allow_partial:
        error = NotProtectedError(
            f"{source}: in {report.unprotected_frames} of {report.frames} frames a face still matches; "
            "fallback='blur' covers such faces."
        )
        error.report = report  # type: ignore[attr-defined]
        raise error
