"""What the workers of a Ray run do: find faces (processors), protect (accelerators), write (processors)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffusers_dedim.atomic import FileTimes, sha256, write_atomic
from diffusers_dedim.extras import import_extra
from diffusers_dedim.prefetch import map_ahead
from diffusers_dedim.runs.jobs import READ_SUFFIXES
from diffusers_dedim.runs.journal import Journal
from diffusers_dedim.runs.people import find_people
from diffusers_dedim.runs.ray.sources import job_of, name_of, pack_name, unpack_name
from diffusers_dedim.runs.records import (
    LoadedPhoto,
    PhotoRecord,
    RunSettings,
    decode_job,
    file_times,
    write_failure,
)
from diffusers_dedim.runs.writing import pack_result

if TYPE_CHECKING:
    from diffusers_dedim.faces import Face
    from diffusers_dedim.runs.run import Done

Row = dict[str, Any]

ATTEMPTS_NAME = ".dedim-attempts"
DIED = "its worker died each time"
_MOST_DEATHS = 2  # of a row by itself
_DONE, _TOGETHER = "done", "together"


@contextmanager
def attempts_folder(out: Path) -> Iterator[None]:
    """Keep the journals of one run below an output folder that all workers share; nothing is left at the end.

    Where a worker's ``out`` is not the others', its journal helps only those that are tried again on its own machine.
    """
    shutil.rmtree(out / ATTEMPTS_NAME, ignore_errors=True)  # a killed run's
    try:
        yield
    finally:
        shutil.rmtree(out / ATTEMPTS_NAME, ignore_errors=True)


def batch_key(stage: str, names: Sequence[str]) -> str:
    """Tells a batch from others, the same each time it is tried."""
    return hashlib.sha256("\0".join([stage, *names]).encode("utf-8", "surrogatepass")).hexdigest()


def survive(
    out: Path,
    key: str,
    rows: Sequence[Row],
    work: Callable[[list[Row]], list[Row]],
    give_up: Callable[[Row], Row],
) -> list[Row]:
    """``work(rows)``, tried so that a row that kills the process is known when the batch is tried again.

    The first attempt works on all rows. If its journal is still there, the process has died of one of them: rows are
    worked on one by one then, with a line before and after each, and a row that was begun twice and never done is
    given up. So every death brings the batch further: it costs one, and two for each such row.

    Args:
        out: output folder, see `attempts_folder`.
        key: `batch_key` of the rows.
        rows: a batch.
        work: results of rows, in their order.
        give_up: the result of a row that is not tried any more.

    Returns:
        A result for each row, in their order: Ray may have handed on the first rows of an earlier attempt.

    Raises:
        OSError: the journal cannot be written.
    """
    if not rows:
        return []
    journal = out / ATTEMPTS_NAME / key
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        journal.open("x").close()
    except FileExistsError:
        return _one_by_one(Journal(journal), rows, work, give_up)
    results = work(list(rows))
    journal.unlink(missing_ok=True)
    return results


def _one_by_one(
    journal: Journal,
    rows: Sequence[Row],
    work: Callable[[list[Row]], list[Row]],
    give_up: Callable[[Row], Row],
) -> list[Row]:
    """As `survive`, from the second attempt on; the journal stays, as the whole task may be tried again.

    In it a row is called by its number: the journal's own name holds their ids.
    """
    # it is gone where another batch of the same ids has come to its end meanwhile
    done = {event["name"] for event in journal.rows() if event and event.get("kind") == _DONE}
    deaths = dict(journal.deaths)
    results: dict[int, Row] = {}
    for index, row in enumerate(rows):
        if deaths.get(str(index), 0) >= _MOST_DEATHS:
            results[index] = give_up(row)
        elif str(index) not in done:
            results[index] = _noted(journal, str(index), [row], work)[0]
    # those that got through by themselves in an earlier attempt, whose results died with the process
    known = [index for index in range(len(rows)) if index not in results]
    if known and _TOGETHER not in deaths:
        again = _noted(journal, _TOGETHER, [rows[index] for index in known], work)
    else:
        again = [work([rows[index]])[0] for index in known]
    results.update(zip(known, again, strict=True))
    return [results[index] for index in range(len(rows))]


def _noted(journal: Journal, what: str, rows: list[Row], work: Callable[[list[Row]], list[Row]]) -> list[Row]:
    journal.begin(what)
    results = work(rows)
    journal.end([{"kind": _DONE, "name": what}])
    return results


Output = Literal["files", "parquet"]
_PHOTOS_AHEAD = 4


@dataclass(frozen=True)
class FindFaces:
    """Read and decode photos and find their faces, so that the accelerators wait for neither.

    The decoded pixels are not passed on: sending them costs more than decoding again.

    Args:
        out: output folder.
        skip: names that are done, or not to be done.
        repeated: names that several rows have; the first row that comes along is taken.
        settings: of the run.
    """

    out: Path
    skip: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    settings: RunSettings = field(default_factory=RunSettings)

    def __call__(self, table: Any) -> Any:
        """``id`` and ``data`` or ``path`` -> ``id``, ``data``, ``faces``, ``reasons`` and ``problem`` (or empty)."""
        rows = [{**row, "id": name_of(unpack_name(row["id"]), self.out)} for row in table.to_pylist()]
        rows = [row for row in rows if row["id"] not in self.skip]
        key = batch_key("find", [row["id"] for row in rows])
        rows = [row for place, row in enumerate(rows) if self._is_first(row["id"], f"{key}/{place}")]
        found = survive(
            self.out,
            key,
            rows,
            lambda some: [self._find(row) for row in some],
            lambda row: _row(row["id"], problem=PhotoRecord(row["id"], "error", DIED)),
        )
        columns = {"id": "binary", "data": "large_binary", "faces": "large_binary"}
        columns |= {"reasons": "string", "problem": "string", "times": "string"}
        return _table(found, columns)

    def _find(self, row: Row) -> Row:
        from diffusers_dedim.faces import shared_detector  # PyTorch, which the writing tasks can do without

        name = row["id"]
        try:
            job = job_of(name, self.out)
            path = Path(unpack_name(row["path"])) if row.get("path") else None
            data = path.read_bytes() if path else bytes(row["data"])
            item = decode_job(job, data, self.settings)
            if isinstance(item, PhotoRecord):
                return _row(name, problem=item)
            times = file_times(path, self.settings) if path else None
            detector = shared_detector(self.settings.detector)
            return _row(name, data, detector(item.photo.pixels), times=times)
        except OSError as error:
            return _row(name, problem=PhotoRecord(name, "unreadable", f"cannot be opened ({error.strerror})"))
        except Exception as error:  # whatever a photo provokes, the run goes on to the next
            return _row(name, problem=PhotoRecord(name, "error", f"{type(error).__name__}: {error}"))

    def _is_first(self, name: str, place: str) -> bool:
        """Whether no other row of this name has come first; the same row may come again, after its worker's death."""
        if name not in self.repeated:
            return True
        claim = self.out / ATTEMPTS_NAME / batch_key("claim", [name])
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            with claim.open("x") as file:
                file.write(place)
        except FileExistsError:
            return claim.read_text() == place
        return True


class Protect:
    """An actor that holds the pipeline.

    Args:
        load: makes the pipeline, once for each actor.
        settings: of the run.
        out: output folder.
        batch_size: faces sampled together; None for a number that suits the device.
    """

    def __init__(
        self, load: Callable[[], Any], settings: RunSettings, out: Path, batch_size: int | None
    ) -> None:
        self._pipe = load()
        self._settings, self._out, self._batch_size = settings, out, batch_size
        self._people = find_people(
            settings
        )  # by path: neither a face nor what it is known by is sent or stored

    def __call__(self, table: Any) -> Any:
        """What `FindFaces` gives -> ``record`` (JSON), ``target`` and ``data`` (or empty)."""
        rows = [{**row, "id": unpack_name(row["id"])} for row in table.to_pylist()]
        done = survive(
            self._out,
            batch_key("protect", [row["id"] for row in rows]),
            rows,
            self._protect,
            lambda row: _result(PhotoRecord(row["id"], "error", DIED)),
        )
        columns = {"record": "string", "target": "binary", "data": "large_binary", "times": "string"}
        return _table(done, columns)

    def _protect(self, rows: list[Row]) -> list[Row]:
        from diffusers_dedim.runs.run import protect_photos  # PyTorch and diffusers

        items = map_ahead(self._load, rows, threads=2, ahead=_PHOTOS_AHEAD)
        protected = protect_photos(self._pipe, items, self._settings, self._batch_size, self._people)
        done = map_ahead(self._encode, protected, threads=1, ahead=_PHOTOS_AHEAD)
        results = {result["name"]: result for result in done}  # in the order in which they were done
        return [results[row["id"]] for row in rows]

    def _load(self, row: Row) -> LoadedPhoto | PhotoRecord:
        if row["problem"]:
            return parse_record(row["problem"])
        item = decode_job(job_of(row["id"], self._out), row["data"], self._settings)
        if isinstance(item, PhotoRecord):
            return item
        faces = _unpack(row["faces"], row["reasons"])
        return replace(item, faces=faces, times=_read_times(row.get("times")))

    def _encode(self, done: Done) -> Row:
        result, seconds = done
        if isinstance(result, PhotoRecord):
            return _result(result)
        item: LoadedPhoto = result.photo.owner
        try:
            record, target, data = pack_result(result, self._settings, seconds, self._pipe)
        except Exception as error:
            failed = PhotoRecord(item.job.name, "error", source_sha256=item.source_sha256)
            return _result(replace(failed, **write_failure(error)))
        if target is None:
            return _result(record)
        name = target.relative_to(self._out).as_posix()
        if target.suffix.lower() not in READ_SUFFIXES:  # an id without an ending
            name += "." + item.photo.format.lower()
        return _result(record, name, data, json.dumps(item.times))


@dataclass(frozen=True)
class Write:
    """Put protected photos on disk; what comes out is small: their records.

    Files are named by id and parts by the ids in them, so that work that is done twice replaces itself.
    """

    out: Path
    output: Output

    def __call__(self, table: Any) -> Any:
        """``record``, ``target``, ``data`` -> ``record`` with the place of the output."""
        # as plain fields: `PhotoRecord` would import PyTorch for their faces
        rows = [{**row, "record": json.loads(row["record"])} for row in table.to_pylist()]
        written = [row for row in rows if row["target"]]
        for some in [written] if self.output == "parquet" else [[row] for row in written]:
            self._write(some)
        return _pyarrow().table({"record": [json.dumps(row["record"]) for row in rows]})

    def _write(self, rows: Sequence[Row]) -> None:
        """Write these rows to one file, and say in their records where it is, or why it is not."""
        if not rows:
            return
        times = None
        if self.output == "parquet":
            name, data = self._part(rows)
        else:
            name, data = unpack_name(rows[0]["target"]), rows[0]["data"]
            times = _read_times(rows[0]["times"])
        try:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / name, data, times)
        except OSError as error:
            for row in rows:
                row["record"].update(write_failure(error))
            return
        for row in rows:
            row["record"].update(output=name, output_sha256=sha256(row["data"]))

    def _part(self, rows: Sequence[Row]) -> tuple[str, bytes]:
        names = [row["record"]["name"] for row in rows]
        digest = hashlib.sha256(pack_name("\n".join(names))).hexdigest()
        columns = {
            # a text, as users expect it; the record has the name as it is
            "id": [name.encode("utf-8", "backslashreplace").decode() for name in names],
            "image": [row["data"] for row in rows],
            "record": [json.dumps(row["record"]) for row in rows],
        }
        buffer = BytesIO()
        import_extra("pyarrow.parquet", "parquet output").write_table(_pyarrow().table(columns), buffer)
        return part_name(digest, len(rows)), buffer.getvalue()


def part_name(digest: str, count: int) -> str:
    """A parquet part tells in its name how many photos it holds: fewer records mean that a kill came between."""
    return f"part-{digest[:20]}-{count}.parquet"


def dump_record(record: PhotoRecord) -> str:
    """A record as JSON; the inverse of `parse_record`."""
    return json.dumps(record.to_fields())


def parse_record(text: str) -> PhotoRecord:
    """A record from JSON."""
    return PhotoRecord.from_fields(json.loads(text))


def _row(
    name: str,
    data: bytes = b"",
    faces: Sequence[Face] = (),
    problem: PhotoRecord | None = None,
    times: FileTimes | None = None,
) -> Row:
    numbers = [[*face.box, *face.landmarks.ravel(), face.confidence] for face in faces]
    packed = np.array(numbers, dtype=np.float64).tobytes()
    return {
        "id": pack_name(name),
        "data": data,
        "faces": packed,
        "reasons": json.dumps([face.reason for face in faces]),
        "problem": dump_record(problem) if problem else "",
        "times": json.dumps(times),
    }


def _unpack(packed: bytes, reasons: str) -> tuple[Face, ...]:
    """Faces from rows of box (4), landmarks (10) and confidence, and their reasons as JSON."""
    from diffusers_dedim.faces import Face

    rows = np.frombuffer(packed, dtype=np.float64).reshape(-1, 15)
    return tuple(
        Face(tuple(row[:4].tolist()), row[4:14].reshape(5, 2), float(row[14]), reason)
        for row, reason in zip(rows, json.loads(reasons), strict=True)
    )


def _result(record: PhotoRecord, target: str = "", data: bytes = b"", times: str = "null") -> Row:
    packed = pack_name(target)
    return {
        "name": record.name,
        "record": dump_record(record),
        "target": packed,
        "data": data,
        "times": times,
    }


def _read_times(text: str | None) -> FileTimes | None:
    times = json.loads(text or "null")
    return None if times is None else (int(times[0]), int(times[1]))


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> Any:
    arrow = _pyarrow()
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in columns.items()])
    return arrow.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema=schema)


def _pyarrow() -> Any:
    return import_extra("pyarrow", "dedim run --ray", 'pip install "diffusers-dedim[ray]"')
