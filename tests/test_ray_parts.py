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

from diffusers_dedim import faces
from diffusers_dedim.manifest import PhotoRecord
from diffusers_dedim.photo_jobs import RunError
from diffusers_dedim.ray import ids, run
from diffusers_dedim.ray.attempts import ATTEMPTS_NAME, attempts_folder, survive
from diffusers_dedim.ray.stages import FindFaces, Protect, parse_record
from diffusers_dedim.run_batch import RunSettings

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
    table = arrow.table({"id": names, "data": [photo_bytes(index) for index in range(len(names))]})
    return stage(table).column("id").to_pylist()


def test_of_rows_with_one_id_the_first_is_taken_however_often_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "detect_faces", lambda pixels: [])
    stage = FindFaces(tmp_path, frozenset({"done.png"}), frozenset({"a.png"}))
    assert find(stage, ["a.png", "b.png", "a.png", "done.png"]) == ["a.png", "b.png"]
    assert find(stage, ["a.png", "b.png", "a.png", "done.png"]) == ["a.png", "b.png"]  # its worker died
    assert find(stage, ["c.png", "a.png"]) == ["c.png"]
    assert find(stage, ["done.png"]) == []


def test_an_actor_gives_results_in_the_order_of_the_rows(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(5)]
    problem = '{"name": "1.png", "status": "error", "reason": "no", "faces": [], "notes": []}'
    table = arrow.table(
        {
            "id": names,
            "data": [photo_bytes(index) for index in range(5)],
            "faces": [b""] * 5,
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


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["a", "a.png", "a.jpg"], {"a.png": "a"}),  # a JPEG called a becomes a.jpeg
        (["a.png", "a", "a.png"], {"a": "a.png"}),
        (["A.png", "a.png"], {"a.png": "A.png"}),
        (["x/a.not-protected.png", "x/a.png"], {"x/a.png": "x/a.not-protected.png"}),
        (["a.png", "a.png.jpeg", "b/a.png", "", "/", "../a"], {}),
    ],
)
def test_names_that_share_a_file_are_found(names: list[str], refused: dict[str, str]) -> None:
    assert ids.shared_targets(names) == {
        name: f"would be written to the same file as {first!r}; ids must differ"
        for name, first in refused.items()
    }


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
