"""Protect folders of photos: reading and writing beside the networks, and a manifest to go on after a kill."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusers_dedim.atomic import sha256
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.faces import MIN_FACE_SIZE
from diffusers_dedim.images.files import decode_photo, save_photo
from diffusers_dedim.images.modes import as_written
from diffusers_dedim.pipeline.engine import StreamPhoto, StreamResult
from diffusers_dedim.pipeline.inputs import generators
from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline
from diffusers_dedim.prefetch import map_ahead
from diffusers_dedim.runs.jobs import REFUSED_SUFFIXES, PhotoJob, RunError, plan_jobs, remove_temporaries
from diffusers_dedim.runs.manifest import (
    MANIFEST_NAME,
    MOST_DEATHS,
    UNDER_WAY_NAME,
    Manifest,
    UnderWay,
    lock_folder,
    names_under_way,
    notes_of_replaced,
    open_manifest,
    refuse_foreign,
    remove_results,
    still_holds,
    without_results,
)
from diffusers_dedim.runs.records import (
    LoadedPhoto,
    Outcome,
    PhotoRecord,
    ProtectedPhoto,
    RunResult,
    RunSettings,
    face_record,
    record_outcome,
    write_failure,
)

# Most raw formats are built as TIFF is, with a small picture first, which would be taken for the photo.
_PREVIEW = (
    "raw photos are not supported: only a preview in it can be read; convert it to JPEG, PNG or TIFF first"
)

Pipeline = Callable[..., Any]
"""A ``DeDiMPipeline`` or anything that is called and answers like one."""


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


# Faces that go through the networks together, halved when memory runs out: a processor gains nothing by more, and
# small batches leave most of an accelerator idle.
PROCESSOR_BATCH, ACCELERATOR_BATCH = 4, 64


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
    stream = pipe.stream(
        (_stream_photo(item, settings.seed) for item in photos),
        preset=settings.preset,
        threshold=settings.threshold,
        max_rounds=settings.max_rounds,
        small_faces=settings.small_faces,
        batch_size=slots,
    )
    last = time.monotonic()
    for result in stream:
        if isinstance(result, PhotoRecord):
            yield result
            continue
        now = time.monotonic()
        outcome: Outcome = result.error or (result.pixels, tuple(map(face_record, result.faces)))
        item = _note_small(result.photo.owner, result)
        yield ProtectedPhoto(item, outcome, now - last)  # photos overlap: the time since the one before
        last = now


def _stream_photo(item: LoadedPhoto | PhotoRecord, seed: int | None) -> StreamPhoto | PhotoRecord:
    if isinstance(item, PhotoRecord):
        return item
    own = generators(seed, [item.job.name])
    return StreamPhoto(item, item.photo.pixels, own[0] if own else None, item.faces, grey=item.photo.grey)


def _note_small(item: LoadedPhoto, result: StreamResult) -> LoadedPhoto:
    """Write down that faces were too small and left as they are."""
    small = len(result.small_faces)
    if not small:
        return item
    note = f"{small} of {small + len(result.faces)} faces are smaller than {MIN_FACE_SIZE} px and were left UNPROTECTED"
    return replace(item, photo=replace(item.photo, notes=(*item.photo.notes, note)))


_PHOTOS_AHEAD = 4  # read before, and written after, the networks have them; each is held in memory

_DEADLY = (
    f"{MOST_DEATHS} runs died while it was under way, all but the first with it alone; to have it tried again, remove "
    f"{UNDER_WAY_NAME} from the output folder"
)


class FolderRun:
    """A run over files and folders, checked but not begun; :meth:`execute` does the work.

    Args:
        inputs: files and folders, see :func:`~diffusers_dedim.runs.jobs.plan_jobs`.
        out: output folder; missing or empty unless one of the next two is set.
        settings: what decides the result.
        resume: go on with the run whose manifest is in ``out``. What was written, and photos
            without a protectable face, are not done again unless the input or output file has changed.
        overwrite: begin anew in a folder with the results of a run, which are replaced. Neither this nor ``resume``
            replaces a file that no run has written.

    Raises:
        RunError: the inputs or the folder do not allow the run; nothing has been written.

    Example:
        >>> run = FolderRun(["holiday"], "protected", RunSettings())  # doctest: +SKIP
        >>> result = run.execute(DeDiMPipeline.from_pretrained())  # doctest: +SKIP
        >>> [record.reason for record in result.failures]  # doctest: +SKIP
        []
    """

    def __init__(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        settings: RunSettings | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out)
        self.settings = settings or RunSettings()
        self.plan = plan_jobs(inputs, self.out)
        self._manifest = open_manifest(self.out, asdict(self.settings), resume=resume, overwrite=overwrite)
        self._stamp = _stamp(self.out)
        known: Mapping[str, PhotoRecord] = self._manifest.records if self._manifest else {}
        self.finished = {
            job.name: known[job.name]
            for job in self.plan.jobs
            if job.name in known and still_holds(known[job.name], job, self.out)
        }
        self.pending = tuple(job for job in self.plan.jobs if job.name not in self.finished)
        self._earlier = {job.name: known[job.name] for job in self.pending if job.name in known}
        under_way = names_under_way(self.out)
        new = (job for job in self.pending if job.name not in under_way)
        refuse_foreign((path for job in new for path in _targets(job)), self.out)

    def execute(
        self,
        pipe: Pipeline,
        *,
        batch_size: int | None = None,
        on_done: Callable[[PhotoRecord], None] | None = None,
    ) -> RunResult:
        """Protect the pending photos; a photo that fails is recorded and the run goes on.

        A run that is killed, or that a photo kills, leaves behind which photos were under way. With ``resume`` they are
        done first, each alone, so that a photo that kills the next runs too is known: after four it is recorded as
        failed and left out. Kills from outside may so be put down to a photo that was alone each time; the reason in
        its record allows for that.

        Args:
            pipe: the pipeline.
            batch_size: faces that go through the networks together, at least 1; None for a number that suits
                the device.
            on_done: called after each photo is on disk and recorded.

        Raises:
            RunError: the output folder cannot be written, or another run is writing or has written to it.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        started = time.monotonic()
        records = dict(self.finished)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with lock_folder(self.out), closing(self._protect(pipe, batch_size)) as finished:
                for record in finished:
                    records[record.name] = record
                    if on_done is not None:
                        on_done(record)
        except OSError as error:
            raise RunError(f"{self.out}: cannot be written ({error.strerror or error})") from error
        jobs = self.plan.jobs
        return RunResult(
            self.out,
            self.settings,
            jobs,
            tuple(records[job.name] for job in jobs),
            len(self.finished),
            self.plan.other_files,
            time.monotonic() - started,
            (*(self._manifest.notes if self._manifest else ()), *notes_of_replaced(self._earlier, records)),
        )

    def _protect(self, pipe: Pipeline, batch_size: int | None) -> Generator[PhotoRecord, None, None]:
        """Yield each photo's record once it is in the manifest, and the photo's file, if any, on disk."""
        if _stamp(self.out) != self._stamp:
            raise RunError(f"{self.out}: another run has written to it in the meantime; go on with --resume")
        settled = frozenset(self.finished) if self._manifest else None
        remove_temporaries(self.out)
        manifest = self._manifest = self._manifest or Manifest.start(self.out, asdict(self.settings))
        try:
            with (
                closing(UnderWay(self.out, settled)) as under_way,
                closing(self._protect_pending(pipe, batch_size, under_way, manifest)) as finished,
            ):
                yield from finished
        finally:
            self._stamp = _stamp(self.out)

    def _protect_pending(
        self, pipe: Pipeline, batch_size: int | None, under_way: UnderWay, manifest: Manifest
    ) -> Generator[PhotoRecord, None, None]:
        """Yield the records of all photos, those first that earlier runs may have died of."""

        def settle(done: ProtectedPhoto | PhotoRecord) -> PhotoRecord:
            # in the writer's thread, the only one that settles anything while it lives: a stop or a kill during the
            # next photo, which may take minutes, neither has this one done again nor blames it
            record = self._finish(done)
            try:
                manifest.append([record])
            except OSError:  # a file without a record is somebody else's to the next run
                remove_results([self.out / record.output] if record.output else [])
                raise
            under_way.end(record.name)
            return record

        deaths = {job.name: under_way.deaths[job.name] for job in self.pending}
        for job in self.pending:
            if deaths[job.name] >= MOST_DEATHS:
                yield settle(without_results(PhotoRecord(job.name, "error", _DEADLY), _targets(job)))
        for job in self.pending:
            if 0 < deaths[job.name] < MOST_DEATHS:
                yield from self._protect_jobs(pipe, [job], batch_size, under_way, settle)
        others = [job for job in self.pending if not deaths[job.name]]
        yield from self._protect_jobs(pipe, others, batch_size, under_way, settle)

    def _protect_jobs(
        self,
        pipe: Pipeline,
        jobs: Sequence[PhotoJob],
        batch_size: int | None,
        under_way: UnderWay,
        settle: Callable[[ProtectedPhoto | PhotoRecord], PhotoRecord],
    ) -> Generator[PhotoRecord, None, None]:
        """Yield a record for each photo once it is settled; memory is flat in their number."""
        loaded = map_ahead(partial(self._load, under_way), jobs, threads=2, ahead=_PHOTOS_AHEAD)
        protected = protect_photos(pipe, loaded, self.settings, batch_size)
        yield from map_ahead(settle, protected, threads=1, ahead=_PHOTOS_AHEAD)

    def _load(self, under_way: UnderWay, job: PhotoJob) -> LoadedPhoto | PhotoRecord:
        under_way.begin(job.name)
        item = load_photo(job)
        return without_results(item, _targets(job)) if isinstance(item, PhotoRecord) else item

    def _finish(self, done: ProtectedPhoto | PhotoRecord) -> PhotoRecord:
        """Write the photo if all its faces are protected, and say so or say why not."""
        if isinstance(done, PhotoRecord):
            return done
        record, target = record_outcome(done, self.settings)
        job, photo, outcome = done.item.job, done.item.photo, done.outcome
        try:
            remove_results(path for path in _targets(job) if path != target)
            if target is None or isinstance(outcome, Exception):
                return record
            target.parent.mkdir(parents=True, exist_ok=True)
            data = save_photo(photo, outcome[0], target, self.settings.keep_metadata)
        except Exception as error:
            return without_results(write_failure(record, error), _targets(job))
        output = target.relative_to(self.out).as_posix()
        return replace(record, output=output, output_sha256=sha256(data))


def _targets(job: PhotoJob) -> tuple[Path, Path]:
    """Where a result of the job may be; what an earlier run has left there would pass for this one's."""
    return job.target, job.partial_target


def _stamp(out: Path) -> tuple[int, int] | None:
    """Tells whether the manifest in a folder has changed."""
    try:
        status = (out / MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
