"""Find faces whichever way up they are: photos without the tag that says how the camera was held, people lying down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.faces.types import Face, check_photo

# Of the copy that is searched on its sides: its scale, and its longer side at most, px. A face of 50 px in a photo of
# 500, or of a sixteenth of a large photo, is 20 px there, the smallest that MTCNN is asked for.
_COPY, _COPY_SIDE = 0.4, 320
_GAP, _GREY = 16, 128  # px and level between the copies: a face across two of them is none
# Two findings whose centres are nearer than this share of the larger one are one face: points that were put upright
# into a face on its side lie up to half a face beside it.
_SAME_FACE = 0.6
# Where no upright face is as sure as this, it may be another turn's.
_UPRIGHT = 0.99
# A finding on a turned photo must be this sure, and leave at most this share of the doubt that an upright one leaves.
_SURE, _LESS_DOUBT = 0.97, 0.2
# One whose box shares this part with that of a surer face that is turned otherwise must be as sure as this: hair and
# forehead of who stands upright may look like a face that hangs down.
_OVERLAP, _SURE_OVER_ANOTHER = 0.2, 0.999


def find_any_turn(photo: NDArray[np.uint8], detector: FaceDetection) -> list[Face]:
    """Find the faces of a photo at all four quarter turns, each by the turn that fits it best.

    Detectors are made for upright faces. On one that lies on its side MTCNN mostly finds nothing, and in one of five
    cases puts upright points into it, which is worse. It is surest where the face is upright, so the turns compete. A
    photo that shows no upright face for sure is searched at every turn; another one on small copies side by side, which
    takes about as long again, and in full at the turns at which those show a face.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB.
        detector: photo -> its faces.

    Returns:
        The faces from left to right, in photo px. The points of one that is not upright are turned with it, so that
        `align_face` brings it upright.

    Raises:
        TypeError: the photo is not a uint8 array.
        ValueError: the photo has another shape.

    Example:
        >>> from skimage.data import astronaut
        >>> from diffusers_dedim.faces import detect_faces
        >>> left, right = find_any_turn(np.rot90(astronaut()).copy(), detect_faces)[0].landmarks[:2]
        >>> bool(abs(right - left)[1] > abs(right - left)[0])  # one eye above the other
        True
    """
    check_photo(photo)
    faces = list(detector(photo))
    turns: tuple[int, ...] = (1, 2, 3)
    if any(face.confidence >= _UPRIGHT for face in faces):
        turns = _promising(photo, faces, detector)
    found = [face for turn in turns for face in _detect_turned(photo, turn, detector)]
    for face in sorted(found, key=lambda face: -face.confidence):
        if _beats(face, faces):
            rivals = [other for other in faces if _same(other, face)]
            beaten = {id(rival) for rival in rivals}
            faces = [*(other for other in faces if id(other) not in beaten), face]
    return sorted(faces, key=lambda face: face.box[0] + face.box[2])


def turn_back(points: NDArray[np.float64], turn: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Where points of a turned photo lie in the photo itself.

    Args:
        points: ``[K, 2]`` x then y, px of ``np.rot90(photo, turn)``.
        turn: quarter turns against the clock, 0..3.
        shape: of the photo that was turned, ``(H, W, ...)``.

    Returns:
        ``[K, 2]`` photo px.

    Example:
        >>> photo = np.arange(6).reshape(2, 3)
        >>> x, y = turn_back(np.array([[1.0, 0.0]]), 1, photo.shape)[0].astype(int)
        >>> bool(photo[y, x] == np.rot90(photo)[0, 1])
        True
    """
    for left in range(
        turn - 1, -1, -1
    ):  # the last turn was made on a photo that had been turned `left` times
        width = shape[1 - left % 2]
        points = np.stack([width - 1 - points[:, 1], points[:, 0]], axis=1)
    return points


def _detect_turned(photo: NDArray[np.uint8], turn: int, detector: FaceDetection) -> list[Face]:
    """Faces of the photo as they are found after so many quarter turns, in px of the photo as it is."""
    found = detector(np.ascontiguousarray(np.rot90(photo, turn)))
    return [_moved(face, turn, photo.shape) for face in found]


def _moved(face: Face, turn: int, shape: tuple[int, ...]) -> Face:
    x0, y0, x1, y1 = face.box
    corners = turn_back(np.array([[x0, y0], [x1, y1]]), turn, shape)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Face((left, top, right, bottom), turn_back(face.landmarks, turn, shape), face.confidence)


def _promising(photo: NDArray[np.uint8], faces: list[Face], detector: FaceDetection) -> tuple[int, ...]:
    """The turns at which a small copy shows a face that is not among these, or fits one of them better."""
    height, width = photo.shape[:2]
    scale = min(_COPY, _COPY_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    copy = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    ratio = np.array([width / size[0], height / size[1]])
    small = [_shrunk(face, ratio) for face in faces]
    copies = [np.rot90(copy, turn) for turn in (1, 2, 3)]
    ends = np.cumsum([turned.shape[1] + _GAP for turned in copies])
    sheet = np.full((max(size), int(ends[-1]), 3), _GREY, dtype=np.uint8)
    for turned, end in zip(copies, ends, strict=True):
        sheet[: turned.shape[0], end - _GAP - turned.shape[1] : end - _GAP] = turned
    turns = set()
    for found in detector(sheet):
        place = min(int(np.searchsorted(ends, found.landmarks[:, 0].mean())), 2)
        start = np.array([ends[place] - _GAP - copies[place].shape[1], 0.0])
        box = (np.array(found.box).reshape(2, 2) - start).ravel().tolist()
        face = _moved(Face((*box,), found.landmarks - start, found.confidence), place + 1, copy.shape)
        if _beats(face, small):
            turns.add(place + 1)
    return tuple(sorted(turns))


def _shrunk(face: Face, ratio: NDArray[np.float64]) -> Face:
    """The face in px of a copy; ``ratio``: photo px per px of it, across and down."""
    (left, top), (right, bottom) = (((np.array(face.box).reshape(2, 2) + 0.5) / ratio) - 0.5).tolist()
    return Face((left, top, right, bottom), (face.landmarks + 0.5) / ratio - 0.5, face.confidence)


def _same(one: Face, other: Face) -> bool:
    distance = float(np.linalg.norm(one.landmarks.mean(axis=0) - other.landmarks.mean(axis=0)))
    return distance < _SAME_FACE * max(one.size, other.size)


def _overlap(one: Face, other: Face) -> float:
    """What the boxes share, as a part of the smaller one's area."""
    boxes = np.array([one.box, other.box])
    across, down = (boxes[:, 2:].min(0) - boxes[:, :2].max(0)).clip(0)
    return float(across * down / (boxes[:, 2:] - boxes[:, :2]).prod(1).min())


def _turned_apart(one: Face, other: Face) -> bool:
    """Whether they are turned against one another by more than half a quarter turn."""
    down = [face.landmarks[3:].mean(axis=0) - face.landmarks[:2].mean(axis=0) for face in (one, other)]
    lengths = np.linalg.norm(down, axis=1)
    return bool(down[0] @ down[1] < 0.5**0.5 * lengths[0] * lengths[1])


def _beats(face: Face, others: list[Face]) -> bool:
    """Whether a finding on a turned photo is sure, and loses against none of the others."""
    return face.confidence >= _SURE and not any(_loses(face, other) for other in others)


def _loses(face: Face, other: Face) -> bool:
    """Whether the other is the same face and hardly less sure, or a surer one that the finding reaches into."""
    if _same(other, face):
        return 1 - face.confidence >= _LESS_DOUBT * (1 - other.confidence)
    unsure = face.confidence < min(other.confidence, _SURE_OVER_ANOTHER)
    return unsure and _overlap(other, face) > _OVERLAP and _turned_apart(other, face)
