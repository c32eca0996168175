"""How a run feeds a `DeDiMPipeline`: face by face, without waiting for the slowest of a batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.faces import MIN_FACE_SIZE, Face
from diffusers_dedim.manifest import PhotoRecord
from diffusers_dedim.photo_stream import StreamPhoto, protect_stream
from diffusers_dedim.pipeline_dedim import DeDiMPipeline
from diffusers_dedim.presets import resolve_preset
from diffusers_dedim.run_batch import (
    LoadedPhoto,
    Outcome,
    Pipeline,
    ProtectedPhoto,
    RunSettings,
    face_record,
    generators,
    protect_batches,
)

# Faces that go through the networks together, halved when memory runs out: a processor gains nothing by more, and
# small batches leave most of an accelerator idle.
PROCESSOR_BATCH, ACCELERATOR_BATCH = 4, 64

_NO_PIXELS = np.empty((0, 0, 3), dtype=np.uint8)


def protect_photos(
    pipe: Pipeline,
    photos: Iterator[LoadedPhoto | PhotoRecord],
    settings: RunSettings,
    batch_size: int | None = None,
) -> Iterator[ProtectedPhoto | PhotoRecord]:
    """Protect photos as they come, in the order in which they are done.

    Args:
        pipe: a `DeDiMPipeline` is fed face by face; anything else is called for batches of photos.
        photos: taken when there is room for them; records of those that could not be loaded are passed on.
        settings: of the run.
        batch_size: faces (or photos of a batch) that go through the networks together; None for a number that
            suits the device.
    """
    if isinstance(pipe, DeDiMPipeline):
        slots = batch_size or (PROCESSOR_BATCH if pipe.device.type == "cpu" else ACCELERATOR_BATCH)
        return _stream(pipe, photos, settings, slots)
    return protect_batches(pipe, photos, settings, batch_size or PROCESSOR_BATCH)


def _stream(
    pipe: DeDiMPipeline, photos: Iterator[LoadedPhoto | PhotoRecord], settings: RunSettings, slots: int
) -> Iterator[ProtectedPhoto | PhotoRecord]:
    preset = resolve_preset(settings.preset, threshold=settings.threshold, max_rounds=settings.max_rounds)
    last = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a face that was left as it is; see _call in run_batch
        stream = protect_stream(
            pipe, (_stream_photo(item, settings.seed) for item in photos), preset,
            small_faces=settings.small_faces, slots=slots,
        )  # fmt: skip
        for result in stream:
            item, now = result.photo.owner, time.monotonic()
            if isinstance(item, PhotoRecord):
                yield item
                continue
            outcome: Outcome = result.error or (result.pixels, tuple(map(face_record, result.faces)))
            item = _note_small(item, result.photo.faces)
            yield ProtectedPhoto(item, outcome, now - last)  # photos overlap: the time since the one before
            last = now


def _stream_photo(item: LoadedPhoto | PhotoRecord, seed: int | None) -> StreamPhoto:
    if isinstance(item, PhotoRecord):
        return StreamPhoto(item, _NO_PIXELS, error=UnreadablePhotoError(item.reason))
    own = generators(seed, [item.job.name])
    return StreamPhoto(item, item.photo.pixels, own[0] if own else None, item.faces, grey=item.photo.grey)


def _note_small(item: LoadedPhoto, found: Sequence[Face] | None) -> LoadedPhoto:
    """Write down that faces were too small, for nobody sees the warning in a run."""
    small = sum(face.size < MIN_FACE_SIZE for face in found or ())
    if not small:
        return item
    note = (
        f"{small} of {len(found or ())} faces are smaller than {MIN_FACE_SIZE} px and were left UNPROTECTED"
    )
    return replace(item, photo=replace(item.photo, notes=(*item.photo.notes, note)))
