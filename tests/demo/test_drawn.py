"""A face in a box that was drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.data import astronaut, brick
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo.drawn import REASON, face_in_box
from diffusers_dedim.demo.handlers import Upload
from diffusers_dedim.demo.texts import DemoError
from diffusers_dedim.faces import FaceDetector, detect_faces

PHOTO = np.zeros((200, 300, 3), np.uint8)


def test_what_is_found_in_the_box_comes_back_in_px_of_the_photo() -> None:
    """The piece around the box is searched enlarged: a face of 64 px in it is one of 40 in the photo."""
    seen: list[tuple[int, ...]] = []

    def detect(piece: np.ndarray) -> list:
        seen.append(piece.shape)
        x, y = 4 * 0.6 * 40, 4 * 0.6 * 40  # the corner of the box
        return [toy_face(x, y, 160), toy_face(0, 0, 60)]

    face = face_in_box(PHOTO, (140, 100, 100, 60), detect)  # corners in any order
    assert seen[0][:2] == (pytest.approx(352, abs=6), pytest.approx(352, abs=6))
    assert face.box == pytest.approx((100, 60, 140, 100), abs=1)
    assert not face.reason
    np.testing.assert_allclose(face.landmarks, toy_face(100, 60, 40).landmarks, atol=1)


def test_what_lies_elsewhere_or_is_of_another_size_is_not_the_face() -> None:
    for found in ([], [toy_face(0, 0, 60)], [toy_face(120, 120, 40)], [toy_face(0, 0, 352)]):
        face = face_in_box(PHOTO, (100, 60, 140, 100), lambda _, found=found: found)
        assert face.reason == REASON
        assert face.box == (100, 60, 140, 100)
        assert (face.landmarks > (100, 60)).all()
        assert (face.landmarks < (140, 100)).all()


@pytest.mark.parametrize("box", [(5, 5, 9, 60), (5, 5, 60, 9), (400, 5, 500, 60), (float("nan"), 5, 60, 60)])
def test_a_box_that_is_too_small_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(
        ValueError, match="The box is too small: draw it around the whole face, at least 8 pixels"
    ):
        face_in_box(PHOTO, box, lambda _: [])


def test_a_real_face_on_its_side_and_a_wall() -> None:
    keen = FaceDetector(min_confidence=0.5, any_turn=True)
    (known,) = detect_faces(astronaut())
    x0, y0, x1, y1 = known.box
    face = face_in_box(astronaut(), (x0 - 9, y0 + 6, x1 + 4, y1 - 8), keen)
    assert abs(face.landmarks - known.landmarks).max() < 0.05 * known.size
    turned = np.rot90(astronaut()).copy()
    face = face_in_box(turned, (y0, 511 - x1, y1, 511 - x0), keen)
    left, right = face.landmarks[:2]
    assert abs(right - left)[1] > 5 * abs(right - left)[0]  # one eye above the other
    wall = np.repeat(brick()[:300, :300, None], 3, axis=2)
    assert face_in_box(wall, (100, 100, 180, 190), keen).reason == REASON


def test_on_the_page_it_is_a_person_of_its_own(tmp_path) -> None:
    from PIL import Image

    Image.fromarray(PHOTO).save(tmp_path / "me.png")
    small = toy_face(10, 10, 20)
    handlers = toy_handlers(lambda piece: [small] if piece.shape == PHOTO.shape else [])
    opened = handlers.open([Upload(str(tmp_path / "me.png"))])
    assert [person.small for person in opened.people] == [True]
    opened, new, words = handlers.draw(opened, 0, (0.5, 0.5, 0.8, 0.9))
    assert words == f"Added as person 1: {REASON}, so it will be blurred."
    assert [(person.faces, person.small) for person in opened.people] == [
        (((0, 1),), False),
        (((0, 0),), True),
    ]
    assert (new, opened.tags(0)) == (0, ["small", "1"])
    assert handlers.draw(opened, 0, (0.1, 0.5, 0.4, 0.9))[1] == 1
    with pytest.raises(DemoError, match="The box is too small"):
        handlers.draw(opened, 0, (0.5, 0.5, 0.5, 0.9))
