from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import face_at

from diffusers_dedim.faces import Face, align_face, find_any_turn, turn_back

Pixels = NDArray[np.uint8]
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])


def draw_face(photo: Pixels, face: Face) -> None:
    """Five dots of five colours."""
    for (x, y), colour in zip(face.landmarks.round().astype(int), COLOURS, strict=True):
        photo[y - 6 : y + 7, x - 6 : x + 7] = colour


class DotDetector:
    """Finds the dots: for sure where they are upright, else not, or with wrong points and less sure."""

    def __init__(self, wrong: float | None = None, sure: float = 0.9999) -> None:
        self.wrong, self.sure, self.sizes = wrong, sure, list[tuple[int, int]]()

    def __call__(self, photo: Pixels) -> list[Face]:
        self.sizes.append(photo.shape[:2])
        columns = np.flatnonzero(
            (photo != 128).any(axis=(0, 2))
        )  # grey columns part one picture from the next
        faces = []
        for part in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            for face in self._find(photo[:, part[0] : part[-1] + 1]):
                x0, y0, x1, y1 = face.box
                moved = face.landmarks + np.array([part[0], 0.0])
                faces.append(Face((x0 + part[0], y0, x1 + part[0], y1), moved, face.confidence))
        return faces

    def _find(self, photo: Pixels) -> list[Face]:
        apart = np.abs(photo[:, :, None].astype(int) - COLOURS).sum(3) < 120
        if not apart.any(axis=(0, 1)).all():
            return []
        points = np.array([np.argwhere(apart[..., dot]).mean(axis=0)[::-1] for dot in range(5)])
        size = float(np.ptp(points, axis=0).max()) * 2
        x, y = points.mean(axis=0) - size / 2
        eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
        upright = mouth[1] - eyes[1] > abs(mouth[0] - eyes[0]) and points[1, 0] > points[0, 0]
        if upright:
            return [Face((x, y, x + size, y + size), points, self.sure)]
        return [] if self.wrong is None else [replace(face_at(x, y, size), confidence=self.wrong)]


@pytest.fixture
def photo() -> Pixels:
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    draw_face(pixels, FACE)
    return pixels


FACE = face_at(100, 60, 160)


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("wrong", [None, 0.95, 0.998])
def test_a_face_is_found_at_any_quarter_turn(photo: Pixels, turn: int, wrong: float | None) -> None:
    turned = np.ascontiguousarray(np.rot90(photo, turn))
    (face,) = find_any_turn(turned, DotDetector(wrong))
    # dots are drawn at whole pixels, and found again on them
    np.testing.assert_allclose(turn_back(face.landmarks, turn, photo.shape), FACE.landmarks, atol=0.6)
    x0, y0, x1, y1 = face.box
    assert x0 < face.landmarks[:, 0].min() < face.landmarks[:, 0].max() < x1
    assert y0 < face.landmarks[:, 1].min() < face.landmarks[:, 1].max() < y1


def test_a_turned_face_is_aligned_upright(photo: Pixels) -> None:
    turned = np.ascontiguousarray(np.rot90(photo))
    crops = [align_face(pixels, find_any_turn(pixels, DotDetector())[0]).crop for pixels in (photo, turned)]
    # the same pixels in another order; positions are rounded to a hundredth of a pixel of hard edges
    assert float((crops[0] - crops[1]).abs().mean()) < 0.01


@pytest.mark.parametrize(
    ("turn", "shape"), [(turn, shape) for turn in range(4) for shape in ((4, 7), (6, 3))]
)
def test_points_of_a_turned_photo_are_turned_back(turn: int, shape: tuple[int, int]) -> None:
    photo = np.arange(shape[0] * shape[1]).reshape(shape)
    turned = np.rot90(photo, turn)
    rows, columns = np.indices(turned.shape)
    points = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    x, y = turn_back(points, turn, shape).T.astype(int)
    assert np.array_equal(photo[y, x], turned.ravel())


def test_an_upright_face_is_searched_in_full_once(photo: Pixels) -> None:
    detector = DotDetector(wrong=0.95)
    find_any_turn(photo, detector)
    assert detector.sizes == [(300, 400), (160, 120 + 160 + 120 + 3 * 16)]


def test_large_photos_are_searched_on_small_copies() -> None:
    sizes = []

    def detector(photo: Pixels) -> list[Face]:
        sizes.append(photo.shape[:2])
        return [FACE] if len(sizes) == 1 else []

    assert find_any_turn(np.zeros((600, 1920, 3), dtype=np.uint8), detector) == [FACE]
    assert sizes == [(600, 1920), (320, 100 + 320 + 100 + 3 * 16)]


@pytest.mark.parametrize("sure", [0.9, 0.96])
def test_an_unsure_finding_on_a_turned_photo_is_none(photo: Pixels, sure: float) -> None:
    turned = np.ascontiguousarray(np.rot90(photo))
    assert find_any_turn(turned, DotDetector(sure=sure)) == []


def test_an_upright_face_stays_where_a_turn_is_hardly_better(photo: Pixels) -> None:
    (face,) = find_any_turn(photo, DotDetector(wrong=0.9990, sure=0.998))
    np.testing.assert_allclose(face.landmarks, FACE.landmarks, atol=0.6)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_who_lies_beside_somebody_upright_is_found_too(turn: int) -> None:
    photo, lying = (np.zeros((200, width, 3), dtype=np.uint8) for width in (500, 200))
    draw_face(lying, face_at(20, 20, 150))
    photo[:, 300:] = np.rot90(lying, -turn)
    dots = DotDetector()
    standing = face_at(20, 20, 150)  # not drawn: found where the photo is upright

    def detector(pixels: Pixels) -> list[Face]:
        return [*([standing] if pixels.shape == photo.shape and pixels is photo else []), *dots(pixels)]

    left, right = find_any_turn(photo, detector)
    assert left is standing
    upright = turn_back(right.landmarks - (300, 0), 4 - turn, lying.shape)
    np.testing.assert_allclose(upright, face_at(20, 20, 150).landmarks, atol=0.6)


@pytest.mark.parametrize(("down", "sure", "count"), [(84, 0.99, 1), (84, 0.9995, 2), (140, 0.99, 2)])
def test_hair_over_an_upright_face_is_no_face_that_hangs_down(down: int, sure: float, count: int) -> None:
    photo = np.zeros((400, 300, 3), dtype=np.uint8)
    hanging = np.zeros((400, 300, 3), dtype=np.uint8)
    draw_face(hanging, face_at(70, 230, 150))
    photo[:] = np.rot90(hanging, 2)
    dots, upright = DotDetector(sure=sure), replace(face_at(70, down, 150), confidence=0.9997)

    def detector(pixels: Pixels) -> list[Face]:
        return [*([upright] if pixels is photo else []), *dots(pixels)]

    assert len(find_any_turn(photo, detector)) == count


def test_two_cheek_to_cheek_on_a_turned_photo_are_both_found() -> None:
    faces = [
        replace(face_at(60, 40, 120), confidence=0.9999),
        replace(face_at(145, 40, 120), confidence=0.98),
    ]  # 0.29 of each
    photo = np.zeros((300, 400, 3), dtype=np.uint8)
    photo[0, 0] = 1  # tells which way up it is

    def detector(pixels: Pixels) -> list[Face]:
        return faces if pixels[0, 0].any() and pixels.shape == photo.shape else []

    assert len(find_any_turn(np.rot90(photo).copy(), detector)) == 2


def test_of_two_findings_that_leave_no_doubt_the_upright_one_stays() -> None:
    photo = np.zeros((300, 300, 3), dtype=np.uint8)
    upright = replace(face_at(90, 90, 120), confidence=1.0)

    assert find_any_turn(photo, lambda _: [upright]) == [upright]
