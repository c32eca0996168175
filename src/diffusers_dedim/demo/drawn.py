"""A face in a box that somebody drew by hand, for a face that was not found in the whole photo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face
from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.images.modes import PixelArray

Box = tuple[float, float, float, float]

REASON = "no eyes, nose and mouth were found in the box"
SMALLEST_BOX = 8.0  # photo px; what is smaller is a click that slipped
_MARGIN = 0.6  # shares of the box's longer side that are looked at around it
_LOOKED_AT = 160  # px of the longer side of the box in the copy that is searched: where MTCNN sees best
_SIZES = (0.4, 1.7)  # of what is found, in longer sides of the box: people draw more or less tight


def face_in_box(photo: PixelArray, box: Box, detector: FaceDetection) -> Face:
    """The face in a box that a person drew around it.

    The box and its surroundings are searched by themselves, enlarged or reduced to a size at which a detector sees
    best. What is found in it is taken although the detector is less sure of it than it must be elsewhere: a person has
    seen a face there.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        box: x0, y0, x1, y1 in photo px, the corners in any order; cut to the photo.
        detector: photo -> faces, also those it is unsure of.

    Returns:
        The face. Where none was found it has the box, a ``reason`` and the points of a face in its middle: the pipeline
        covers it and does not change it.

    Raises:
        ValueError: less than 8 px of the box lie in the photo.

    Example:
        >>> face_in_box(np.zeros((90, 90, 3), np.uint8), (50, 60, 10, 20), lambda photo: []).reason
        'no eyes, nose and mouth were found in the box'
    """
    x0, y0, x1, y1 = box = _inside(photo, box)
    side, centre = max(x1 - x0, y1 - y0), np.array([x0 + x1, y0 + y1]) / 2
    region, to_photo, shift = _cut_out(photo, box, side)
    found = [_moved(face, to_photo, shift) for face in detector(region)]
    inside = [face for face in found if _fits(face, box, side)]
    if not inside:
        return Face(box, (ARCFACE_TEMPLATE - 56) / 112 * side + centre, 1.0, REASON)
    return min(inside, key=lambda face: float(np.linalg.norm(face.landmarks.mean(0) - centre)))


def _inside(photo: PixelArray, box: Box) -> Box:
    height, width = photo.shape[:2]
    (x0, x1), (y0, y1) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)
    if not (x1 - x0 >= SMALLEST_BOX and y1 - y0 >= SMALLEST_BOX):  # also nan
        raise ValueError(
            f"The box is too small: draw it around the whole face, at least {SMALLEST_BOX:g} pixels wide and high."
        )
    return x0, y0, x1, y1


def _cut_out(
    photo: PixelArray, box: Box, side: float
) -> tuple[PixelArray, NDArray[np.float64], tuple[int, int]]:
    """The box with its surroundings as it is searched; photo px per px of it, across and down; and its corner."""
    height, width = photo.shape[:2]
    left, top = (max(0, int(edge - _MARGIN * side)) for edge in box[:2])
    right, bottom = (
        min(width, int(box[2] + _MARGIN * side) + 1),
        min(height, int(box[3] + _MARGIN * side) + 1),
    )
    piece = Image.fromarray(photo[top:bottom, left:right])
    size = [max(1, round(edge * _LOOKED_AT / side)) for edge in piece.size]
    searched = np.asarray(piece.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
    ratio = np.array([piece.width / searched.shape[1], piece.height / searched.shape[0]])
    return searched, ratio, (left, top)


def _moved(face: Face, ratio: NDArray[np.float64], corner: tuple[int, int]) -> Face:
    """A face of the piece in px of the photo; half a pixel keeps pixel centres on pixel centres."""
    x0, y0, x1, y1 = ((np.array(face.box).reshape(2, 2) + 0.5) * ratio - 0.5 + corner).ravel().tolist()
    return replace(face, box=(x0, y0, x1, y1), landmarks=(face.landmarks + 0.5) * ratio - 0.5 + corner)


def _fits(face: Face, box: Box, side: float) -> bool:
    """Whether it lies in the box and is about as large."""
    x, y = face.landmarks.mean(0)
    return box[0] <= x <= box[2] and box[1] <= y <= box[3] and _SIZES[0] <= face.size / side <= _SIZES[1]
