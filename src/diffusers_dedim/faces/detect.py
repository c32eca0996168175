"""Find faces in a photo: the one place that talks to MTCNN (Zhang et al. 2016, facenet-pytorch)."""

from __future__ import annotations

import copy
import threading
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from diffusers_dedim.faces.find import MIN_FACE_SIZE
from diffusers_dedim.faces.tiles import Search, search_pieces, shrink
from diffusers_dedim.faces.turned import find_any_turn
from diffusers_dedim.faces.types import Face, check_photo

if TYPE_CHECKING:
    from facenet_pytorch import MTCNN


# MTCNN's 12-px window sees little in less than this many px; below it, it mostly invents faces.
SMALLEST_SEARCHED = 16.0
# Share of the longer side added as a border. MTCNN squeezes a window that leaves the picture, so the
# points of a face cut by the edge come out up to a third of a face away; with a border they do not.
BORDER = 1 / 8
# No face is larger than the shorter side: beyond four times that, a longer side adds no border, only work.
BORDER_ASPECT = 4
BORDER_GREY = 128  # zero after MTCNN's own normalisation, as its training padded
# Two findings whose centres are nearer than this share of the larger one's size are one face.
SAME_FACE = 0.3
# Not the detector's own: a lock can be neither copied nor pickled. Building takes a moment, once.
_BUILDING = threading.Lock()


class FaceDetector:
    """Detect faces and their five points with MTCNN (weights in the facenet-pytorch wheel, no download).

    A photo whose longer side is above ``max_side`` is searched on a smaller copy and the result mapped back. The
    copy is never so small that faces of `MIN_FACE_SIZE` (40 px), which can be protected, are not looked for: it
    has at least 16 / 40 of the photo's side. The smallest face looked for is ``max(min_face_size, 16 * longer
    side / side of the copy)`` photo px: 20 px up to 2,000 px, 40 px from 4,000 px on. Raise ``max_side`` to find
    smaller ones in large photos; time grows with the copy's area. Faces a little smaller than the limit may be
    reported too, never dropped.

    Args:
        min_face_size: smallest face to look for, photo px.
        device: torch device the networks run on.
        min_confidence: findings below this MTCNN score (0..1) are left out. Lower it to take in more
            faces that are cut, covered or turned, at the price of findings that are no face.
        max_side: longer side of the copy that is searched, px; larger for photos above 4,000 px.
        any_turn: find faces that lie on their side or stand on their head too (`find_any_turn`).
        search: looks at a picture in place of MTCNN, such as `CenterFaceSearch`: (picture, smallest face in px) ->
            boxes, five points and scores. The copy, its border and the turns are the same.

    Several threads may call it at the same time. Inside `torch.autocast` it finds what it finds without.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> detector = FaceDetector()
        >>> detector(np.zeros((64, 64, 3), dtype=np.uint8))
        []
    """

    def __init__(
        self,
        min_face_size: float = 20,
        device: str | torch.device = "cpu",
        *,
        min_confidence: float = 0.9,
        max_side: int = 1600,
        any_turn: bool = False,
        search: Search | None = None,
    ) -> None:
        if not min_face_size >= SMALLEST_SEARCHED:
            raise ValueError(
                f"min_face_size: expected at least {SMALLEST_SEARCHED:g} px, got {min_face_size}; "
                "MTCNN finds nothing reliable below."
            )
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence: expected a score in 0..1, got {min_confidence}.")
        if max_side < 256:
            raise ValueError(f"max_side: expected at least 256 px, got {max_side}.")
        self.min_face_size: float = float(min_face_size)
        self.min_confidence: float = float(min_confidence)
        self.max_side: int = int(max_side)
        self.any_turn: bool = bool(any_turn)
        self.search: Search | None = search
        self.device: torch.device = torch.device(device)
        self._mtcnn: MTCNN | None = None

    def to(self, device: str | torch.device) -> FaceDetector:
        """Move to a torch device and return the detector itself."""
        self.device = torch.device(device)
        if self._mtcnn is not None:
            self._mtcnn.to(self.device).device = self.device
        return self

    def __call__(self, photo: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of a photo.

        Args:
            photo: ``[H, W, 3]`` uint8 RGB, upright unless ``any_turn``.

        Returns:
            The faces from left to right, coordinates in photo px (pixel centres at whole numbers);
            empty if there is none.

        Raises:
            TypeError: the photo is not a uint8 array.
            ValueError: the photo has another shape.
        """
        check_photo(photo)
        return find_any_turn(photo, self._find_upright) if self.any_turn else self._find_upright(photo)

    def _find_upright(self, photo: NDArray[np.uint8]) -> list[Face]:
        height, width = photo.shape[:2]
        if min(height, width) < self.min_face_size:
            return []
        scale = min(1.0, max(self.max_side / max(height, width), SMALLEST_SEARCHED / MIN_FACE_SIZE))
        searched = photo
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            searched = shrink(photo, size)
        sides = searched.shape[:2]
        border = int(BORDER * min(max(sides), BORDER_ASPECT * min(sides)))
        bordered = np.pad(searched, ((border, border), (border, border), (0, 0)), constant_values=BORDER_GREY)
        smallest = max(SMALLEST_SEARCHED, self.min_face_size * scale)
        boxes, points, scores = search_pieces(bordered, smallest, self.search or self._search)
        # x and y apart: rounding the copy's size makes the two scales differ by a hair
        ratio = np.array([width / searched.shape[1], height / searched.shape[0]])
        points = _to_photo(points, border, ratio)
        boxes = _to_photo(boxes.reshape(-1, 2, 2), border, ratio).reshape(-1, 4)
        faces = [
            Face((float(b[0]), float(b[1]), float(b[2]), float(b[3])), p, float(s))
            for b, p, s in zip(boxes, points, scores, strict=True)
            if s >= self.min_confidence and b[2] > b[0] and b[3] > b[1]
        ]
        inside = [face for face in faces if _centre_inside(face, width, height)]
        return sorted(_without_duplicates(inside), key=lambda face: face.box[0] + face.box[2])

    def _search(
        self, picture: NDArray[np.uint8], min_size: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Run MTCNN; boxes [N, 4], points [N, 5, 2] and scores [N] whatever form it answers in."""
        mtcnn = copy.copy(self._networks())  # another thread may be searching for another size
        mtcnn.min_face_size = min_size
        # its own code turns what its networks say into numpy arrays, which know no bfloat16
        with torch.autocast(self.device.type, enabled=False):
            boxes, scores, points = mtcnn.detect(picture, landmarks=True)
        if boxes is None:
            return np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)
        # object arrays of floats: astype does what asarray(dtype=...) would, rows of equal length checked
        return (
            np.asarray(boxes).astype(np.float64).reshape(-1, 4),
            np.asarray(points).astype(np.float64).reshape(-1, 5, 2),
            np.asarray(scores).astype(np.float64).reshape(-1),
        )

    def _networks(self) -> MTCNN:
        """Build MTCNN on first use (importing facenet-pytorch takes seconds)."""
        with _BUILDING:
            if self._mtcnn is None:
                from facenet_pytorch import MTCNN

                # MTCNN draws random weights before it loads its own: keep the user's seed untouched.
                with torch.random.fork_rng(devices=[]):
                    mtcnn = MTCNN(keep_all=True, device=self.device)
                self._mtcnn = mtcnn.eval().requires_grad_(False)
        return self._mtcnn


def detect_faces(photo: NDArray[np.uint8]) -> list[Face]:
    """Find the faces of a photo with a shared `FaceDetector` of default settings, on the CPU.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB, upright.

    Returns:
        The faces from left to right; empty if there is none.

    Raises:
        TypeError: the photo is not a uint8 array.
        ValueError: the photo has another shape.

    Example:
        >>> from skimage.data import astronaut
        >>> [round(face.size) for face in detect_faces(astronaut())]
        [110]
    """
    return _shared_detector()(photo)


@cache
def _shared_detector() -> FaceDetector:
    return FaceDetector()


def _to_photo(points: NDArray[np.float64], border: int, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map (x, y) of the bordered copy to photo px; half a pixel keeps pixel centres on pixel centres."""
    mapped: NDArray[np.float64] = (points - border + 0.5) * ratio - 0.5
    return mapped


def _centre_inside(face: Face, width: int, height: int) -> bool:
    """Tell whether the middle of the face is in the photo, not in the border that was added."""
    x, y = face.landmarks.mean(axis=0)
    return bool(-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5)


def _without_duplicates(faces: list[Face]) -> list[Face]:
    """Keep the surest finding of each face; MTCNN's own suppression only compares boxes."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: (-f.confidence, -f.size)):
        centre = face.landmarks.mean(axis=0)
        distances = [float(np.linalg.norm(centre - other.landmarks.mean(axis=0))) for other in kept]
        limits = [SAME_FACE * max(face.size, other.size) for other in kept]
        if all(distance >= limit for distance, limit in zip(distances, limits, strict=True)):
            kept.append(face)
    return kept
