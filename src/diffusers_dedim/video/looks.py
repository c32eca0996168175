"""Where a video goes on with another picture, and where in a picture a detector must look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim.faces import Face, FaceDetection
from diffusers_dedim.video.reading import Frame

_CUT, _CUT_RATIO = 20.0, 4.0  # levels of 255 between two frames, and times the usual, that make a cut
_USUAL_SHARE = 0.1
_THUMBNAIL = 32
_BLOCK = 16  # px; the noise of a camera is a sixteenth in its mean
_CHANGED = 3.0  # levels of 255 in a colour's mean, from which on a block may show somebody new
_FULL_EVERY = 5  # looks, after which the whole picture is searched all the same
_SMALLEST = 32.0  # px: only a look at the whole picture finds somebody new who is smaller than about this
_SEARCHED = 20.0  # px that such a face is shrunk to, and the smallest that a detector is asked for
_ROOM = 0.6  # of the smallest known face, which a shrunk picture must still show
_WORTH = 250 * 200  # px; in less there is little to save
_MOST = 0.6  # share of the picture, from which on it is searched as a whole


class Cuts:
    """Tells where a video goes on with another picture."""

    def __init__(self) -> None:
        self._last: NDArray[np.float32] | None = None
        self._usual = 0.0

    def between(self, frame: Frame) -> bool:
        """Whether there is a cut between the last frame and this one."""
        rows, columns = (np.linspace(0, side - 1, _THUMBNAIL).astype(int) for side in frame.pixels.shape[:2])
        small = frame.pixels[rows][:, columns].mean(2, dtype=np.float32)
        last, self._last = self._last, small
        if last is None:
            return False
        difference = float(np.abs(small - last).mean())
        cut = difference > max(_CUT, _CUT_RATIO * self._usual)
        if not cut:
            self._usual += _USUAL_SHARE * (difference - self._usual)
        return cut


class Looks:
    """A detector that spares what cannot have changed.

    Somebody new changes the picture. So a look need only search around the faces that are known, and where the picture
    is not what it was when that part of it was last searched; and as finely as faces of 32 px, or smaller known ones,
    need. Every fifth look searches all of it, as it is.

    Args:
        detector: photo -> its faces.

    Example:
        >>> looks = Looks(lambda photo: print(photo.shape) or [])
        >>> picture = np.zeros((480, 640, 3), np.uint8)
        >>> looks(picture), looks(picture, [Face((300, 200, 340, 250), np.array([[310.0, 220]] * 4 + [[330, 220]]), 1)])
        (480, 640, 3)
        (107, 107, 3)
        ([], [])
    """

    def __init__(self, detector: FaceDetection) -> None:
        self.detector: FaceDetection = detector
        self._seen: NDArray[np.float32] | None = None  # means of the blocks when they were last searched
        self._since = 0

    def __call__(self, pixels: NDArray[np.uint8], known: Sequence[Face] | None = None) -> list[Face]:
        """Find the faces of the next picture.

        Args:
            pixels: uint8 RGB ``[H, W, 3]``.
            known: where faces are expected; None searches the whole picture, as after a cut.
        """
        blocks = _block_means(pixels)
        region = None if known is None else self._region(blocks, known, pixels.shape)
        if region is None or self._seen is None:
            self._seen, self._since = blocks, 0
            return self.detector(pixels)
        self._since += 1
        x0, y0, x1, y1 = region
        part = slice(y0 // _BLOCK, -(-y1 // _BLOCK)), slice(x0 // _BLOCK, -(-x1 // _BLOCK))
        self._seen[part] = blocks[part]
        if x0 >= x1 or y0 >= y1:
            return []
        least = min((_SMALLEST, *(_ROOM * face.size for face in known or ())))
        shrunk, ratio = _shrunk(pixels[y0:y1, x0:x1], min(1.0, _SEARCHED / least))
        return [_moved(face, x0, y0, ratio) for face in self.detector(shrunk)]

    def _region(
        self, blocks: NDArray[np.float32], known: Sequence[Face], shape: tuple[int, ...]
    ) -> tuple[int, int, int, int] | None:
        """What must be searched, x0, y0, x1, y1 px of whole blocks; None for all of it."""
        height, width = shape[:2]
        if self._seen is None or self._seen.shape != blocks.shape or self._since >= _FULL_EVERY - 1:
            return None
        if height * width < _WORTH:
            return None
        rows, columns = np.nonzero(np.abs(blocks - self._seen).max(2) > _CHANGED)
        boxes = [_around(face) for face in known]
        if len(rows):  # a block more on each side: a face hardly changes the block that it only touches
            places = columns.min() - 1, rows.min() - 1, columns.max() + 2, rows.max() + 2
            boxes.append(tuple(float(_BLOCK * place) for place in places))
        if not boxes:
            return 0, 0, 0, 0
        low, high = np.array(boxes)[:, :2].min(0), np.array(boxes)[:, 2:].max(0)
        x0, y0 = (max(0, int(edge // _BLOCK) * _BLOCK) for edge in low)
        x1, y1 = (
            min(side, int(-(-edge // _BLOCK)) * _BLOCK)
            for edge, side in zip(high, (width, height), strict=True)
        )
        return (0, 0, width, height) if (x1 - x0) * (y1 - y0) > _MOST * width * height else (x0, y0, x1, y1)


def _around(face: Face) -> tuple[float, ...]:
    """The box of a face with its surroundings, in which the detector finds it as in the whole picture."""
    x0, y0, x1, y1 = face.box
    reach = max(x1 - x0, y1 - y0)
    return x0 - reach, y0 - reach, x1 + reach, y1 + reach


def _shrunk(pixels: NDArray[np.uint8], scale: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A part of a picture at a scale of at most 1, and px of the part for each px of the copy, x and y."""
    height, width = pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    copy = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)) if scale < 1 else pixels
    return np.ascontiguousarray(copy), np.array([width / size[0], height / size[1]])


def _moved(face: Face, x: int, y: int, ratio: NDArray[np.float64]) -> Face:
    """A face of the copy of a part, in px of the whole; half a pixel keeps centres on centres."""
    corners = (np.array(face.box).reshape(2, 2) + 0.5) * ratio - 0.5 + (x, y)
    (x0, y0), (x1, y1) = corners.tolist()
    return replace(
        face, box=(x0, y0, x1, y1), landmarks=(face.landmarks + 0.5) * ratio - 0.5 + np.array([x, y])
    )


def _block_means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean colour of each block, ``[h, w, 3]``; a narrower last row or column is its own."""
    height, width = pixels.shape[:2]
    down, across = np.arange(0, height, _BLOCK), np.arange(0, width, _BLOCK)
    sums = np.add.reduceat(np.add.reduceat(pixels, down, axis=0, dtype=np.uint32), across, axis=1)
    areas = np.diff([*down, height])[:, None, None] * np.diff([*across, width])[None, :, None]
    means: NDArray[np.float32] = (sums / areas).astype(np.float32)
    return means
