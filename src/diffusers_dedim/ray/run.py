"""The driver of a Ray run: a stream of rows through the stages, and one manifest to go on from after a kill."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffusers_dedim.extras import import_extra
from diffusers_dedim.manifest import SETTLED, Manifest, PhotoRecord, open_manifest
from diffusers_dedim.photo_jobs import RunError, remove_temporaries
from diffusers_dedim.ray.sources import INSTALL, import_ray_data, read_rows
from diffusers_dedim.ray.stages import FindFaces, Output, Protect, Write, name_of, parse_record
from diffusers_dedim.run import RunResult
from diffusers_dedim.run_batch import RunSettings

ROWS_AT_A_TIME = 64
"""Photos an actor gets at once: the places of its queue stay full for most of them, and a kill costs no more."""

_TRIES = 3  # more, of a batch whose worker died; a photo that kills every worker must not do so for ever
_TRIES_ALONE = 1  # more, of a photo by itself: a machine may go down just then
_RETRIES = {"max_retries": _TRIES}  # of the tasks; Ray Data itself would go on for ever
_DIED = "its worker died each time, also with this photo alone"


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
    same names, and those of a worker that dies each time once more, one by one: only the photo that is to blame is
    recorded as failed. A killed run goes on with ``resume``, which skips the ids that are settled (inputs are not
    compared). On several machines ``inputs`` and ``out`` must be on storage that all of them see.

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
    stages = partial(
        _stages, out=folder, settings=settings, load=load, workers=workers, accelerators=accelerators,
        output=output, batch_size=batch_size, rows_at_a_time=rows_at_a_time,
    )  # fmt: skip
    killers = {name for name, record in manifest.records.items() if record.reason == _DIED}  # then: alone now
    records = dict(finished)
    records |= _collect(
        stages(rows.filter(_Pending({*finished, *killers}, folder), **_RETRIES)), manifest, on_done
    )
    lost = _lost(rows if known is None else known, folder, records)
    if lost:  # a block with a photo that kills its worker
        again = rows.filter(_Pending(lost, folder, among=True), **_RETRIES)
        records |= _collect(stages(again, alone=True), manifest, on_done)
        dead = [PhotoRecord(name, "error", _DIED) for name in lost if name not in records]
        records |= _record(dead, manifest, on_done)
    if not records and known is None:
        # Ray passes over what it cannot read, as one bad block must not end a run
        raise RunError(f"{inputs[0]}: no photo came out of the inputs; is it a whole file of its kind?")
    return RunResult(
        folder, settings, (), tuple(records.values()), len(finished), 0, time.monotonic() - started
    )


class _Pending:
    """Whether a row is still to be done: its name is not among these, or, the other way round, is."""

    def __init__(self, names: Iterable[str], out: Path, *, among: bool = False) -> None:
        self._names, self._out, self._among = frozenset(names), out, among

    def __call__(self, row: Mapping[str, Any]) -> bool:
        return (name_of(row["id"], self._out) in self._names) is self._among


def _lost(rows: Any, out: Path, records: Container[str]) -> list[str]:
    """The names that have no record, in order; ``rows`` are the names, or a dataset whose ids are read for it."""
    if not isinstance(rows, tuple):
        ids = rows.map(_only_id, **_RETRIES).iter_batches(batch_size=None, batch_format="pyarrow")
        rows = (name_of(text, out) for batch in ids for text in batch.column("id").to_pylist())
    return list(dict.fromkeys(name for name in rows if name not in records))


def _only_id(row: Mapping[str, Any]) -> dict[str, str]:
    return {"id": str(row["id"])}


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
    output: Output, batch_size: int | None, rows_at_a_time: int, *, alone: bool = False,
) -> Any:  # fmt: skip
    """The dataset of records; ``alone``: each row in a task of its own, so that its worker's death is its own."""
    actors = import_ray_data().ActorPoolStrategy
    if alone:
        rows = rows.repartition(target_num_rows_per_block=1)
    protected = rows.map(FindFaces(out), **_RETRIES).map_batches(
        Protect,
        fn_constructor_kwargs={
            "load": load, "settings": settings, "out": out, "batch_size": batch_size
        },
        batch_size=1 if alone else rows_at_a_time,
        batch_format="pyarrow",
        # those that wait at a worker die with it
        compute=actors(size=workers, max_tasks_in_flight_per_actor=1) if alone else actors(size=workers),
        num_cpus=1,
        num_gpus=accelerators,
        max_restarts=-1,
        max_task_retries=_TRIES_ALONE if alone else _TRIES,
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
        records |= _record(new, manifest, on_done)  # in one write, so that a parquet part is recorded whole
    return records


def _record(
    new: Sequence[PhotoRecord], manifest: Manifest, on_done: Callable[[PhotoRecord], None] | None
) -> dict[str, PhotoRecord]:
    manifest.append(new)
    for record in new:
        if on_done is not None:
            on_done(record)
    return {record.name: record for record in new}


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
