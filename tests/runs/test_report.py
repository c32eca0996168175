from __future__ import annotations

import base64
import re
import tracemalloc
from io import BytesIO
from pathlib import Path

import fake_pipeline as fake
import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image

from diffusers_dedim.runs import report
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.records import RunResult, RunSettings
from diffusers_dedim.runs.report import FACE_SIDE, PHOTO_SIDE, render_report, write_report
from diffusers_dedim.runs.run import FolderRun

EVIL = "<script>alert(1)&.png"


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(photo_array(size=(2000, 1000))).save(source / "wide.jpg")
    for name, flag in ((EVIL, (90, 90, 90)), ("none.png", fake.NO_FACE), ("left.png", fake.NOT_REACHED)):
        Image.fromarray(photo_array(flag)).save(source / name)
    settings = RunSettings(threshold=0.45, allow_partial=True)
    return FolderRun([source], tmp_path / "out", settings).execute(FakePipeline())


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(BytesIO(base64.b64decode(data))) for data in found]


def test_page_holds_counts_failures_scores_and_settings(result: RunResult) -> None:
    page = write_report(result).read_text()
    assert "<h1>2 of 4 photos protected</h1>" in page
    assert "no face was found, so nothing was protected<" in page
    assert "NOT PROTECTED: 1 of 1 faces still match (similarity 0.40)" in page
    assert ">-0.10</td>" in page
    assert '<th>threshold</th><td class="name">0.45</td>' in page
    assert "Keep this page private" in page
    assert "median" in page.lower()


def test_page_loads_nothing_from_elsewhere(result: RunResult) -> None:
    page = "".join(render_report(result))
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import""", page)
    assert all("".join(address).startswith("data:") for address in addresses)
    assert "http" not in page


def test_file_names_are_escaped(result: RunResult) -> None:
    page = "".join(render_report(result))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&amp;.png" in page


def test_pictures_are_small_and_in_pairs(result: RunResult) -> None:
    sizes = [picture.size for picture in pictures("".join(render_report(result)))]
    # three written photos (one partly), each after + before, and each one face before + after
    assert len(sizes) == 3 * 4
    assert sizes.count((FACE_SIDE, FACE_SIDE)) == 6
    assert sizes.count((PHOTO_SIDE, PHOTO_SIDE // 2)) == 2


def test_photo_that_has_gone_is_left_out(result: RunResult) -> None:
    (result.out / "wide.jpg").unlink()
    assert len(pictures("".join(render_report(result)))) == 2 * 4


def test_page_is_written_where_asked(result: RunResult, tmp_path: Path) -> None:
    assert write_report(result, tmp_path / "other.html") == tmp_path / "other.html"
    assert not (result.out / "report.html").exists()


def test_somebody_elses_page_is_not_replaced_and_a_report_is(result: RunResult, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for content in (b"", b"<!DOCTYPE html><title>Holiday</title>"):
        page.write_bytes(content)
        with pytest.raises(
            RunError, match=r"page\.html: is no report of a run and would be replaced; move it"
        ):
            write_report(result, page)
        assert page.read_bytes() == content
    assert write_report(result) == write_report(result)


def many_photos(tmp_path: Path, count: int) -> RunResult:
    source = tmp_path / "many"
    source.mkdir(parents=True)
    for index in range(count):
        # not plain, so that the pictures have some size
        Image.effect_noise((400, 300), 60).convert("RGB").save(source / f"{index:02}.jpg")
    return FolderRun([source], tmp_path / "many-out").execute(FakePipeline())


def test_memory_is_flat_in_the_number_of_photos(tmp_path: Path) -> None:
    """The page is handed out and written while later photos have not been read yet."""
    result = many_photos(tmp_path, 30)
    tracemalloc.start()
    try:
        size = write_report(result).stat().st_size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 30 * 200_000
    # one photo: four pictures as bytes and as text, and the text of the page around them; Pillow's pixels do not count
    assert peak < size / 2


def test_a_long_page_shows_the_first_photos_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PHOTOS_SHOWN", 2)
    page = "".join(render_report(many_photos(tmp_path, 3)))
    assert len(pictures(page)) == 2 * 4
    assert "Pictures of the first 2 of 3 written photos." in page
    assert MANIFEST_NAME in page
    assert "<h1>3 of 3 photos protected</h1>" in page
    monkeypatch.setattr(report, "PHOTOS_SHOWN", 3)
    assert "Pictures of the first" not in "".join(render_report(many_photos(tmp_path / "again", 3)))


def test_a_page_that_cannot_be_written_leaves_nothing(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report, "_photo_pair", full)
    before = sorted(result.out.rglob("*"))
    with pytest.raises(OSError, match="disk full"):
        write_report(result)
    assert sorted(result.out.rglob("*")) == before
