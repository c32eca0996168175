"""What a Ray run consists of, without Ray; test_run_ray.py has the whole on a cluster."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image
from toys import face_at

from diffusers_dedim import faces
from diffusers_dedim.runs.albums import NO_ALBUM_ON_RAY
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.manifest import Manifest, names_under_way
from diffusers_dedim.runs.ray import driver as run
from diffusers_dedim.runs.ray import sources
from diffusers_dedim.runs.ray import sources as ids
from diffusers_dedim.runs.ray.driver import Recorder, plan_rows, refuse_foreign_files, remove_torn_parts
from diffusers_dedim.runs.ray.sources import pack_name, possible_outputs, read_rows, unpack_name
from diffusers_dedim.runs.ray.stages import (
    ATTEMPTS_NAME,
    FindFaces,
    Protect,
    Write,
    _unpack,
    attempts_folder,
    parse_record,
    part_name,
    survive,
)
from diffusers_dedim.runs.records import PhotoRecord, RunSettings

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be copied here")


def photo_bytes(index: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo_array((90, 90, index))).save(buffer, "PNG")
    return buffer.getvalue()


def deaths(action: Any) -> int:
    """Try an action in processes of its own, as Ray tries a task, until one comes to its end; how many did not."""
    for count in range(200):
        child = os.fork()
        if not child:
            try:
                action()
            finally:
                os._exit(0)
        if not os.waitpid(child, 0)[1]:
            return count
    raise AssertionError("it never ends")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("killers", [{3}, {0, 5}, {7}, set(range(8))])
def test_each_killer_costs_two_deaths_and_no_other_photo(tmp_path: Path, killers: set[int]) -> None:
    rows = [{"id": str(index)} for index in range(8)]
    out, log = tmp_path / "out", tmp_path / "log"

    def work(some: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in some:
            with log.open("a") as file:
                file.write(row["id"] + "\n")
            if int(row["id"]) in killers:
                os.kill(os.getpid(), signal.SIGKILL)
        return [{"done": row["id"]} for row in some]

    def batch() -> list[dict[str, Any]]:
        return survive(out, "key", rows, work, lambda row: {"given up": row["id"]})

    assert deaths(batch) == 1 + 2 * len(killers)
    # in a later try of the whole task nobody dies again, and the order is the same
    assert batch() == [
        {"given up": row["id"]} if int(row["id"]) in killers else {"done": row["id"]} for row in rows
    ]
    seen = Counter(log.read_text().split())
    assert all(seen[str(index)] <= 3 for index in killers)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_photos_that_kill_only_in_company_are_done_alone(tmp_path: Path) -> None:
    def work(some: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(some) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return some

    rows = [{"id": str(index)} for index in range(4)]
    assert deaths(lambda: survive(tmp_path, "key", rows, work, lambda row: {})) == 1
    assert deaths(lambda: survive(tmp_path, "key", rows, work, lambda row: {})) == 1
    assert survive(tmp_path, "key", rows, work, lambda row: {}) == rows


def test_a_batch_that_goes_well_leaves_no_journal_and_a_run_no_folder(tmp_path: Path) -> None:
    (tmp_path / ATTEMPTS_NAME).mkdir()
    (tmp_path / ATTEMPTS_NAME / "old").touch()
    with attempts_folder(tmp_path):
        assert not (tmp_path / ATTEMPTS_NAME).exists()
        assert survive(tmp_path, "key", [{"id": "a"}], lambda rows: rows, lambda row: {}) == [{"id": "a"}]
        assert list((tmp_path / ATTEMPTS_NAME).iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def find(stage: FindFaces, names: list[str]) -> list[str]:
    data = [photo_bytes(index) for index in range(len(names))]
    table = arrow.table({"id": [pack_name(name) for name in names], "data": data})
    return [unpack_name(name) for name in stage(table).column("id").to_pylist()]


def test_of_rows_with_one_id_the_first_is_taken_however_often_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "shared_detector", lambda name: lambda pixels: [])
    stage = FindFaces(tmp_path, frozenset({"done.png"}), frozenset({"a.png"}))
    assert find(stage, ["a.png", "b.png", "a.png", "done.png"]) == ["a.png", "b.png"]
    assert find(stage, ["a.png", "b.png", "a.png", "done.png"]) == ["a.png", "b.png"]  # its worker died
    assert find(stage, ["c.png", "a.png"]) == ["c.png"]
    assert find(stage, ["done.png"]) == []


def test_faces_are_found_by_the_run_s_own_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = face_at(10, 10, 50)
    monkeypatch.setattr(faces, "shared_detector", lambda name: {"mine": lambda pixels: [mine]}[name])
    stage = FindFaces(tmp_path, settings=RunSettings(detector="mine"))
    (row,) = stage(arrow.table({"id": [pack_name("a.png")], "data": [photo_bytes()]})).to_pylist()
    assert [face.box for face in _unpack(row["faces"], row["reasons"]) or ()] == [mine.box]


def test_a_wrong_detector_is_an_error_before_any_worker_begins() -> None:
    with pytest.raises(ValueError, match="detector: expected one of mtcnn, centerface, scrfd"):
        run._refuse_mistakes(RunSettings(detector="nobody"))


def test_an_actor_gives_results_in_the_order_of_the_rows(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(5)]
    problem = '{"name": "1.png", "status": "error", "reason": "no", "faces": [], "notes": []}'
    table = arrow.table(
        {
            "id": [pack_name(name) for name in names],
            "data": [photo_bytes(index) for index in range(5)],
            "faces": [b""] * 5,
            "reasons": ["[]"] * 5,
            "problem": ["", problem, "", "", ""],
        }
    )
    found = Protect(FakePipeline, RunSettings(), tmp_path, None)(table)
    records = [parse_record(text) for text in found.column("record").to_pylist()]
    assert [record.name for record in records] == names
    assert [record.status for record in records] == ["protected", "error", *["protected"] * 3]


def write_tar(path: Path, members: list[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 1000
            archive.addfile(info, io.BytesIO(bytes(1000)))
    return path


def test_ids_are_read_beforehand(tmp_path: Path) -> None:
    table = arrow.table({"id": [3, 4], "image": [b"", b""]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(ids.parquet_ids(tmp_path / "a.parquet", "id")) == ["3", "4"]
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"b\.parquet: cannot be read"):
        list(ids.parquet_ids(tmp_path / "b.parquet", "id"))
    with pytest.raises(RunError, match="cannot be read"):
        list(ids.parquet_ids(tmp_path / "a.parquet", "name"))
    members = ["d/0.json", "d/0.png", "1.PNG", "1.jpg", "2.txt", "noending", "3.webp"]
    damaged: list[PhotoRecord] = []
    path = write_tar(tmp_path / "a.tar", members)
    assert list(ids.tar_ids(path, damaged)) == ["d/0.png", "1.PNG", "2", "3.webp"]
    assert damaged == []
    path.write_bytes(path.read_bytes()[:4000])  # in the data of the third file
    assert list(ids.tar_ids(path, damaged)) == ["d/0.png", "1.PNG"]
    assert damaged[0].name == "a.tar"
    assert damaged[0].status == "unreadable"
    assert damaged[0].reason.startswith("the archive is damaged after 2 photos (")
    odd = write_tar(tmp_path / "b.tar", ["a.png", "caf\udce9.png"])
    with pytest.raises(
        RunError, match=r"b\.tar: the name caf\?\.png is no UTF-8, which Ray needs; rename it"
    ):
        list(ids.tar_ids(odd, damaged))


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["a", "a.png", "a.jpg"], {"a.png": "a"}),  # a JPEG called a becomes a.jpeg
        (["a.png", "a", "a.png"], {"a": "a.png"}),
        (["A.png", "a.png"], {"a.png": "A.png"}),
        (["x/a.not-protected.png", "x/a.png"], {"x/a.png": "x/a.not-protected.png"}),
        (["a", "a.not-protected.png"], {"a.not-protected.png": "a"}),
        (["a.png", "a.not-protected"], {"a.not-protected": "a.png"}),
        (["e\u0301.png", "\u00c9.png"], {"\u00c9.png": "e\u0301.png"}),
        (["a.png", "a.png.jpeg", "b/a.png", "", "/", "../a"], {}),
    ],
)
def test_names_that_share_a_file_are_found(names: list[str], refused: dict[str, str]) -> None:
    assert ids.shared_targets(names) == {
        name: f"would be written to the same file as {first!r}; ids must differ"
        for name, first in refused.items()
    }


def relative(name: str, out: Path) -> list[str]:
    return [path.relative_to(out).as_posix() for path in possible_outputs(name, out)]


def test_where_a_result_may_lie(tmp_path: Path) -> None:
    assert relative("x/a.gif", tmp_path) == ["x/a.gif.png", "x/a.gif.not-protected.png"]
    assert relative("a", tmp_path)[:2] == ["a.png", "a.jpeg"]
    assert "a.not-protected.tiff" in relative("a", tmp_path)
    assert relative("../a", tmp_path) == relative("", tmp_path) == []
    assert relative("x/.dedim-tmp-1.png", tmp_path) == relative(".dedim-lock", tmp_path) == []


def file_record(name: str, **fields: Any) -> PhotoRecord:
    return PhotoRecord(name, "protected", **{"output": name, **fields})


def test_a_ray_run_refuses_files_that_no_run_has_written(tmp_path: Path) -> None:
    Manifest.start(tmp_path, {}).append([file_record("ours.png")])
    for name in ("ours.png", "bare.webp", "b.not-protected.png"):
        (tmp_path / name).write_bytes(b"somebody's")
    refuse_foreign_files(plan_rows(["ours.png", "new.png", "../bad"], tmp_path, {}, files=True), tmp_path)
    for name in ("bare", "b.png"):
        with pytest.raises(RunError, match=r"would be replaced, and no run that .* has written it"):
            refuse_foreign_files(plan_rows([name], tmp_path, {}, files=True), tmp_path)
        with Manifest.resume(tmp_path, {}).all_under_way([name]):  # a killed run may have written it
            refuse_foreign_files(plan_rows([name], tmp_path, {}, files=True), tmp_path)


def test_photos_are_under_way_until_the_run_ends_well(tmp_path: Path) -> None:
    manifest = Manifest.start(tmp_path, {})

    def stopped_after_one() -> None:
        with manifest.all_under_way({"a.png", "c.png"}):
            manifest.append([PhotoRecord("c.png", "protected")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_after_one()
    with Manifest.resume(tmp_path, {}).all_under_way({"b.png"}):
        assert names_under_way(tmp_path) == {"a.png", "b.png"}
    assert names_under_way(tmp_path) == {"a.png"}, "this run had other inputs: its file would be a stranger's"
    with Manifest.resume(tmp_path, {}).all_under_way({"a.png", "b.png"}):
        assert names_under_way(tmp_path) == {"a.png", "b.png"}
    assert not names_under_way(tmp_path)


def test_a_record_leaves_no_other_result_of_its_photo(tmp_path: Path) -> None:
    names = ["a.png", "a.not-protected.png", "b.png", "c.png", "c.jpeg", "d.png", "other.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"old or new")
    recorder = Recorder(Manifest.start(tmp_path, {}), tmp_path, frozenset({"a.png", "b.png", "c"}))
    new = [
        file_record("a.png"),
        PhotoRecord("b.png", "no_face"),
        file_record("c", output="c.jpeg"),
        PhotoRecord("d.png", "error", "shares a file"),
    ]
    assert recorder.record(new) == {record.name: record for record in new}
    assert sorted(path.name for path in tmp_path.glob("*.*g")) == ["a.png", "c.jpeg", "d.png", "other.png"]
    (tmp_path / "a.not-protected.png").mkdir()  # in place of what cannot be removed
    (record,) = recorder.record([file_record("a.png")]).values()
    assert (record.status, record.output) == ("error", None)
    assert record.reason.startswith("a result of an earlier run cannot be removed (")
    assert not (tmp_path / "a.png").exists()


def test_beside_parts_only_results_of_runs_are_removed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"old")
    recorder = Recorder(Manifest.start(tmp_path, {}), tmp_path, frozenset({"a.png", "b.png"}), {"a.png"})
    part = part_name("0" * 20, 2)
    new = [file_record("a.png", output=part), file_record("b.png", output=part)]
    assert [record.output for record in recorder.record(new).values()] == [part] * 2
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["b.png"]


def test_only_parts_that_are_recorded_whole_stand(tmp_path: Path) -> None:
    whole, torn = part_name("0" * 20, 2), part_name("1" * 20, 2)
    for part in (whole, torn):
        (tmp_path / part).write_bytes(b"")
    rows = {"a": whole, "b": whole, "c": torn, "d": part_name("2" * 20, 1)}
    records = {name: file_record(name, output=part) for name, part in rows.items()}
    plan = plan_rows([*rows, "e", "e"], tmp_path, records, files=False)
    assert plan.finished.keys() == {"a", "b"}
    assert plan.pending == {"c", "d", "e"}
    assert plan.repeated == {"e"}
    remove_torn_parts(tmp_path, records)
    assert [path.name for path in tmp_path.iterdir()] == [whole]


@pytest.mark.parametrize("output", ["files", "parquet"])
def test_a_name_that_is_no_unicode_goes_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any
) -> None:
    monkeypatch.setattr(faces, "shared_detector", lambda name: lambda pixels: [])
    source, out, name = tmp_path / "in", tmp_path / "out", os.fsdecode(b"caf\xe9.png")
    source.mkdir()
    out.mkdir()
    (source / "fine.png").write_bytes(photo_bytes())
    try:
        (source / name).write_bytes(photo_bytes())
    except OSError:
        pytest.skip("the file system takes only valid UTF-8")
    data = SimpleNamespace(from_items=lambda items: items)
    monkeypatch.setattr(sources, "import_ray_data", lambda: data)
    (source / "notes.txt").touch()
    rows = read_rows([source], out, 1)
    assert rows.ids == (name, "fine.png")
    assert rows.other_files == 1
    settings = RunSettings(seed=1, keep_times=True)
    os.utime(source / "fine.png", (1e9, 1e9))
    found = FindFaces(out, settings=settings)(arrow.Table.from_pylist(rows.rows))
    protected = Protect(FakePipeline, settings, out, None)(found)
    written = Write(out, output)(protected).column("record").to_pylist()
    assert [(record.name, record.status) for record in map(parse_record, written)] == [
        (name, "protected"),
        ("fine.png", "protected"),
    ]
    if output == "files":
        assert (out / name).is_file()
        assert (out / "fine.png").stat().st_mtime == pytest.approx(1e9, abs=2)  # file systems round
    else:
        (part,) = out.glob("part-*.parquet")
        assert parquet.read_table(part).column("id").to_pylist() == ["caf\\udce9.png", "fine.png"]


def test_rows_without_a_record_get_one_that_says_how_many_are_missing() -> None:
    records = {"a": PhotoRecord("a", "protected")}
    found = ids.absent_records(["a", "b", "c", "a", "d"], records, {"d": "shares a file"})
    assert [(record.name, record.status) for record in found] == [
        (name, "error") for name in ("a (again)", "b", "c", "d")
    ]
    reasons = [record.reason for record in found]
    assert reasons[0].startswith("another photo has the same id")
    assert reasons[1] == reasons[2]
    assert reasons[1].endswith("(2 missing in all)")
    assert reasons[3] == "shares a file"


class FakeRay:
    """Counts its starts; has as many processors as it is told, or two."""

    def __init__(self, cpus: int = 0) -> None:
        self.cpus, self.starts = cpus, list[dict[str, Any]]()

    def is_initialized(self) -> bool:
        return self.cpus > 0

    def init(self, **options: Any) -> None:
        self.cpus = options.get("num_cpus", 2)
        self.starts.append(options)

    def shutdown(self) -> None:
        self.cpus = 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    context = SimpleNamespace()
    data = SimpleNamespace(DataContext=SimpleNamespace(get_current=lambda: context))
    monkeypatch.setattr(run, "import_ray_data", lambda: data)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(ray: FakeRay, workers: int, accelerators: float = 0) -> SimpleNamespace:
        monkeypatch.setattr(run, "import_extra", lambda *_: ray)
        run._start_ray(workers, accelerators)
        return context

    return call


def test_ray_starts_here_with_a_place_beside_the_workers(start: Any) -> None:
    ray = FakeRay()
    context = start(ray, 2)
    assert ray.cpus == 3
    assert context.execution_no_progress_timeout_s == -1
    enough = FakeRay()
    start(enough, 1)
    assert [options.get("num_cpus") for options in enough.starts] == [None]


def test_a_cluster_without_enough_places_is_refused(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="has 2 CPUs, and 2 workers need 3; give --ray a smaller number"):
        start(FakeRay(2), 2)
    with pytest.raises(RunError, match="has 0 GPUs, and 2 workers need 2"):
        start(FakeRay(8), 2, accelerators=1)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunError, match="has 2 CPUs"):
        start(FakeRay(), 2)


def test_who_expects_an_album_is_told_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_start_ray", lambda *_: None)
    monkeypatch.setattr(run, "_stages", lambda *_: SimpleNamespace(iter_batches=lambda **_: iter(())))
    for folder, wanted, count, notes in (
        ("a", True, 2, (NO_ALBUM_ON_RAY,)),
        ("b", False, 2, ()),
        ("c", True, 1, ()),  # there is nobody to find it
    ):
        done = [PhotoRecord(f"{number}.png", "protected") for number in range(count)]
        source = SimpleNamespace(ids=[], rows=None, damaged=done, other_files=0)
        monkeypatch.setattr(run, "read_rows", lambda *_, source=source: source)
        result = run.run_ray([], tmp_path / folder, RunSettings(album=wanted), FakePipeline)
        assert result.notes == notes
        assert not result.settings.album
