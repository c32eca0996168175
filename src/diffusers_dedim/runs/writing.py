"""Pack a protected photo as finely as asked, or finer where that would bring a face back; its scores are the file's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_dedim.images.coding import Options, coding_steps
from diffusers_dedim.images.files import MAX_PIXELS, Photo, decode_photo, encode_photo
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.runs.records import LoadedPhoto, PhotoRecord, RunSettings, record_result

if TYPE_CHECKING:
    from diffusers_dedim.pipeline.output import FaceResult
    from diffusers_dedim.pipeline.photos import StreamResult

NOTE_FINER = "is packed more finely than asked, because as asked it would show a face again"

Scores = Callable[[PixelArray], Sequence["FaceResult"]]
"""Pixels of a photo, as they were read back -> the records of its faces."""


def pack_result(
    result: StreamResult, settings: RunSettings, seconds: float, pipe: Any
) -> tuple[PhotoRecord, Path | None, bytes]:
    """The record of a photo, where it is to be written, if anywhere, and its file.

    What is measured is the file: packing with loss may give a face back some of what was taken. Then it is packed more
    finely, in steps, and what no step keeps below the threshold is not called protected.

    Args:
        result: of the photo, whose owner is a `LoadedPhoto`.
        settings: of the run.
        seconds: time spent on it.
        pipe: a `DeDiMPipeline`; its recogniser measures.

    Raises:
        OSError, MemoryError, ValueError: the photo cannot be packed.
    """
    record, target = record_result(result, settings, seconds)
    if target is None:
        return record, None, b""
    item: LoadedPhoto = result.photo.owner

    def score(pixels: PixelArray) -> Sequence[FaceResult]:
        return score_pixels(result, pixels, settings, pipe)

    data, faces, finer = _pack(item.photo, result, settings, score)
    record, target = record_result(replace(result, faces=tuple(faces)), settings, seconds)
    notes = (*record.notes, NOTE_FINER) if finer else record.notes
    return replace(record, notes=notes), target, data if target is not None else b""


def score_pixels(
    result: StreamResult, pixels: PixelArray, settings: RunSettings, pipe: Any
) -> tuple[FaceResult, ...]:
    """The records of a photo's faces with the scores of these pixels, by the recogniser and alignment of the run's.

    Args:
        result: of the photo.
        pixels: uint8 RGB ``[H, W, 3]``.
        settings: whose threshold counts.
        pipe: as for `pack_result`.
    """
    import torch

    from diffusers_dedim.pipeline.output import measure_faces
    from diffusers_dedim.pipeline.presets import resolve_preset

    if not result.aligned:
        return result.faces
    with torch.no_grad():
        measured = measure_faces(
            [pixels],
            [(0, aligned) for aligned in result.aligned],
            torch.stack([aligned.crop for aligned in result.aligned]).to(pipe.device),
            torch.zeros(len(result.aligned), 1, 2),  # where the landmarks are is known
            pipe.face_encoder,
            rounds=[face.rounds for face in result.faces],
            unet_calls=[face.unet_calls for face in result.faces],
            threshold=resolve_preset(settings.preset, threshold=settings.threshold).threshold,
            batch_size=_FACES_AT_A_TIME,
        )
    return tuple(
        replace(
            face,
            similarity=new.similarity,
            probability=new.probability,
            reached_threshold=new.reached_threshold,
        )
        for face, new in zip(result.faces, measured, strict=True)
    )


_FACES_AT_A_TIME = 16


def pack_finest(photo: Photo, settings: RunSettings) -> Callable[[PixelArray], PixelArray] | None:
    """What becomes of a photo's pixels in the finest file that `pack_result` would make of them.

    Args:
        photo: as it was read.
        settings: of the run.

    Returns:
        Pixels uint8 ``[H, W, 3]`` -> the same shape; None where that file loses nothing.
    """
    finest = coding_steps(photo.format, photo.coding, settings.quality)[-1]
    if not _loses(finest):
        return None

    def packed(pixels: PixelArray) -> PixelArray:
        return _read_back(photo, encode_photo(photo, pixels, coding=finest))

    return packed


def _read_back(photo: Photo, data: bytes) -> PixelArray:
    pixels: PixelArray = decode_photo(data, max(MAX_PIXELS, photo.pixels.size)).pixels
    return pixels


def _pack(
    photo: Photo, result: StreamResult, settings: RunSettings, score: Scores
) -> tuple[bytes, Sequence[FaceResult], bool]:
    """The file, its scores, and whether it had to be finer than asked."""
    first, *finer = coding_steps(photo.format, photo.coding, settings.quality)
    data, faces = _try(photo, result, settings, first, score)
    tried = 0
    while _gave_back(result.faces, faces) and tried < len(finer):
        data, faces = _try(photo, result, settings, finer[tried], score)
        tried += 1
    return data, faces, tried > 0


def _try(
    photo: Photo, result: StreamResult, settings: RunSettings, step: Options, score: Scores
) -> tuple[bytes, Sequence[FaceResult]]:
    data = encode_photo(photo, result.pixels, settings.keep_metadata, step)
    if not _loses(step):
        return data, result.faces
    return data, score(_read_back(photo, data))


def _gave_back(before: Sequence[FaceResult], after: Sequence[FaceResult]) -> bool:
    return any(old.is_protected and not new.is_protected for old, new in zip(before, after, strict=True))


def _loses(step: Options) -> bool:
    """Whether pixels are not exactly those that were put in."""
    return "qtables" in step or "quality" in step
