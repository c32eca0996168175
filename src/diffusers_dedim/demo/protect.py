"""Protect the chosen faces of an opened photo, and judge the very file that is offered."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusers_dedim.demo.photos import OpenedPhoto, largest
from diffusers_dedim.demo.queue import STOPPED, StoppedError
from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces, load_recogniser
from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces import Face
from diffusers_dedim.images.files import Photo, decode_photo, encode_photo
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.output import FaceResult
from diffusers_dedim.pipeline.presets import resolve_preset
from diffusers_dedim.runs.records import judge

GUIDE_NAME = "guide"
_FACENET_FILES = ("20180402-114759-vggface2.pt", "20180408-102900-casia-webface.pt")


@dataclass(frozen=True)
class ScoreScale:
    """How to read a recogniser's cosine.

    Attributes:
        strangers: median cosine of two photos of different people.
        line: cosine that one in a thousand pairs of different people reach; above it, the recogniser would take
            two faces for the same person.
    """

    strangers: float
    line: float


# python -m benchmarks.score_lines: the 1,000 gallery photos of LFW, one a person, all pairs.
# By fingerprint: other weights have other scales, and without a measured one the page draws no line.
SCALES = {
    # the bundled guides, by the one that matches best
    "b2295b47ae388f362a4f7f5bd092e085a0b7322b199fb9142dc1a81af848c12a": ScoreScale(0.039, 0.367),
    "451b8db9f59cac8a991252adf32ba5a06898bd6ecf5ec5b3843c0a1d78cb3360": ScoreScale(0.835, 0.927),  # dlib
}


@dataclass(frozen=True)
class Score:
    """Cosines of one face by one recogniser; by that of several guides which matches best.

    Attributes:
        recogniser: `GUIDE_NAME`, or the name of the unseen one.
        against: "itself" (the face in the photo as it was) or "other" (the face in the second photo).
        before, after: cosine in [-1, 1] of the photo as it was and of the file that is offered.
        scale: how to read them, or None where it was not measured.
    """

    recogniser: str
    against: str
    before: float
    after: float
    scale: ScoreScale | None

    @property
    def still_matches(self) -> bool | None:
        """Whether the score after lies on or above the line; None without a line."""
        return None if self.scale is None else self.after >= self.scale.line


def load_unseen() -> Recogniser | None:
    """A recogniser that has no part in the change: dlib, else facenet-pytorch's if its weights lie in the cache.

    Nothing is downloaded. None where neither is installed; the page then says so.
    """
    try:
        return load_recogniser("dlib")
    except ImportError:
        pass
    for file in _FACENET_FILES:
        path = _torch_home() / "checkpoints" / file
        if path.is_file():
            return load_recogniser(f"facenet={path}")
    return None


def face_scores(
    recognisers: Sequence[Recogniser],
    before: PixelArray,
    after: PixelArray,
    faces: Sequence[Face],
    other: OpenedPhoto | None = None,
) -> list[list[Score]]:
    """Score each face with each recogniser.

    Args:
        recognisers: the guiding one first.
        before, after: the photo as it was and as it is offered, uint8 RGB ``[H, W, 3]``.
        faces: the faces, found in ``before``; the changed ones are framed by the same points.
        other: a second photo. Its largest face is compared with that face which the first recogniser finds most
            like it in ``before``; the others get no such score.

    Returns:
        For each face its scores, recogniser by recogniser, "itself" before "other".
    """
    table: list[list[Score]] = [[] for _ in faces]
    partner: int | None = None
    other_pixels = None if other is None else decode_photo(other.data).pixels
    for recogniser in recognisers:
        scale = SCALES.get(recogniser.fingerprint)
        count = len(faces)
        old = embed_faces(recogniser.encoder, [before] * count, faces)
        new = embed_faces(recogniser.encoder, [after] * count, faces)
        for index in range(count):
            scores = _cosine(old[index], old[index]), _cosine(new[index], old[index])
            table[index].append(Score(recogniser.name, "itself", *scores, scale))
        if other is None or other_pixels is None:
            continue
        second = embed_faces(recogniser.encoder, [other_pixels], [largest(other.faces)])[0]
        if partner is None:
            partner = max(range(count), key=lambda index: _cosine(old[index], second))
        scores = _cosine(old[partner], second), _cosine(new[partner], second)
        table[partner].append(Score(recogniser.name, "other", *scores, scale))
    return table


def _cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Of unit vectors ``[D]``; of ``[K, D]``, those of several guides, by the one that matches best."""
    return float((first * second).sum(-1).max())


def _torch_home() -> Path:
    module = import_extra("facenet_pytorch.models.inception_resnet_v1", "the unseen recogniser")
    return Path(module.get_torch_home())


STRENGTHS = {"gentler": "gentle", "standard": "fast", "stronger": "strong", "paper": "paper"}
"""The pipeline's preset for each strength; the last one, the paper's setting, takes many minutes a face."""

PipelineCall = Callable[..., Any]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ProtectedPhoto:
    """What came out.

    Attributes:
        photo: as it was.
        pixels: uint8 RGB ``[H, W, 3]``, decoded again from ``data``: what is shown and scored is what is kept.
        data: the file, same format and size as the photo, without metadata.
        chosen: indices of the faces that were to be changed.
        left_out: indices of all other faces of the photo; they are unchanged.
        reached: for each chosen face whether its score fell below the threshold, in the file, or it is covered.
        treatments: for each chosen face what was done to it (`FaceResult.treatment`).
        reasons: for each chosen face why it was not simply changed, in a few words; empty where it was.
        scores: for each chosen face what the recognisers say.
        threshold: cosine to the original below which a face counts as done.
        is_protected: whether the file may be handed out as protected.
        reason: why not; empty where it may.
        seconds: how long the pipeline took.
    """

    photo: Photo
    pixels: PixelArray
    data: bytes
    chosen: tuple[int, ...]
    left_out: tuple[int, ...]
    reached: tuple[bool, ...]
    treatments: tuple[str, ...]
    reasons: tuple[str, ...]
    scores: tuple[tuple[Score, ...], ...]
    threshold: float
    is_protected: bool
    reason: str
    seconds: float


class StepWatcher:
    """A step callback that reports progress and ends the run on request or after ``max_seconds``.

    Args:
        report: called with the share of the work done at most, in [0, 1], and words.
        stop: ends the run once it is set.
        steps, max_rounds: of the preset.
        max_seconds: longest run; None for no limit.
    """

    def __init__(
        self, report: Progress, stop: threading.Event, steps: int, max_rounds: int, max_seconds: float | None
    ) -> None:
        self._report, self._stop, self._max_seconds = report, stop, max_seconds
        self._steps, self._max_rounds = steps, max_rounds
        self._start, self._round = time.monotonic(), 0

    def __call__(
        self, pipeline: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Called by the sampler after every step."""
        if self._stop.is_set():
            raise StoppedError(STOPPED)
        if self._max_seconds is not None and time.monotonic() - self._start > self._max_seconds:
            raise StoppedError(
                f"Stopped after {self._max_seconds:.0f} seconds, the longest this page computes for one photo; "
                "it was not protected. Choose fewer people, or “Gentler”."
            )
        self._round += step_index == 0
        done = (self._round - 1) * self._steps + step_index + 1
        share = min(done / (self._steps * self._max_rounds), 0.99)
        self._report(share, f"Round {self._round} of at most {self._max_rounds}; most photos need fewer")
        return tensors


@dataclass(frozen=True)
class Protector:
    """The pipeline and the recognisers that judge its work.

    Attributes:
        pipe: a `DeDiMPipeline`, or what is called and answers like one.
        unseen: a recogniser without a part in the change, or None.
        max_seconds: longest run, or None.
        wrap: put around the call of the pipeline, e.g. ``spaces.GPU`` of ZeroGPU. What it wraps runs in
            another process, so progress, stopping and ``max_seconds`` are not available then.
    """

    pipe: Any
    unseen: Recogniser | None = None
    max_seconds: float | None = None
    wrap: Callable[[PipelineCall], PipelineCall] | None = None
    _call: PipelineCall = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # once, at the start: ZeroGPU wants to know its functions before the first request
        call = self._call_pipeline if self.wrap is None else self.wrap(self._call_pipeline)
        object.__setattr__(self, "_call", call)

    def __call__(
        self,
        opened: OpenedPhoto,
        chosen: Sequence[int],
        strength: str,
        *,
        other: OpenedPhoto | None = None,
        report: Progress = lambda share, words: None,
        stop: threading.Event | None = None,
        album: Album | None = None,
    ) -> ProtectedPhoto:
        """Protect the chosen faces.

        Args:
            opened: the photo and its faces.
            chosen: indices of the faces to protect, at least one.
            strength: a name of `STRENGTHS`.
            other: another photo of the same person, for the scores.
            report: gets the progress.
            stop: ends the run once it is set.
            album: what is protected of the same people already, to be told apart from; not where the call is wrapped:
                what another process notes is lost.

        Raises:
            ValueError: an argument is out of range; `StoppedError`: stopped; otherwise as `DeDiMPipeline`.
        """
        chosen = _check_chosen(opened, chosen)
        if strength not in list(STRENGTHS):  # a program may send what has no hash
            raise ValueError(f"strength: expected one of {list(STRENGTHS)}, got {strength!r}.")
        settings = resolve_preset(STRENGTHS[strength])
        most_rounds = settings.max_rounds * (1 + settings.retries)
        watcher = StepWatcher(
            report, stop or threading.Event(), settings.num_inference_steps, most_rounds, self.max_seconds
        )
        known = {} if album is None or self.wrap is not None else {"album": album}
        photo = decode_photo(opened.data)
        start = time.monotonic()
        image, results = self._call(
            photo.pixels,
            [opened.faces[index] for index in chosen],
            watcher if self.wrap is None else None,
            {"preset": STRENGTHS[strength], **known},
        )
        seconds = time.monotonic() - start
        report(0.99, "Scoring the result")
        return self._judge(opened, photo, chosen, image, results, settings.threshold, other, seconds)

    def _judge(
        self,
        opened: OpenedPhoto,
        photo: Photo,
        chosen: Sequence[int],
        image: PixelArray,
        results: Sequence[FaceResult],
        threshold: float,
        other: OpenedPhoto | None,
        seconds: float,
    ) -> ProtectedPhoto:
        """Write the file, and score what is in it."""
        data = encode_photo(photo, image)
        pixels = decode_photo(data).pixels
        guide = Recogniser.of(GUIDE_NAME, self.pipe.face_encoder)
        recognisers = [guide] if self.unseen is None else [guide, self.unseen]
        faces = [opened.faces[index] for index in chosen]
        scores = face_scores(recognisers, photo.pixels, pixels, faces, other)
        records = [
            replace(result, similarity=rows[0].after, reached_threshold=_below(rows, result, threshold))
            for result, rows in zip(results, scores, strict=True)
        ]
        status, reason = judge(photo, pixels, records)
        return ProtectedPhoto(
            photo=photo,
            pixels=pixels,
            data=data,
            chosen=tuple(chosen),
            left_out=tuple(index for index in opened.everybody if index not in chosen),
            reached=tuple(record.is_protected for record in records),
            treatments=tuple(record.treatment for record in records),
            reasons=tuple(record.reason for record in records),
            scores=tuple(map(tuple, scores)),
            threshold=2 * threshold - 1,
            is_protected=status == "protected",
            reason=reason,
            seconds=seconds,
        )

    def _call_pipeline(
        self,
        pixels: PixelArray,
        faces: Sequence[Face],
        callback: StepWatcher | None,
        settings: dict[str, Any],
    ) -> tuple[PixelArray, list[FaceResult]]:
        """The part that a GPU may be lent for: what goes in and out can be pickled."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a face above the threshold is said on the page
            out = self.pipe(
                [Image.fromarray(pixels)],
                small_faces="blur",
                fallback="blur",
                faces=list(faces),
                callback_on_step_end=callback,
                output_type="pil",
                **settings,
            )
        return np.asarray(out.images[0].convert("RGB")), list(out.faces)


def _check_chosen(opened: OpenedPhoto, chosen: Sequence[int]) -> list[int]:
    known = opened.everybody
    if not chosen:
        raise ValueError("Choose at least one face.")
    wrong = sorted(set(chosen) - set(known))
    if wrong:
        allowed = ", ".join(str(index + 1) for index in known)
        raise ValueError(f"Face {wrong[0] + 1} cannot be chosen; in this photo these can: {allowed}.")
    return sorted(set(chosen))


def _below(scores: Sequence[Score], result: FaceResult, threshold: float) -> bool:
    """Both the pipeline and the score of the written file must say so: saving may give some of it back."""
    return bool(result.reached_threshold) and (scores[0].after + 1) / 2 < threshold
