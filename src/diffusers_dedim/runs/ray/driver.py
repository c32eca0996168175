"""The driver of a Ray run: a stream of rows through the stages, and one manifest to go on from after a kill."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.runs.albums import NO_ALBUM_ON_RAY
from diffusers_dedim.runs.jobs import RunError, remove_temporaries
from diffusers_dedim.runs.manifest import (
    Manifest,
    lock_folder,
    names_under_way,
    open_manifest,
    outputs_of_runs,
    refuse_foreign,
    without_results,
)
from diffusers_dedim.runs.people import find_people
from diffusers_dedim.runs.ray.sources import (
    INSTALL,
    Source,
    absent_records,
    import_ray_data,
    name_of,
    possible_outputs,
    read_rows,
    shared_targets,
)
from diffusers_dedim.runs.ray.stages import FindFaces, Output, Protect, Write, attempts_folder, parse_record
from diffusers_dedim.runs.records import SETTLED, PhotoRecord, RunResult, RunSettings

_PART = re.compile(r"part-[0-9a-f]{20}-(\d+)\.parquet")


@dataclass(frozen=True)
class RowPlan:
    """The rows of a run.

    Attributes:
        names: of all rows in their order; one that several have stands there as often.
        finished: records of an earlier run that still stand.
        refused: names that would be written over another's file, with the reason.
    """

    names: tuple[str, ...]
    finished: Mapping[str, PhotoRecord]
    refused: Mapping[str, str]

    @cached_property
    def pending(self) -> frozenset[str]:
        """Names of the photos that are to be done."""
        return frozenset(self.names) - self.finished.keys() - self.refused.keys()

    @cached_property
    def repeated(self) -> frozenset[str]:
        """Names that several rows have."""
        return frozenset(name for name, times in Counter(self.names).items() if times > 1)


def plan_rows(ids: Sequence[str], out: Path, records: Mapping[str, PhotoRecord], *, files: bool) -> RowPlan:
    """Plan a run.

    Args:
        ids: of all rows.
        out: output folder; it is only looked at.
        records: of an earlier run to go on with.
        files: whether each photo becomes a file, not a row of a part.
    """
    names = tuple(name_of(row_id, out) for row_id in ids)
    finished = _settled(out, records)
    # what is done keeps its file, whoever comes first now
    refused = shared_targets(sorted(names, key=lambda name: name not in finished)) if files else {}
    return RowPlan(names, finished, refused)


def refuse_foreign_files(plan: RowPlan, out: Path) -> None:
    """Refuse a run that would replace or remove files that no run has written.

    Raises:
        RunError: such a file lies where a photo may be written.
        OSError: the manifest cannot be read.
    """
    new = plan.pending - names_under_way(out)
    refuse_foreign((path for name in sorted(new) for path in possible_outputs(name, out)), out)


def remove_torn_parts(out: Path, records: Mapping[str, PhotoRecord]) -> None:
    """Remove parquet parts that are not wholly recorded, for their photos are done again.

    Raises:
        OSError: one cannot be removed.
    """
    whole = _whole_parts(records)
    for part in out.glob("part-*.parquet"):
        if _PART.fullmatch(part.name) and part.name not in whole:
            part.unlink()


def _whole_parts(records: Mapping[str, PhotoRecord]) -> frozenset[str]:
    """Parts all of whose photos are recorded: a part tells in its name how many it holds."""
    counts = Counter(record.output for record in records.values() if record.output is not None)
    parts = {name: _PART.fullmatch(name) for name in counts}
    return frozenset(name for name, match in parts.items() if match and counts[name] == int(match[1]))


def _settled(out: Path, records: Mapping[str, PhotoRecord]) -> dict[str, PhotoRecord]:
    """Earlier results that still stand."""
    whole = {name for name in _whole_parts(records) if (out / name).is_file()}

    def stands(record: PhotoRecord) -> bool:
        if record.output is None or record.status not in SETTLED:
            return record.status in SETTLED
        is_part = _PART.fullmatch(record.output)
        return record.output in whole if is_part else (out / record.output).is_file()

    return {name: record for name, record in records.items() if stands(record)}


@dataclass(frozen=True)
class Recorder:
    """Records photos once no other result of theirs is left, which would pass for this run's.

    Args:
        manifest: takes the records.
        out: output folder.
        pending: names whose files are this run's; nobody else's are touched.
        removable: names below ``out`` of the files that may be removed; None for all of a photo's.
        on_done: called for each photo that is recorded.
    """

    manifest: Manifest
    out: Path
    pending: Container[str]
    removable: Container[str] | None = None
    on_done: Callable[[PhotoRecord], None] | None = None

    def collect(self, stages: Any) -> dict[str, PhotoRecord]:
        """Record batch by batch what has been written."""
        records: dict[str, PhotoRecord] = {}
        for batch in stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            new = [parse_record(text) for text in batch.column("record").to_pylist()]
            records.update(self.record([record for record in new if record.name not in records]))
        return records

    def record(self, new: Sequence[PhotoRecord]) -> dict[str, PhotoRecord]:
        """Record photos, in one write, so that a parquet part is recorded whole.

        Raises:
            OSError: the manifest cannot be written.
        """
        alone = [self._alone(record) for record in new]
        self.manifest.append(alone)
        for record in alone:
            if self.on_done is not None:
                self.on_done(record)
        return {record.name: record for record in alone}

    def _alone(self, record: PhotoRecord) -> PhotoRecord:
        if record.name not in self.pending:
            return record
        places = {
            path.relative_to(self.out).as_posix(): path for path in possible_outputs(record.name, self.out)
        }
        own = places.pop(record.output, None) if record.output else None
        stale = [path for name, path in places.items() if self.removable is None or name in self.removable]
        alone = without_results(record, stale)
        # a record of an error names no file, so none may be left
        return alone if alone is record or own is None else without_results(alone, [own])


ROWS_AT_A_TIME = 64
"""Photos an actor gets at once: the places of its queue stay full for most of them, and a kill costs no more."""

FOUND_AT_A_TIME = 8
"""Photos a searching task takes at once: few, so that a small folder is shared among the processors."""

# Of a task whose worker died, where Ray Data itself would go on for ever. A batch dies once, and twice more of each
# photo that is to blame; see `survive`.
_MOST_DEATHS = 2 * ROWS_AT_A_TIME + 1
_TRIES = 3  # where no photo is opened


def run_ray(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: RunSettings,
    load: Callable[[], Any],
    *,
    workers: int = 1,
    accelerators: float = 0,
    output: Output = "files",
    batch_size: int | None = None,
    rows_at_a_time: int = ROWS_AT_A_TIME,
    resume: bool = False,
    overwrite: bool = False,
    on_done: Callable[[PhotoRecord], None] | None = None,
) -> RunResult:
    """Protect photos with Ray Data: here, or on the cluster that ``RAY_ADDRESS`` names.

    Tasks on processors read photos and find faces, actors that hold the pipeline protect them, tasks write. A photo
    with a seed gets what `dedim run` would give it under the same name. The manifest in ``out`` is the checkpoint, by
    row id: a photo is in it once its output is on disk. A worker that is killed has its rows done again, over the
    same names, and a photo that kills its worker each time is recorded as failed, alone. A killed run goes on with
    ``resume``, which skips the ids that are settled (inputs are not compared). As in `FolderRun`, files that no run
    has written are neither replaced nor removed, and no older result of a photo stays beside its record. Rows that
    nobody brought back, that share an id or would share a file are recorded as failed. On several machines ``inputs``
    and ``out`` must be on storage that all of them see.

    Args:
        inputs: folders and photos, parquet files, or webdataset ``.tar`` files; see `read_rows`.
        out: output folder.
        settings: what decides the result; there is no album, and where one is wanted the notes say so.
        load: makes the pipeline; is sent to the actors.
        workers: actors that hold a pipeline.
        accelerators: GPUs each actor takes, 0 for none.
        output: "files", named by id, or "parquet": parts with ``id``, ``image`` and ``record``.
        batch_size: faces sampled together; None for a number that suits the device.
        rows_at_a_time: photos an actor gets at once.
        resume, overwrite: as for `FolderRun`.
        on_done: called for each photo that is recorded.

    Returns:
        As `FolderRun.execute`, without jobs.

    Raises:
        ImportError: Ray is not installed.
        ValueError: a number is below 1, or the output is of another kind.
        RunError: inputs, output folder or cluster do not allow the run.
    """
    for name, value in (("workers", workers), ("rows_at_a_time", rows_at_a_time)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    if output not in ("files", "parquet"):
        raise ValueError(f'output: expected "files" or "parquet", got {output!r}.')
    started, folder = time.monotonic(), Path(out).resolve()
    album_wanted, settings = settings.album, replace(settings, album=False)  # workers share no faces
    _start_ray(workers, accelerators)
    source = read_rows(inputs, folder, _MOST_DEATHS)
    _refuse_mistakes(settings)
    described = {**settings.described(), "output": output}
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder), attempts_folder(folder):
        manifest, plan = _begin(source, folder, described, output, resume, overwrite)
        find = FindFaces(folder, frozenset({*plan.finished, *plan.refused}), plan.repeated, settings)
        stages = _stages(
            source, find, folder, settings, load, workers, accelerators, output, batch_size, rows_at_a_time
        )
        # in parts no photo has a file, and only what an earlier run wrote may be removed
        removable = outputs_of_runs(folder) if output == "parquet" else None
        recorder = Recorder(manifest, folder, plan.pending, removable, on_done)
        with manifest.all_under_way(plan.pending if output == "files" else ()):
            records = {**plan.finished, **recorder.collect(stages)}
            absent = [*absent_records(plan.names, records, plan.refused), *source.damaged]
            records.update(recorder.record(absent))
    return RunResult(
        folder,
        settings,
        (),
        tuple(records.values()),
        len(plan.finished),
        source.other_files,
        time.monotonic() - started,
        (*manifest.notes, *_album_notes(records.values())) if album_wanted else manifest.notes,
    )


def _album_notes(records: Iterable[PhotoRecord]) -> tuple[str, ...]:
    """What somebody should know who expects an album: nothing where no two photos have become protected ones."""
    return (NO_ALBUM_ON_RAY,) if sum(record.status == "protected" for record in records) > 1 else ()


def _refuse_mistakes(settings: RunSettings) -> None:
    """Try what the settings name: a mistake is an error here, not one in every worker.

    Raises:
        ImportError: the detector's package is missing.
        ValueError: there is no such detector; `RunError`: a photo of a person cannot be used.
    """
    from diffusers_dedim.faces import shared_detector  # PyTorch

    shared_detector(settings.detector)
    find_people(settings)


def _begin(
    source: Source, out: Path, settings: Mapping[str, object], output: Output, resume: bool, overwrite: bool
) -> tuple[Manifest, RowPlan]:
    """The manifest and the plan; nothing is replaced or removed before the run is known to be allowed."""
    found = open_manifest(out, settings, resume=resume, overwrite=overwrite)
    plan = plan_rows(source.ids, out, found.records if found else {}, files=output == "files")
    if output == "files" and (found or overwrite):  # else the folder is empty
        refuse_foreign_files(plan, out)
    manifest = found or Manifest.start(out, settings)
    manifest.take_over(plan.finished)
    remove_torn_parts(out, manifest.records)
    remove_temporaries(out)
    return manifest, plan


def _start_ray(workers: int, accelerators: float) -> None:
    """Connect to Ray, or start it here with as many places as the run needs.

    Raises:
        RunError: a cluster has too few; the run would wait for them for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run with private photos leaves
    ray, data = import_extra("ray", "dedim run --ray", INSTALL), import_ray_data()
    ours = not ray.is_initialized() and "RAY_ADDRESS" not in os.environ
    options = {"include_dashboard": False, "logging_level": logging.ERROR}
    if not ray.is_initialized():
        ray.init(**options)
    needed = {"CPU": workers + 1, "GPU": workers * accelerators}  # one to read, search and write
    if ours and ray.cluster_resources().get("CPU", 0) < needed["CPU"]:
        ray.shutdown()  # how many processors Ray counts in a container is its own business
        ray.init(num_cpus=needed["CPU"], **options)
    for kind, number in needed.items():
        found = ray.cluster_resources().get(kind, 0)
        if found < number:
            raise RunError(
                f"the Ray cluster has {found:g} {kind}s, and {workers} workers need {number:g}; "
                "give --ray a smaller number, or add machines first"
            )
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a batch that fails each time is listed, and the run goes on
    # 64 hard photos may take a slow worker longer than half an hour
    context.execution_no_progress_timeout_s = -1


def _stages(
    source: Source,
    find: FindFaces,
    out: Path,
    settings: RunSettings,
    load: Callable[[], Any],
    workers: int,
    accelerators: float,
    output: Output,
    batch_size: int | None,
    rows_at_a_time: int,
) -> Any:
    found = source.rows.map_batches(
        find,
        batch_size=min(rows_at_a_time, FOUND_AT_A_TIME),
        batch_format="pyarrow",
        max_retries=_MOST_DEATHS,
    )
    protected = found.map_batches(
        Protect,
        fn_constructor_kwargs={"load": load, "settings": settings, "out": out, "batch_size": batch_size},
        batch_size=rows_at_a_time,
        batch_format="pyarrow",
        compute=import_ray_data().ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=accelerators,
        max_restarts=-1,
        max_task_retries=_MOST_DEATHS,
    )
    return protected.map_batches(
        Write(out, output), batch_size=rows_at_a_time, batch_format="pyarrow", max_retries=_TRIES
    )
