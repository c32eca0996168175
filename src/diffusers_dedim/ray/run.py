"""The driver of a Ray run: a stream of rows through the stages, and one manifest to go on from after a kill."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.folder_lock import lock_folder
from diffusers_dedim.manifest import Manifest, PhotoRecord, open_manifest, outputs_of_runs
from diffusers_dedim.photo_jobs import RunError, remove_temporaries
from diffusers_dedim.ray.attempts import attempts_folder
from diffusers_dedim.ray.ids import absent_records
from diffusers_dedim.ray.plan import RowPlan, plan_rows, refuse_foreign_files, remove_torn_parts
from diffusers_dedim.ray.recorder import Recorder
from diffusers_dedim.ray.sources import INSTALL, Source, import_ray_data, read_rows
from diffusers_dedim.ray.stages import FindFaces, Output, Protect, Write
from diffusers_dedim.run import RunResult
from diffusers_dedim.run_batch import RunSettings
from diffusers_dedim.under_way import all_under_way

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
        settings: what decides the result.
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
    _start_ray(workers, accelerators)
    source = read_rows(inputs, folder, _MOST_DEATHS)
    described = {**asdict(settings), "output": output}
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder), attempts_folder(folder):
        manifest, plan = _begin(source, folder, described, output, resume, overwrite)
        find = FindFaces(folder, frozenset({*plan.finished, *plan.refused}), plan.repeated)
        stages = _stages(
            source, find, folder, settings, load, workers, accelerators, output, batch_size, rows_at_a_time
        )
        # in parts no photo has a file, and only what an earlier run wrote may be removed
        removable = outputs_of_runs(folder) if output == "parquet" else None
        recorder = Recorder(manifest, folder, plan.pending, removable, on_done)
        with all_under_way(folder, plan.pending if output == "files" else (), plan.finished):
            records = {**plan.finished, **recorder.collect(stages)}
            absent = [*absent_records(plan.names, records, plan.refused), *source.damaged]
            records.update(recorder.record(absent))
    return RunResult(
        folder, settings, (), tuple(records.values()), len(plan.finished), source.other_files,
        time.monotonic() - started, manifest.notes,
    )  # fmt: skip


def _begin(
    source: Source, out: Path, settings: Mapping[str, object], output: Output, resume: bool, overwrite: bool
) -> tuple[Manifest, RowPlan]:
    """The manifest and the plan; nothing is replaced or removed before the run is known to be allowed."""
    found = open_manifest(out, settings, resume=resume, overwrite=overwrite)
    plan = plan_rows(source.ids, out, found.records if found else {}, files=output == "files")
    if output == "files" and (found or overwrite):  # else the folder is empty
        refuse_foreign_files(plan, out)
    manifest = found or Manifest.start(out, settings)
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
    source: Source, find: FindFaces, out: Path, settings: RunSettings, load: Callable[[], Any], workers: int,
    accelerators: float, output: Output, batch_size: int | None, rows_at_a_time: int,
) -> Any:  # fmt: skip
    found = source.rows.map_batches(
        find,
        batch_size=min(rows_at_a_time, FOUND_AT_A_TIME),
        batch_format="pyarrow",
        max_retries=_MOST_DEATHS,
    )
    protected = found.map_batches(
        Protect,
        fn_constructor_kwargs={
            "load": load, "settings": settings, "out": out, "batch_size": batch_size
        },
        batch_size=rows_at_a_time,
        batch_format="pyarrow",
        compute=import_ray_data().ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=accelerators,
        max_restarts=-1,
        max_task_retries=_MOST_DEATHS,
    )  # fmt: skip
    return protected.map_batches(
        Write(out, output), batch_size=rows_at_a_time, batch_format="pyarrow", max_retries=_TRIES
    )
