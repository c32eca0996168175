from __future__ import annotations

import numpy as np
import pytest
from toys import face_at

from diffusers_dedim.faces import Face
from diffusers_dedim.video.looks import Looks

SIZE = (480, 640)
KNOWN = [face_at(40, 200, 60)]


class Recording:
    """A detector that finds a face in the middle of whatever it gets, and remembers the sizes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: np.ndarray) -> list[Face]:
        self.shapes.append(pixels.shape[:2])
        height, width = pixels.shape[:2]
        return [face_at(width / 2 - 30, height / 2 - 30, 60)]


@pytest.fixture
def detector() -> Recording:
    return Recording()


def noisy(seed: int, place: tuple[int, int] | None = None) -> np.ndarray:
    """Grey with the noise of a camera, and something 50 px large at a place (x, y)."""
    pixels = np.random.default_rng(seed).normal(100, 2.5, (*SIZE, 3))
    if place is not None:
        x, y = place
        pixels[y : y + 50, x : x + 50] += 12
    return pixels.round().astype(np.uint8)


def test_a_still_picture_is_searched_around_known_faces_and_seldom_as_a_whole(detector: Recording) -> None:
    looks = Looks(detector)
    found = [looks(noisy(index), None if index == 0 else KNOWN) for index in range(11)]
    whole = [shape == SIZE for shape in detector.shapes]
    assert whole == [True, False, False, False, False] * 2 + [True]
    height, width = detector.shapes[1]
    # the face and as much on each side, but for the picture's edge; at five eighths, in which 32 px are 20
    assert (height, width) == (192 * 5 / 8, 160 * 5 / 8)
    # where it was found, in px of the whole picture
    x0, y0, x1, y1 = found[1][0].box
    assert (x1 - x0, y1 - y0) == (96, 96)
    assert (x0 + x1, y0 + y1) == pytest.approx((160.6, 448.6))
    assert np.allclose(found[1][0].landmarks, face_at(x0 + 0.3, y0 + 0.3, 96).landmarks, atol=1)


def test_what_changed_is_searched_until_it_was_seen(detector: Recording) -> None:
    looks = Looks(detector)
    looks(noisy(0))
    looks(noisy(1, (200, 230)), KNOWN)  # somebody new
    looks(noisy(2, (200, 230)), KNOWN)  # still there
    around, still = detector.shapes[1:]
    assert around[1] > still[1]
    assert around != SIZE
    looks(noisy(3, (560, 20)), KNOWN)  # at the other end: no part is worth the while, but it may be smaller
    assert detector.shapes[-1] == (300, 400)
    looks(noisy(4, (560, 20)), [face_at(560, 20, 36)])  # a small face that is known needs all its pixels
    assert detector.shapes[-1][1] >= 64


def test_nothing_known_and_nothing_new_is_not_searched(detector: Recording) -> None:
    looks = Looks(detector)
    looks(noisy(0))
    assert looks(noisy(1), []) == []
    assert len(detector.shapes) == 1


@pytest.mark.parametrize("other", [(160, 300), (480, 600)])
def test_small_pictures_and_other_sizes_are_searched_as_a_whole(
    detector: Recording, other: tuple[int, int]
) -> None:
    looks = Looks(detector)
    looks(noisy(0)[: other[0], : other[1]])
    looks(noisy(1)[:160, :300], KNOWN)
    assert detector.shapes[-1] == (160, 300)
