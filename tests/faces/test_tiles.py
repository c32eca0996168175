from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusers_dedim.faces import tiles
from diffusers_dedim.faces.tiles import Found, search_pieces, shrink

# Squares of one colour stand for faces: (x, y, side).
FACES = [(5, 5, 30), (590, 380, 24), (1180, 300, 20), (300, 200, 250), (595, 100, 44), (100, 560, 40)]


def picture_of(faces: list[tuple[int, int, int]]) -> np.ndarray:
    picture = np.zeros((620, 1210, 3), np.uint8)
    for number, (x, y, side) in enumerate(faces):
        picture[y : y + side, x : x + side] = 40 * (number + 1)
    return picture


def find_squares(picture: np.ndarray, smallest: float) -> Found:
    """Each square, or the piece of it that is there, if it is large enough."""
    boxes = []
    for number in range(len(FACES)):
        rows, columns = np.nonzero(np.abs(picture[..., 0].astype(int) - 40 * (number + 1)) < 3)
        if len(rows) and max(np.ptp(rows), np.ptp(columns)) + 1 >= smallest:
            boxes.append([columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5])
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    points = found.reshape(-1, 2, 2).mean(axis=1, keepdims=True).repeat(5, axis=1)
    return found, points, np.full(len(found), 0.99)


def test_small_and_large_faces_are_found_whole_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MOST_AT_ONCE", 200_000)  # a picture of 1210 x 620 is four times that
    monkeypatch.setattr(tiles, "_TILE", 420)
    # no mixed colours between the squares
    monkeypatch.setattr(
        tiles, "shrink", lambda photo, size: np.asarray(Image.fromarray(photo).resize(size, 0))
    )
    seen: list[int] = []

    def search(picture: np.ndarray, smallest: float) -> Found:
        seen.append(picture.shape[0] * picture.shape[1])
        return find_squares(picture, smallest)

    boxes, points, scores = search_pieces(picture_of(FACES), 16, search)
    assert max(seen) <= 200_000
    assert len(seen) > 4
    assert len(boxes) == len(points) == len(scores)
    for x, y, side in FACES:
        wanted = np.array([x, y, x + side, y + side]) - 0.5
        distances = np.abs(boxes - wanted).max(axis=1)
        assert distances.min() <= 3, (x, y, side)  # one px of the smaller copy
    for box in boxes:  # no piece of a face counts as one
        distances = [np.abs(box - (np.array([x, y, x + side, y + side]) - 0.5)).max() for x, y, side in FACES]
        assert min(distances) <= 3


def test_an_ordinary_photo_is_searched_at_once() -> None:
    calls: list[tuple[int, ...]] = []

    def search(picture: np.ndarray, smallest: float) -> Found:
        calls.append((*picture.shape, smallest))
        return find_squares(picture, smallest)

    boxes, _, _ = search_pieces(picture_of(FACES), 25, search)
    assert calls == [(620, 1210, 3, 25)]
    assert len(boxes) == 4


@pytest.mark.parametrize("size", [(300, 200), (121, 33), (799, 599), (800, 600)])
def test_shrinking_in_bands_is_pillows_own(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
    bands = [slice(top, min(top + 7, size[1])) for top in range(0, size[1], 7)]
    monkeypatch.setattr(tiles, "row_bands", lambda shape: iter(bands))
    # the places of the weights are rounded once more
    assert np.abs(shrink(photo, size).astype(int) - expected).max() <= 1
