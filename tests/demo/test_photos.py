from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from fake_pipeline import photo_array
from PIL import Image
from toy_demo import toy_face

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.people import OpenedPhotos, find_people
from diffusers_dedim.demo.photos import (
    SHOWN_SIDE,
    OpenedPhoto,
    difference,
    face_at,
    mark_faces,
    open_photo,
    shown_size,
)
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.faces import Face

TWO = [toy_face(20, 30, 60), toy_face(120, 40, 50)]


def photo_of(*faces: Face, size: tuple[int, int] = (200, 120)) -> OpenedPhoto:
    file = BytesIO()
    Image.fromarray(photo_array(size=size)).save(file, "PNG")
    return open_photo(file.getvalue(), lambda _: faces)


def test_all_faces_are_found_and_the_small_ones_told() -> None:
    opened = photo_of(*TWO, toy_face(180, 0, 20), toy_face(150, 0, 20))
    assert len(opened.faces) == 4
    photos = OpenedPhotos((opened,), find_people([opened]))
    assert texts.people_found(photos) == (
        "2 people. Untick whom to leave as they are. 2 faces are too small to be changed, under 40 pixels, and will be "
        "blurred."
    )
    assert texts.people_labels(photos) == ["Person 1", "Person 2", "2 small, blurred"]


def test_a_click_finds_the_face_below_it_on_the_shown_copy() -> None:
    opened = photo_of(toy_face(100, 100, 200), toy_face(150, 150, 60), size=(SHOWN_SIDE * 2, 600))
    assert opened.shown.size == shown_size(opened.shape) == (SHOWN_SIDE, 300)
    assert face_at(opened, 55, 55) == 0
    assert face_at(opened, 90, 90) == 1  # of two boxes the smaller
    assert face_at(opened, 300, 20) is None


def test_chosen_faces_are_drawn_otherwise_than_those_left_out() -> None:
    opened = photo_of(*TWO)
    both, one, begun = (
        np.asarray(mark_faces(opened, ["1", "2"], *more))
        for more in ([[0, 1]], [[0]], [[0, 1], (5.0, 100.0)])
    )
    assert (begun[80:, :30] != both[80:, :30]).any()  # where a box begins that is being drawn
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


def test_a_photo_without_a_face_may_get_one_drawn_by_hand() -> None:
    opened = photo_of()
    assert texts.people_found(OpenedPhotos((opened,), ())) == (
        "No face was found. If you see one, draw a box around it below."
    )
    pixels = photo_array(size=(200, 120))
    more = opened.with_face(TWO[0], pixels)
    assert (len(more.faces), len(more.squares)) == (1, 1)


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
def test_a_file_that_is_no_photo(content: bytes, text: str) -> None:
    with pytest.raises(UnreadablePhotoError) as caught:
        open_photo(content, lambda _: TWO)
    assert texts.explain(caught.value) == text


@pytest.mark.parametrize("size", [(7000, 4200), (10000, 6000)])  # over the limit, and over Pillow's own guard
def test_60_megapixels_are_too_large(size: tuple[int, int]) -> None:
    file = BytesIO()
    Image.new("1", size).save(file, "PNG")  # one bit a pixel: quick to write
    with pytest.raises(UnreadablePhotoError) as caught:
        open_photo(file.getvalue(), lambda _: TWO)
    megapixels = size[0] * size[1] // 1_000_000
    assert texts.explain(caught.value) == (
        f"This file could not be used: the photo is too large ({megapixels} megapixels). This page takes up to 25 "
        "megapixels; make it smaller first, or use the command dedim run, which takes up to 300."
    )
