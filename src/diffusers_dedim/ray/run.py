"""The driver of a Ray run: a stream of rows through the stages, and one manifest to go on from after a kill."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.manifest import SETTLED, Manifest, PhotoRecord, open_manifest
from diffusers_dedim.photo_jobs import RunError, remove_temporaries
from diffusers_dedim.ray.sources import INSTALL, import_ray_data, read_rows
from diffusers_dedim.ray.stages import FindFaces, Output, Protect, Write, job_of, parse_record
from diffusers_dedim.run import RunResult
from diffusers_dedim.run_batch import RunSettings

ROWS_AT_A_TIME = 64
"""Photos an actor gets at once: the places of its queue stay full for most of them, and a kill costs no more."""

_TRIES = 3  # of a batch whose worker died; a photo that kills every worker must not do so for ever


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
    same names; a killed run goes on with ``resume``, which skips the ids that are settled (inputs are not compared).
    On several machines ``inputs`` and ``out`` must be on storage that all of them see.

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
        RunError: inputs or output folder do not allow the run, an id occurs twice, or a table or archive gave no photo.
    """
    for name, value in (("workers", workers), ("rows_at_a_time", rows_at_a_time)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    if output not in ("files", "parquet"):
        raise ValueError(f'output: expected "files" or "parquet", got {output!r}.')
    started, folder = time.monotonic(), Path(out).resolve()
    _start_ray()
    rows, known = read_rows(inputs, folder)
    described = {**asdict(settings), "output": output}
    manifest = open_manifest(folder, described, resume=resume, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest or Manifest.start(folder, described)
    remove_temporaries(folder)
    finished = _settled(folder, manifest.records)
    stages = _stages(
        rows.filter(_Pending(frozenset(finished), folder)), folder, settings, load, workers, accelerators,
        output, batch_size, rows_at_a_time,
    )  # fmt: skip
    records = {**finished, **_collect(stages, manifest, on_done)}
    if (
        not records and known is None
    ):  # Ray passes over what it cannot read, as one bad block must not end a run
        raise RunError(f"{inputs[0]}: no photo came out of the inputs; is it a whole file of its kind?")
    lost = [name for name in known or () if name not in records]
    for name in lost:
        records[name] = PhotoRecord(name, "error", "its worker died each time")
    manifest.append(records[name] for name in lost)
    return RunResult(
        folder, settings, (), tuple(records.values()), len(finished), 0, time.monotonic() - started
    )


class _Pending:
    """Whether a row is still to be done."""

    def __init__(self, finished: frozenset[str], out: Path) -> None:
        self._finished, self._out = finished, out

    def __call__(self, row: Mapping[str, Any]) -> bool:
        try:
            return job_of(str(row["id"]), self._out).name not in self._finished
        except ValueError:
            return True  # is recorded with the reason


def _start_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run with private photos leaves
    ray, data = import_extra("ray", "dedim run --ray", INSTALL), import_ray_data()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a batch that fails each time is listed, and the run goes on


def _stages(
    rows: Any, out: Path, settings: RunSettings, load: Callable[[], Any], workers: int, accelerators: float,
    output: Output, batch_size: int | None, rows_at_a_time: int,
) -> Any:  # fmt: skip
    actors = import_ray_data().ActorPoolStrategy(size=workers)
    protected = rows.map(FindFaces(out)).map_batches(
        Protect,
        fn_constructor_kwargs={
            "load": load, "settings": settings, "out": out, "batch_size": batch_size
        },
        batch_size=rows_at_a_time,
        batch_format="pyarrow",
        compute=actors,
        num_cpus=1,
        num_gpus=accelerators,
        max_restarts=-1,
        max_task_retries=_TRIES,
    )  # fmt: skip
    return protected.map_batches(Write(out, output), batch_size=rows_at_a_time, batch_format="pyarrow")


def _collect(
    stages: Any, manifest: Manifest, on_done: Callable[[PhotoRecord], None] | None
) -> dict[str, PhotoRecord]:
    """Record batch by batch what has been written."""
    records: dict[str, PhotoRecord] = {}
    for batch in stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        new = [parse_record(text) for text in batch.column("record").to_pylist()]
        twice = [record.name for record in new if record.name in records]
        if twice:
            raise RunError(f"the id {twice[0]!r} occurs twice among the inputs; ids must be unique")
        manifest.append(new)  # in one write, so that a parquet part is recorded whole
        for record in new:
            records[record.name] = record
            if on_done is not None:
                on_done(record)
    return records


def _settled(out: Path, records: Mapping[str, PhotoRecord]) -> dict[str, PhotoRecord]:
    """Earlier results that still stand; parts that are not wholly recorded are removed, to be done again."""
    counts = Counter(record.output for record in records.values())
    whole: set[str] = set()
    for part in out.glob("part-*.parquet"):
        match = re.fullmatch(r"part-[0-9a-f]{20}-(\d+)\.parquet", part.name)
        if match and counts[part.name] == int(match[1]):
            whole.add(part.name)
        elif match:
            part.unlink()

    def stands(record: PhotoRecord) -> bool:
        if record.output is None or record.status not in SETTLED:
            return record.status in SETTLED
        is_part = re.fullmatch(r"part-[0-9a-f]{20}-\d+\.parquet", record.output)
        return record.output in whole if is_part else (out / record.output).is_file()

    return {name: record for name, record in records.items() if stands(record)}
