from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_pipeline import photo_array
from PIL import Image
from toy_demo import toy_face

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.photos import (
    SHOWN_SIDE,
    difference,
    face_at,
    mark_faces,
    open_photo,
    shown,
    shown_size,
)
from diffusers_dedim.errors import NoFaceError, UnreadablePhotoError

TWO = [toy_face(20, 30, 60), toy_face(120, 40, 50)]


def saved(folder: Path, size: tuple[int, int] = (200, 120), name: str = "photo.png") -> Path:
    Image.fromarray(photo_array(size=size)).save(folder / name)
    return folder / name


def test_all_faces_are_found_and_the_small_ones_told(tmp_path: Path) -> None:
    opened = open_photo(saved(tmp_path), lambda _: [*TWO, toy_face(180, 0, 20)])
    assert len(opened.faces) == 3
    assert (opened.everybody, opened.small) == ([0, 1, 2], [2])
    assert texts.face_list(opened) == (
        "3 faces were found. One is under 40 pixels, too small to be changed, and will be blurred. Click on a face to "
        "leave it out; click again to take it in."
    )


def test_a_click_finds_the_face_below_it_on_the_shown_copy(tmp_path: Path) -> None:
    opened = open_photo(
        saved(tmp_path, (SHOWN_SIDE * 2, 600)), lambda _: [toy_face(100, 100, 200), toy_face(150, 150, 60)]
    )
    assert shown(opened.photo.pixels).size == shown_size(opened.photo.pixels) == (SHOWN_SIDE, 300)
    assert face_at(opened, 55, 55) == 0
    assert face_at(opened, 90, 90) == 1  # of two boxes the smaller
    assert face_at(opened, 300, 20) is None


def test_chosen_faces_are_drawn_otherwise_than_those_left_out(tmp_path: Path) -> None:
    opened = open_photo(saved(tmp_path), lambda _: TWO)
    both, one = np.asarray(mark_faces(opened, [0, 1])), np.asarray(mark_faces(opened, [0]))
    assert both.shape == one.shape == (120, 200, 3)
    assert (both[:, 110:] != one[:, 110:]).any()
    np.testing.assert_array_equal(both[:, :100], one[:, :100])


def test_the_difference_is_grey_where_nothing_changed() -> None:
    before = photo_array(size=(40, 30))
    after = before.copy()
    after[5, 5] = before[5, 5] + 3
    picture = np.asarray(difference(before, after))
    assert (picture[0, 0] == 128).all()
    assert (picture[5, 5] == 128 + 3 * 8).all()


def test_a_photo_without_a_face(tmp_path: Path) -> None:
    with pytest.raises(NoFaceError) as caught:
        open_photo(saved(tmp_path), lambda _: [])
    text = "No face was found in this photo, so there is nothing to protect."
    assert texts.explain(caught.value).startswith(text)
    assert open_photo(saved(tmp_path), lambda _: [toy_face(1, 1, 20)]).small == [0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"Dear diary",
            "This file could not be used: not a photo in a known format (JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC, AVIF).",
        ),
        (b"", "This file could not be used: the file is empty (0 bytes)."),
    ],
)
def test_a_file_that_is_no_photo(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "secret-name.png").write_bytes(content)
    with pytest.raises(UnreadablePhotoError) as caught:
        open_photo(tmp_path / "secret-name.png", lambda _: TWO)
    assert texts.explain(caught.value) == text
    assert "secret-name" not in str(caught.value)


@pytest.mark.parametrize("size", [(7000, 4200), (10000, 6000)])  # over the limit, and over Pillow's own guard
def test_60_megapixels_are_too_large(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "large.png")  # one bit a pixel: quick to write
    with pytest.raises(UnreadablePhotoError) as caught:
        open_photo(tmp_path / "large.png", lambda _: TWO)
    megapixels = size[0] * size[1] // 1_000_000
    assert texts.explain(caught.value) == (
        f"This file could not be used: the photo is too large ({megapixels} megapixels). This page takes up to 25 "
        "megapixels; make it smaller first, or use the command dedim run, which takes up to 134."
    )
