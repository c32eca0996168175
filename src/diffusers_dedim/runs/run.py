"""Protect folders of photos: reading and writing beside the networks, and a manifest to go on after a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers_dedim.atomic import sha256, write_atomic
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.inputs import generators
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult
from diffusers_dedim.prefetch import map_ahead
from diffusers_dedim.runs.albums import AlbumKeeper
from diffusers_dedim.runs.jobs import JobPlan, PhotoJob, RunError, is_video, plan_jobs, remove_temporaries
from diffusers_dedim.runs.manifest import (
    MANIFEST_NAME,
    MOST_DEATHS,
    Manifest,
    lock_folder,
    names_under_way,
    notes_of_changed,
    notes_of_replaced,
    open_manifest,
    refuse_foreign,
    remove_results,
    still_holds,
    without_results,
)
from diffusers_dedim.runs.people import People, find_people
from diffusers_dedim.runs.records import (
    LoadedPhoto,
    PhotoRecord,
    RunResult,
    RunSettings,
    load_photo,
    write_failure,
)
from diffusers_dedim.runs.videos import OnFrame, may_be_animation, protect_video_job
from diffusers_dedim.runs.writing import pack_finest, pack_result

Pipeline = Any
"""A `DeDiMPipeline`, or what has a ``device`` and a ``stream`` like one."""

# Faces that go through the networks together, halved when memory runs out: a processor gains nothing by more, and
# small batches leave most of an accelerator idle.
PROCESSOR_BATCH, ACCELERATOR_BATCH = 4, 64

Done = tuple[StreamResult | PhotoRecord, float]
"""What became of a photo, and the seconds that it took."""


def protect_photos(
    pipe: Pipeline,
    photos: Iterable[LoadedPhoto | PhotoRecord],
    settings: RunSettings,
    batch_size: int | None = None,
    people: People | None = None,
    album: Album | None = None,
) -> Iterator[Done]:
    """Protect photos as they come, in the order in which they are done.

    Args:
        pipe: a `DeDiMPipeline`, or what has a `device` and streams like one.
        photos: taken when there is room for them; records of those that could not be loaded are passed on.
        settings: of the run.
        batch_size: faces that go through the networks together; None for a number that suits the device.
        people: whom the settings name (`find_people`).
        album: what is protected of each person already; gets what is protected here. None for none.

    Returns:
        Results whose photo's owner is the loaded one, and the records, each with the seconds since the one before:
        photos overlap.
    """
    slots = batch_size or (PROCESSOR_BATCH if pipe.device.type == "cpu" else ACCELERATOR_BATCH)
    stream = pipe.stream(
        (_stream_photo(item, settings) for item in photos),
        preset=settings.preset,
        threshold=settings.threshold,
        max_rounds=settings.max_rounds,
        small_faces=settings.small_faces,
        fallback=settings.fallback,
        select_faces=people and people.choice(pipe),
        album=album,
        batch_size=slots,
    )
    last = time.monotonic()
    for result in stream:
        if isinstance(result, PhotoRecord):
            yield result, result.seconds
        else:
            now = time.monotonic()
            yield result, now - last
            last = now


def _stream_photo(item: LoadedPhoto | PhotoRecord, settings: RunSettings) -> StreamPhoto | PhotoRecord:
    if isinstance(item, PhotoRecord):
        return item
    photo, own = item.photo, generators(settings.seed, [item.job.name])
    packed = pack_finest(photo, settings)
    return StreamPhoto(
        item, photo.pixels, own[0] if own else None, item.faces, grey=photo.grey, packed=packed
    )


_PHOTOS_AHEAD = 4  # read before, and written after, the networks have them; each is held in memory

_DEADLY = (
    f"{MOST_DEATHS} runs died while it was under way, all but the first with it alone; to have it tried again, remove "
    f"the lines with its name from {MANIFEST_NAME}"
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
        keep_album: file to read the run's album from, if it is there, and to keep it in: **biometric data** (`Album`).
            None keeps it in memory alone. It may not lie in ``out``, nor among the inputs under a photo's name.

    Raises:
        RunError: the inputs, the folder or the photos of a person do not allow the run; nothing has been written.

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
        keep_album: str | os.PathLike[str] | None = None,
    ) -> None:
        self.out: Path = Path(out)
        self.settings: RunSettings = settings or RunSettings()
        self._keeper = AlbumKeeper.of(self.settings.album, keep_album, self.out, map(Path, inputs))
        self.plan: JobPlan = plan_jobs(inputs, self.out)
        self._people = find_people(self.settings)
        self._described = self.settings.described()
        self._manifest = open_manifest(self.out, self._described, resume=resume, overwrite=overwrite)
        self._stamp = _stamp(self.out)
        self._on_frame: OnFrame | None = None
        known: Mapping[str, PhotoRecord] = self._manifest.records if self._manifest else {}
        self.finished: dict[str, PhotoRecord] = {
            job.name: known[job.name]
            for job in self.plan.jobs
            if job.name in known and still_holds(known[job.name], job, self.out)
        }
        self.pending: tuple[PhotoJob, ...] = tuple(
            job for job in self.plan.jobs if job.name not in self.finished
        )
        self._earlier = {job.name: known[job.name] for job in self.pending if job.name in known}
        self._changed = notes_of_changed(self._earlier, self.out)
        under_way = self._manifest.deaths if self._manifest else names_under_way(self.out)
        new = (job for job in self.pending if job.name not in under_way)
        refuse_foreign((path for job in new for path in _targets(job)), self.out)

    def execute(
        self,
        pipe: Pipeline,
        *,
        batch_size: int | None = None,
        on_done: Callable[[PhotoRecord], None] | None = None,
        on_frame: OnFrame | None = None,
    ) -> RunResult:
        """Protect the pending photos; a photo that fails is recorded and the run goes on.

        A run that is killed, or that a photo kills, leaves behind which photos were under way. With ``resume`` they are
        done first, each alone, so that a photo that kills the next runs too is known: after four it is recorded as
        failed and left out. Kills from outside may so be put down to a photo that was alone each time; the reason in
        its record allows for that.

        Args:
            pipe: the pipeline; anything where no photo is pending.
            batch_size: faces that go through the networks together, at least 1; None for a number that suits
                the device.
            on_done: called after each photo or video is on disk and recorded.
            on_frame: called after each frame of a video, see `OnFrame`.

        Raises:
            RunError: the output folder cannot be written, another run is writing or has written to it, or the system
                fails otherwise; it names the file, where the system does.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        started, self._on_frame = time.monotonic(), on_frame
        records = dict(self.finished)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            album = self._keeper.open(pipe if self.pending else None)
            with lock_folder(self.out), album, closing(self._protect(pipe, batch_size)) as finished:
                for record in finished:
                    records[record.name] = record
                    self._keeper.tick()
                    if on_done is not None:
                        on_done(record)
        except OSError as error:
            raise RunError(_what_failed(error, self.out)) from error
        jobs = self.plan.jobs
        return RunResult(
            self.out,
            self.settings,
            jobs,
            tuple(records[job.name] for job in jobs),
            len(self.finished),
            self.plan.other_files,
            time.monotonic() - started,
            (
                *(self._manifest.notes if self._manifest else ()),
                *self._changed,
                *notes_of_replaced(self._earlier, records),
                *self._keeper.notes(resumed=bool(self.finished and self.pending)),
            ),
        )

    def _protect(self, pipe: Pipeline, batch_size: int | None) -> Generator[PhotoRecord, None, None]:
        """Yield each photo's record once it is in the manifest, and the photo's file, if any, on disk."""
        if _stamp(self.out) != self._stamp:
            raise RunError(f"{self.out}: another run has written to it in the meantime; go on with --resume")
        remove_temporaries(self.out)
        manifest = self._manifest = self._manifest or Manifest.start(self.out, self._described)
        try:
            manifest.take_over(self.finished)
            with manifest.alive(), closing(self._protect_pending(pipe, batch_size, manifest)) as finished:
                yield from finished
        finally:
            self._stamp = _stamp(self.out)

    def _protect_pending(
        self, pipe: Pipeline, batch_size: int | None, manifest: Manifest
    ) -> Generator[PhotoRecord, None, None]:
        """Yield the records of all photos, those first that earlier runs may have died of."""

        def settle(done: Done) -> PhotoRecord:
            # in the writer's thread, the only one that settles anything while it lives: a stop or a kill during the
            # next photo, which may take minutes, neither has this one done again nor blames it
            record = self._finish(pipe, *done)
            try:
                manifest.append([record])
            except OSError:  # a file without a record is somebody else's to the next run
                remove_results([self.out / record.output] if record.output else [])
                raise
            return record

        deaths = {job.name: manifest.deaths[job.name] for job in self.pending}
        for job in self.pending:
            if deaths[job.name] >= MOST_DEATHS:
                yield settle((without_results(PhotoRecord(job.name, "error", _DEADLY), _targets(job)), 0.0))
        for job in self.pending:
            if 0 < deaths[job.name] < MOST_DEATHS:
                yield from self._protect_jobs(pipe, [job], batch_size, manifest, settle)
        others = [job for job in self.pending if not deaths[job.name]]
        if others:
            yield from self._protect_jobs(pipe, others, batch_size, manifest, settle)

    def _protect_jobs(
        self,
        pipe: Pipeline,
        jobs: Sequence[PhotoJob],
        batch_size: int | None,
        manifest: Manifest,
        settle: Callable[[Done], PhotoRecord],
    ) -> Generator[PhotoRecord, None, None]:
        """Yield a record for each photo once it is settled, then for each video; memory is flat in their number."""
        videos = [job for job in jobs if is_video(job.source)]
        photos = [job for job in jobs if not is_video(job.source)]
        loaded = map_ahead(partial(self._load, manifest), photos, threads=2, ahead=_PHOTOS_AHEAD)
        protected = protect_photos(
            pipe, _set_aside(loaded, videos), self.settings, batch_size, self._people, self._keeper.album
        )
        yield from map_ahead(settle, protected, threads=1, ahead=_PHOTOS_AHEAD)
        for job in videos:
            manifest.begin(job.name)
            yield settle((self._protect_video(pipe, job), 0.0))

    def _protect_video(self, pipe: Pipeline, job: PhotoJob) -> PhotoRecord:
        record = protect_video_job(
            pipe,
            job,
            self.settings,
            self.out,
            people=self._people,
            seen=self._keeper.seen_in_videos(),
            on_frame=self._on_frame,
        )
        written = None if record.output is None else self.out / record.output
        return without_results(record, (path for path in _targets(job) if path != written))

    def _load(self, manifest: Manifest, job: PhotoJob) -> LoadedPhoto | PhotoRecord | PhotoJob:
        """The photo, why there is none, or the job itself where it is an animation."""
        manifest.begin(job.name)
        item = load_photo(job, self.settings)
        if isinstance(item, PhotoRecord) and may_be_animation(job, item):
            return job
        return without_results(item, _targets(job)) if isinstance(item, PhotoRecord) else item

    def _finish(self, pipe: Pipeline, result: StreamResult | PhotoRecord, seconds: float) -> PhotoRecord:
        """Write the photo if all its faces are protected, and say so or say why not."""
        if isinstance(result, PhotoRecord):
            return result
        item: LoadedPhoto = result.photo.owner
        record = PhotoRecord(item.job.name, "error", source_sha256=item.source_sha256)
        try:
            record, target, data = pack_result(result, self.settings, seconds, pipe)
            remove_results(path for path in _targets(item.job) if path != target)
            if target is None:
                return record
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data, item.times)
        except Exception as error:
            return without_results(replace(record, **write_failure(error)), _targets(item.job))
        output = target.relative_to(self.out).as_posix()
        return replace(record, output=output, output_sha256=sha256(data))


def _set_aside(
    items: Iterable[LoadedPhoto | PhotoRecord | PhotoJob], videos: list[PhotoJob]
) -> Iterator[LoadedPhoto | PhotoRecord]:
    """The items but for jobs, which are added to the videos."""
    for item in items:
        if isinstance(item, PhotoJob):
            videos.append(item)
        else:
            yield item


def _targets(job: PhotoJob) -> tuple[Path, Path]:
    """Where a result of the job may be; what an earlier run has left there would pass for this one's."""
    return job.target, job.partial_target


def _what_failed(error: OSError, out: Path) -> str:
    """In words: only of what lies in the output folder, or has to be there for it, is it that it cannot be written."""
    why = error.strerror or str(error) or type(error).__name__
    if not isinstance(error.filename, (str, bytes)):
        return f"the run was ended by an error of the system that names no file ({why}); go on with --resume"
    file = Path(os.fsdecode(error.filename))
    place, folder = file.absolute(), out.absolute()
    ours = place.is_relative_to(folder) or folder.is_relative_to(place)
    return f"{file}: cannot be written ({why})" if ours else f"{file}: {why}"


def _stamp(out: Path) -> tuple[int, int] | None:
    """Tells whether the manifest in a folder has changed."""
    try:
        status = (out / MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
