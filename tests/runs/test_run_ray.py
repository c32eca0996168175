"""Ray Data with two workers here: python -m pytest -m ray tests/runs/test_run_ray.py (not in the default run)."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import fake_pipeline as fake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image
from ray_hook import KILLS_DECODER, KILLS_PIPELINE

from diffusers_dedim.images.files import decode_photo, read_photo
from diffusers_dedim.runs.albums import NO_ALBUM_ON_RAY
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.records import RunSettings
from diffusers_dedim.runs.run import FolderRun

pytestmark = [pytest.mark.ray, pytest.mark.enable_socket]
TESTS = Path(__file__).parents[1]


class DiesOnce(FakePipeline):
    """Kills its own process in the middle of its work, the first time any worker gets there."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker, self.done = marker, 0

    def _protect(self, pixels: np.ndarray, *rest: Any) -> Any:
        self.done += 1
        if self.done == 3:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._protect(pixels, *rest)


class DiesOfSome(FakePipeline):
    """Kills its own process whenever it gets such a photo, as a kernel with a bug would."""

    def _protect(self, pixels: np.ndarray, *rest: Any) -> Any:
        if tuple(pixels[0, 0]) == KILLS_PIPELINE:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._protect(pixels, *rest)


def blind_pipeline() -> Any:
    """A real pipeline of toy networks that must be told where the faces are; made where it is used."""
    from toys import toy_pipeline

    pipeline = toy_pipeline()

    def refuse(photo: Any) -> Any:
        raise AssertionError("the faces were found already")

    pipeline.face_detector = refuse
    return pipeline


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # the workers import this very module, for its pipelines
    paths = os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(TESTS.parent / "src")])
    # one worker each for two actors, and one for reading and writing
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            "worker_process_setup_hook": "ray_hook.install",
        },
    )
    yield ray
    ray.shutdown()


def run(inputs: list[Path], out: Path, load: Any = FakePipeline, **options: Any) -> Any:
    from diffusers_dedim.runs.ray.driver import run_ray

    settings = options.pop("settings", RunSettings(seed=1))
    return run_ray(inputs, out, settings, load, **{"workers": 2, "rows_at_a_time": 4, **options})


def photo_bytes(index: int, flag: tuple[int, int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo_array(flag or (90, 90, index))).save(buffer, "PNG")
    return buffer.getvalue()


def photo_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:02}.png").write_bytes(photo_bytes(index))
    return folder


def names_in_manifest(out: Path) -> list[str]:
    lines = [json.loads(line) for line in (out / MANIFEST_NAME).read_bytes().splitlines()]
    return [line["name"] for line in lines if line["kind"] == "photo"]


def written(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*.png"))


def test_a_killed_worker_loses_and_doubles_nothing(cluster, tmp_path: Path) -> None:
    source, marker = photo_folder(tmp_path / "in", 16), tmp_path / "died"
    result = run([source], tmp_path / "out", partial(DiesOnce, marker))
    expected = [f"{index:02}.png" for index in range(16)]
    assert marker.exists(), [record.reason for record in result.failures]
    assert len(result.protected) == 16
    assert result.notes == (NO_ALBUM_ON_RAY,)
    assert written(tmp_path / "out") == expected
    assert sorted(names_in_manifest(tmp_path / "out")) == expected
    for name in expected:
        before, after = read_photo(source / name).pixels, read_photo(tmp_path / "out" / name).pixels
        assert (after[16, 24] == before[16, 24] + 40).all()  # once, not twice


@pytest.mark.parametrize("table", [True, False], ids=["one block", "folder"])
def test_photos_that_kill_their_workers_take_no_other_down(cluster, tmp_path: Path, table: bool) -> None:
    flags = {2: KILLS_DECODER, 4: KILLS_PIPELINE, 7: KILLS_PIPELINE}
    names, out = [f"{index:02}.png" for index in range(9)], tmp_path / "out"
    photos = {name: photo_bytes(index, flags.get(index)) for index, name in enumerate(names)}
    if table:
        source = tmp_path / "photos.parquet"
        pq.write_table(pa.table({"id": names, "image": list(photos.values())}), source)
    else:
        source = tmp_path / "in"
        source.mkdir()
        for name, data in photos.items():
            (source / name).write_bytes(data)
    result = run([source], out, DiesOfSome)
    assert {record.name: record.reason for record in result.failures} == dict.fromkeys(
        (names[index] for index in flags), "its worker died each time"
    )
    assert written(out) == [name for index, name in enumerate(names) if index not in flags]
    assert sorted(names_in_manifest(out)) == names
    left = sorted(path.name for path in out.iterdir() if path.suffix != ".png")
    assert left == [MANIFEST_NAME]  # neither journals nor the lock


def test_a_real_pipeline_gets_its_faces_and_gives_what_a_folder_run_gives(cluster, tmp_path: Path) -> None:
    from toys import toy_pipeline

    source = tmp_path / "in"
    source.mkdir()
    portrait = Image.fromarray(pytest.importorskip("skimage.data").astronaut()).crop((96, 0, 352, 256))
    portrait.save(source / "one.png")
    pair = Image.new("RGB", (512, 256))
    pair.paste(portrait, (0, 0))
    pair.paste(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (256, 0))
    pair.save(source / "two.png")
    (source / "none.png").write_bytes(photo_bytes(0))
    settings = RunSettings(max_rounds=1, threshold=0.99, seed=1, album=False)
    alone = FolderRun([source], tmp_path / "alone", settings).execute(toy_pipeline())
    result = run([source], tmp_path / "out", blind_pipeline, settings=settings, workers=1)
    records = {record.name: record for record in result.records}
    assert result.notes == ()  # no album was asked for
    assert {name: record.status for name, record in records.items()} == {
        "none.png": "no_face",
        "one.png": "protected",
        "two.png": "protected",
    }
    assert [len(record.faces) for record in alone.records] == [0, 1, 2]
    for expected in alone.records:
        record = records[expected.name]
        assert (record.status, record.reason) == (expected.status, expected.reason)
        for face, other in zip(record.faces, expected.faces, strict=True):
            # processors of a cluster may add in another order
            assert face.box == pytest.approx(other.box, abs=1e-3)
            assert face.probability == pytest.approx(other.probability, abs=1e-4)
    for name in ("one.png", "two.png"):
        before, after, expected_pixels = (
            read_photo(folder / name).pixels.astype(int)
            for folder in (source, tmp_path / "out", tmp_path / "alone")
        )
        assert (after != before).any()
        assert abs(after - expected_pixels).max() <= 1  # a value on .5 may round the other way


def test_rows_that_share_an_id_or_a_file_overwrite_nothing(cluster, tmp_path: Path) -> None:
    ids, out = ["a.png", "b.png", "a.png", "c", "c.png"], tmp_path / "out"
    photos = [photo_bytes(index) for index in range(5)]
    pq.write_table(pa.table({"id": ids, "image": photos}), tmp_path / "photos.parquet")
    result = run([tmp_path / "photos.parquet"], out)
    assert {record.name for record in result.protected} == {"a.png", "b.png", "c"}
    assert {record.name: record.reason for record in result.failures} == {
        "a.png (again)": "another photo has the same id, and the first one is taken; ids must be unique",
        "c.png": "would be written to the same file as 'c'; ids must differ",
    }
    assert written(out) == ["a.png", "b.png", "c.png"]
    assert [read_photo(out / name).pixels[0, 0, 2] for name in written(out)] == [0, 1, 3]
    assert run([tmp_path / "photos.parquet"], out, resume=True).resumed == 3


def test_rows_that_cannot_be_read_are_missed(cluster, tmp_path: Path) -> None:
    for part in range(2):
        names = [f"{part}{index}.png" for index in range(3)]
        table = pa.table({"id": names, "image": [photo_bytes(index) for index in range(3)]})
        pq.write_table(table, tmp_path / f"{part}.parquet", compression="zstd", use_dictionary=False)
    broken = tmp_path / "1.parquet"
    column = pq.ParquetFile(broken).metadata.row_group(0).column(1)
    data = bytearray(broken.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 200] = bytes(200)
    broken.write_bytes(data)
    result = run([tmp_path / "0.parquet", broken], tmp_path / "out")
    # Ray may read both files in one task, which fails as a whole
    lost = {record.name: record.reason for record in result.failures}
    assert lost.keys() >= {"10.png", "11.png", "12.png"}
    assert len(result.records) == len(lost) + len(result.protected) == 6
    assert set(lost.values()) == {
        f"its worker died each time, or what holds it cannot be read ({len(lost)} missing in all)"
    }


def test_bad_photos_are_named_and_a_resume_does_only_what_is_missing(cluster, tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 6), tmp_path / "out"
    (source / "noface.png").write_bytes(photo_bytes(0, fake.NO_FACE))
    (source / "crash.png").write_bytes(photo_bytes(0, fake.CRASH))
    (source / "torn.png").write_bytes(photo_bytes(0)[:100])
    result = run([source], out)
    assert Counter(record.status for record in result.records) == {
        "protected": 6,
        "no_face": 1,
        "error": 1,
        "unreadable": 1,
    }
    (out / "03.png").unlink()
    again = run([source], out, resume=True)
    assert again.resumed == 6  # five photos and the one without a face
    assert written(out) == [f"{index:02}.png" for index in range(6)]


def test_parquet_in_and_out(cluster, tmp_path: Path) -> None:
    ids = [f"a/{index}" for index in range(10)] + ["../outside"]
    table = pa.table({"id": ids, "image": [photo_bytes(index) for index in range(11)]})
    pq.write_table(table, tmp_path / "photos.parquet")
    out = tmp_path / "out"
    result = run([tmp_path / "photos.parquet"], out, output="parquet")
    assert [record.reason for record in result.failures] == [
        "ValueError: the id '../outside' is no path below the output folder; give ids like folder/0001"
    ]
    parts = sorted(out.glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert sorted(row["id"] for row in rows) == ids[:10]
    assert all(decode_photo(row["image"]).pixels.shape == (32, 48, 3) for row in rows)
    # a part of which not every photo was recorded is done again, whole and once
    lines = (out / MANIFEST_NAME).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"a/0"' not in line]
    (out / MANIFEST_NAME).write_bytes(b"".join(kept))
    run([tmp_path / "photos.parquet"], out, output="parquet", resume=True)
    again = [row["id"] for part in out.glob("part-*.parquet") for row in pq.read_table(part).to_pylist()]
    assert sorted(again) == ids[:10]


def test_webdataset_in(cluster, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for index in range(5):
            data = photo_bytes(index)
            ending = "png" if index < 4 else "jpg"  # the other's column is empty then
            for name, content in ((f"{index:03}.{ending}", data), (f"{index:03}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    result = run([tmp_path / "photos.tar"], tmp_path / "out")
    assert len(result.protected) == 5
    assert written(tmp_path / "out") == [f"{index:03}.png" for index in range(4)]
    assert (tmp_path / "out" / "004.jpg").is_file()


KILLED = """
import os
import sys
sys.path[:0] = sys.argv[3:]
import time
from pathlib import Path
import ray
from fake_pipeline import FakePipeline
from diffusers_dedim.runs.ray import run_ray
from diffusers_dedim.runs.records import RunSettings
class Slow(FakePipeline):
    def __call__(self, photos, **keywords):
        time.sleep(0.5)
        return super().__call__(photos, **keywords)
paths = {"PYTHONPATH": os.pathsep.join(sys.argv[3:]), "OMP_NUM_THREADS": "1"}
ray.init(log_to_driver=False, runtime_env={"env_vars": paths})  # the cluster that RAY_ADDRESS names
run_ray([Path(sys.argv[1])], Path(sys.argv[2]), RunSettings(seed=1), Slow, workers=2, rows_at_a_time=2,
        on_done=lambda record: print(record.name, flush=True))
"""


def test_overwriting_takes_only_results_and_leaves_no_old_one(cluster, tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 3), tmp_path / "out"
    (source / "notes.txt").touch()
    run([source], out)
    (out / "03.png").write_bytes(b"my own")
    before = (out / MANIFEST_NAME).read_bytes()
    (source / "03.png").write_bytes(photo_bytes(3))
    for word in ("overwrite", "resume"):
        with pytest.raises(RunError, match=r"03\.png: would be replaced, and no run that"):
            run([source], out, **{word: True})
    assert (out / "03.png").read_bytes() == b"my own"
    assert (out / MANIFEST_NAME).read_bytes() == before
    (out / "03.png").unlink()
    (source / "01.png").write_bytes(photo_bytes(1, fake.NOT_REACHED))
    result = run([source], out, overwrite=True)
    assert [record.name for record in result.failures] == ["01.png"]
    assert written(out) == ["00.png", "02.png", "03.png"]
    assert result.other_files == 1


def test_a_name_that_is_no_unicode_takes_no_other_down(cluster, tmp_path: Path) -> None:
    source, out, name = photo_folder(tmp_path / "in", 3), tmp_path / "out", os.fsdecode(b"caf\xe9.png")
    try:
        (source / name).write_bytes(photo_bytes(4))
    except OSError:
        pytest.skip("the file system takes only valid UTF-8")
    assert len(run([source], out).protected) == 4
    assert name in written(out)
    assert run([source], out, resume=True).resumed == 4


def test_a_killed_run_goes_on(cluster, tmp_path: Path) -> None:
    source, out = photo_folder(tmp_path / "in", 20), tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(TESTS), str(TESTS.parent / "src")]
    address = cluster.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().endswith(b".png")
        process.kill()
    time.sleep(1)
    done = set(names_in_manifest(out))
    assert 0 < len(done) < 20
    result = run([source], out, resume=True)
    assert result.resumed >= len(done) - 2  # a torn last line is cut off
    assert sorted(names_in_manifest(out)) == written(out) == [f"{index:02}.png" for index in range(20)]


def test_what_does_not_go_together_is_refused(cluster, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "picture": [b""]}), tmp_path / "a.parquet")
    np.save(tmp_path / "x.npy", np.zeros(1))
    with pytest.raises(ValueError, match=r"expected a column of ids .* one of encoded photos"):
        run([tmp_path / "a.parquet"], tmp_path / "out")
    with pytest.raises(ValueError, match="not several kinds"):
        run([tmp_path / "a.parquet", tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        run([tmp_path], tmp_path / "out", workers=0)
    with pytest.raises(RunError, match="has 3 CPUs, and 3 workers need 4"):
        run([photo_folder(tmp_path / "in", 1)], tmp_path / "out", workers=3)
