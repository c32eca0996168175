"""Inputs as they lie about on people's disks."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_pipeline import FakePipeline, photo_array
from PIL import Image

from diffusers_dedim.runs.jobs import RunError, plan_jobs
from diffusers_dedim.runs.ray.sources import follow
from diffusers_dedim.runs.run import FolderRun


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.fromarray(photo_array()).save(tmp_path / "in" / "photo.png")
    return tmp_path / "in"


def test_a_link_to_itself_is_listed_and_the_others_are_protected(source: Path, tmp_path: Path) -> None:
    (source / "self.jpg").symlink_to(source / "self.jpg")
    (source / "there.jpg").symlink_to(source / "back.jpg")
    (source / "back.jpg").symlink_to(source / "there.jpg")
    result = FolderRun([source], tmp_path / "out").execute(FakePipeline())
    assert [record.name for record in result.protected] == ["photo.png"]
    assert {record.name: record.status for record in result.failures} == dict.fromkeys(
        ("self.jpg", "there.jpg", "back.jpg"), "unreadable"
    )
    assert all("cannot be opened" in record.reason for record in result.failures)
    assert follow(source / "self.jpg").name == "self.jpg"  # what the workers of Ray are given


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("https://example.org/me.jpg", "is an address, and only files are read; save the photo"),
        ("file:///home/me.jpg", "is an address"),
        ("s3://bucket/photos", "is an address"),
        ("gone.jpg", "gone.jpg: no such file or folder"),
        ("no:such/file.jpg", "no such file or folder"),
    ],
)
def test_what_is_no_file_is_told_by_its_kind(given: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=text):
        plan_jobs([Path(given)], tmp_path / "out")


def test_a_link_that_leads_nowhere_is_called_so(source: Path, tmp_path: Path) -> None:
    for name, target in (("self.jpg", "self.jpg"), ("broken.jpg", "gone.jpg")):
        (source / name).symlink_to(source / target)
        with pytest.raises(RunError, match=f"{name}: a link that leads to no file or folder"):
            plan_jobs([source / name], tmp_path / "out")
