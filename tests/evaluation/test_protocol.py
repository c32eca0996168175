from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.evaluation.data import check_readable, hash_records, read_photos


def encode(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[tuple[object, str, str]]) -> Path:
    table = {
        "image": [
            {"bytes": image, "path": None} if isinstance(image, bytes) else image for image, _, _ in rows
        ],
        "person": [person for _, person, _ in rows],
        "role": [role for _, _, role in rows],
    }
    pq.write_table(pa.table(table), path)
    return path


ROWS = [
    (encode(1), "a", "probe"),
    (encode(2), "b", "gallery"),
    (encode(3), "a", "gallery"),
    (encode(4), "b", "probe"),
]


def test_reads_a_parquet_file_in_its_order(tmp_path: Path) -> None:
    protocol = read_protocol(write(tmp_path / "p.parquet", ROWS))
    assert [record.person for record in protocol.probes] == ["a", "b"]
    assert [record.person for record in protocol.gallery] == ["b", "a"]
    photo = protocol.gallery[0].read_photo()
    assert photo.shape == (4, 6, 3)
    assert photo.dtype == np.uint8
    assert photo[0, 0].tolist() == [2, 0, 0]
    assert [record.person for record in protocol.take_probes(1).probes] == ["a"]
    assert protocol.take_probes(1).gallery == protocol.gallery


def test_people_may_be_numbers_from_nought_on(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    images = [{"bytes": encode(value), "path": f"img_000{value}.jpg"} for value in (1, 2, 3)]
    roles = ["probe", "gallery", "gallery"]
    pq.write_table(pa.table({"image": images, "person": [0, 0, 1], "role": roles}), path)
    assert [record.person for record in read_protocol(path).gallery] == ["0", "1"]
    pq.write_table(pa.table({"image": images, "person": [float("nan")] * 3, "role": roles}), path)
    assert {record.person for record in read_protocol(path).gallery} == {
        "img"
    }  # nobody is named: by the path


def test_reads_a_file_written_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (6, 4), (value, 0, 0)) for value in (1, 2)]
    columns = {"image": images, "person": ["a", "a"], "role": ["probe", "gallery"]}
    features = datasets.Features(
        image=datasets.Image(), person=datasets.Value("string"), role=datasets.Value("string")
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "d.parquet")
    assert read_protocol(tmp_path / "d.parquet").gallery[0].read_photo()[0, 0].tolist() == [2, 0, 0]


def test_reads_a_folder_in_sorted_order(tmp_path: Path) -> None:
    for name in (
        "probe/b/1.png",
        "probe/a/1.png",
        "gallery/b/2.png",
        "gallery/a/2.png",
        "gallery/a/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(7))
    protocol = read_protocol(tmp_path)
    assert [record.person for record in protocol.probes] == ["a", "b"]
    assert len(protocol.gallery) == 2
    assert protocol.probes[0].read_photo()[0, 0].tolist() == [7, 0, 0]


def test_hash_changes_with_photos_and_order(tmp_path: Path) -> None:
    records = read_protocol(write(tmp_path / "p.parquet", ROWS)).gallery
    assert hash_records(records) == hash_records(list(records))
    assert hash_records(records) != hash_records(records[::-1])


def test_a_probe_without_a_mate_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", [*ROWS, (encode(5), "lonely", "probe")])
    with pytest.raises(
        ValueError, match=r"1 probe\(s\) without a gallery image .*'lonely' \(p\.parquet row 4\)"
    ):
        read_protocol(path)


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*none\.parquet"):
        read_protocol(tmp_path / "none.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.parquet: expected a parquet file or a folder"):
        read_protocol(tmp_path / "junk.parquet")
    pq.write_table(pa.table({"image": [b""], "name": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: column\(s\) \['person', 'role'\] missing"):
        read_protocol(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"'role' must hold 'probe' or 'gallery', got {'query': 1}"):
        read_protocol(write(tmp_path / "r.parquet", [*ROWS, (encode(1), "a", "query")]))
    with pytest.raises(ValueError, match=r"t\.parquet row 0: column 'image' must hold the encoded photo"):
        read_protocol(write(tmp_path / "t.parquet", [("photo.jpg", "a", "probe")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no photo with the role 'probe'"):
        read_protocol(tmp_path / "empty")


def test_an_unreadable_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    protocol = read_protocol(write(tmp_path / "p.parquet", [*ROWS, (b"broken", "a", "gallery")]))
    with pytest.raises(UnreadablePhotoError, match=r"p\.parquet row 4 \(gallery of 'a'\): not a photo"):
        protocol.gallery[-1].read_photo()


def test_limits_are_checked(tmp_path: Path) -> None:
    protocol = read_protocol(write(tmp_path / "p.parquet", ROWS))
    for limit in (0, 3):
        with pytest.raises(ValueError, match=f"limit: expected 1 to 2 probes, got {limit}"):
            protocol.take_probes(limit)


def test_every_unreadable_photo_is_told_at_once(tmp_path: Path) -> None:
    rows = [*ROWS, (b"no photo", "b", "probe"), (b"", "a", "gallery")]
    protocol = read_protocol(write(tmp_path / "e.parquet", rows))
    check_readable(protocol.gallery[:2])
    with pytest.raises(UnreadablePhotoError) as raised:
        check_readable([*protocol.probes, *protocol.gallery])
    text = str(raised.value)
    assert text.startswith("data: 2 of 6 photos cannot be read: e.parquet row 4 (probe of 'b'): ")
    assert "; e.parquet row 5 (gallery of 'a'): " in text
    assert text.endswith("Replace them or leave them out; nothing was measured with them.")


def test_photos_without_roles(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [{"bytes": encode(1), "path": None}], "person": ["x"]}), tmp_path / "t.parquet"
    )
    (tmp_path / "f" / "y").mkdir(parents=True)
    (tmp_path / "f" / "y" / "1.png").write_bytes(encode(2))
    (tmp_path / "f" / "z.png").write_bytes(encode(3))
    assert [record.person for record in read_photos(tmp_path / "t.parquet")] == ["x"]
    assert sorted(record.person for record in read_photos(tmp_path / "f")) == ["y", "z"]
    named = [{"bytes": encode(1), "path": "Abel_Pacheco_0004.jpg"}, {"bytes": encode(1), "path": None}]
    pq.write_table(pa.table({"image": named[:1]}), tmp_path / "lfw.parquet")
    assert [record.person for record in read_photos(tmp_path / "lfw.parquet")] == ["Abel_Pacheco"]
    pq.write_table(pa.table({"image": named}), tmp_path / "who.parquet")
    with pytest.raises(ValueError, match=r"who\.parquet row 1: no column 'person' and no image path"):
        read_photos(tmp_path / "who.parquet")
    with pytest.raises(FileNotFoundError, match="targets: there is no file or folder"):
        read_photos(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="targets: there is no photo in"):
        read_photos(tmp_path / "empty")
