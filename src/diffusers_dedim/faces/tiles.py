"""Search a large photo piece by piece: what the detector's networks hold in memory grows with what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim.images.modes import row_bands

Found = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Boxes ``[N, 4]``, points ``[N, 5, 2]`` and scores ``[N]``, px of the picture that was searched."""
Search = Callable[[NDArray[np.uint8], float], Found]
"""(picture ``[H, W, 3]``, smallest face, px) -> what was found."""

MOST_AT_ONCE = 8_000_000
"""Pixels that are searched at once; MTCNN takes some 60 bytes for each."""
_TILE = 2400  # px
# A face that the smaller copy shows at this many px is surely found there, and one of half as many looked for.
_SURE = 32
_REACH = 4  # rows beside a band that its shrinking may ask for


def search_pieces(picture: NDArray[np.uint8], smallest: float, search: Search) -> Found:
    """Find large faces in a smaller copy of a picture, and small ones in tiles that overlap.

    A picture of up to `MOST_AT_ONCE` pixels is searched as it is. A face may be found twice.

    Args:
        picture: ``[H, W, 3]`` uint8.
        smallest: smallest face to look for, px.
        search: is called with pictures of up to that size.

    Example:
        >>> def nothing(picture, smallest):
        ...     print(picture.shape, smallest)
        ...     return np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)
        >>> len(search_pieces(np.zeros((100, 200, 3), np.uint8), 20, nothing)[0])
        (100, 200, 3) 20
        0
    """
    height, width = picture.shape[:2]
    if height * width <= MOST_AT_ONCE:
        return search(picture, smallest)
    scale = math.sqrt(MOST_AT_ONCE / (height * width))
    copy = shrink(picture, (int(width * scale), int(height * scale)))
    ratio = np.array([width / copy.shape[1], height / copy.shape[0]])
    boxes, points, scores = search(copy, max(_SURE / 2, smallest * scale))
    parts = [(_enlarge(boxes.reshape(-1, 2, 2), ratio).reshape(-1, 4), _enlarge(points, ratio), scores)]
    sure = math.ceil(_SURE / scale)  # px of the picture, from which the copy suffices
    for x, y, tile in _tiles(picture, overlap=2 * sure):
        boxes, points, scores = search(tile, smallest)
        kept = _is_whole(boxes, tile, (x, y), (width, height)) & (_sizes(boxes) < 1.5 * sure)
        parts.append((boxes[kept] + [x, y, x, y], points[kept] + [x, y], scores[kept]))
    boxes, points, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
    return boxes, points, scores


def shrink(photo: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pillow's bilinear resize in bands of rows, so that a large photo is not held twice.

    Args:
        photo: ``[H, W, 3]`` uint8.
        size: width and height of the result, not larger than the photo.

    Example:
        >>> shrink(np.zeros((40, 60, 3), np.uint8), (30, 20)).shape
        (20, 30, 3)
    """
    width, height = size
    step = photo.shape[0] / height  # rows of the photo in one of the result
    result = np.empty((height, width, 3), np.uint8)
    for rows in row_bands((height, round(photo.shape[1] * step))):
        low, high = rows.start * step, rows.stop * step
        reach = math.ceil(_REACH * step)
        top, bottom = max(0, int(low) - reach), min(photo.shape[0], math.ceil(high) + reach)
        band = Image.fromarray(photo[top:bottom])
        box = (0, low - top, photo.shape[1], min(high - top, bottom - top))
        shrunk = band.resize((width, rows.stop - rows.start), Image.Resampling.BILINEAR, box)
        result[rows] = np.asarray(shrunk)
    return result


def _enlarge(points: NDArray[np.float64], ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """From px of a smaller copy; half a pixel keeps pixel centres on pixel centres."""
    enlarged: NDArray[np.float64] = (points + 0.5) * ratio - 0.5
    return enlarged


def _tiles(picture: NDArray[np.uint8], overlap: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Place and pixels of tiles; each pixel has at least half the overlap around it in one of them."""
    height, width = picture.shape[:2]
    for y in _starts(height, overlap):
        for x in _starts(width, overlap):
            yield x, y, picture[y : y + _TILE, x : x + _TILE]


def _starts(length: int, overlap: int) -> list[int]:
    count = max(1, math.ceil((length - overlap) / (_TILE - overlap)))
    last = max(0, length - _TILE)
    return [round(last * number / max(1, count - 1)) for number in range(count)]


def _sizes(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sizes: NDArray[np.float64] = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return sizes


def _is_whole(
    boxes: NDArray[np.float64], tile: NDArray[np.uint8], place: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether a box stays clear of the tile's edges that are none of the picture's: another tile has it whole."""
    clear = np.ones(len(boxes), bool)
    for axis in (0, 1):
        length, start, whole = tile.shape[1 - axis], place[axis], size[axis]
        if start > 0:
            clear &= boxes[:, axis] > 1
        if start + length < whole:
            clear &= boxes[:, axis + 2] < length - 2
    return clear
