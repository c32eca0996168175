"""Records that travel between the steps on faces: what was found, and what was aligned.

All coordinates are (x, y) with **pixel centres at whole numbers**: the middle of the top left pixel is
(0, 0). "Photo px" are pixels of the photo as given, "crop px" those of the 112 x 112 aligned crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NUM_POINTS = 5


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays has no single truth value
class Face:
    """One face found in a photo.

    Attributes:
        box: (x0, y0, x1, y1) in photo px; may reach beyond the photo where the face does.
        landmarks: ``[5, 2]`` float64, photo px: left eye, right eye, nose, left and right corner of the
            mouth, "left" as the viewer sees it when the face is upright; may lie outside the photo.
        confidence: the detector's own score in 0..1 (not a calibrated probability).
        reason: why the face cannot be changed, in a few words such as "lies on its side"; empty where it can. A face
            with a reason is not sampled, but covered or left.

    Raises:
        ValueError: the landmarks have another shape or are not finite, or the box is empty.

    Example:
        >>> points = np.array([[30, 40], [60, 40], [45, 60], [33, 75], [57, 75]], dtype=float)
        >>> Face((20.0, 10.0, 70.0, 90.0), points, 0.99).size
        80.0
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    confidence: float
    reason: str = ""

    def __post_init__(self) -> None:
        points = np.asarray(self.landmarks, dtype=np.float64)
        if points.shape != (NUM_POINTS, 2) or not np.isfinite(points).all():
            raise ValueError(
                f"landmarks: expected {NUM_POINTS} finite points of shape [{NUM_POINTS}, 2] in photo px, "
                f"got shape {list(points.shape)}{'' if np.isfinite(points).all() else ' with nan or inf'}; "
                "give eyes, nose and mouth corners as detect_faces does."
            )
        box = np.asarray(self.box, dtype=np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(
                f"box: expected (x0, y0, x1, y1) in photo px with x1 > x0 and y1 > y0, got {self.box}; "
                "check the order of the four numbers (not width and height)."
            )
        object.__setattr__(self, "landmarks", points)

    @property
    def size(self) -> float:
        """Longer side of the box, photo px."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face brought to the ArcFace template.

    Attributes:
        face: where it came from.
        crop: ``[3, 112, 112]`` float32 RGB in [-1, 1].
        to_crop: ``[2, 3]`` float64 similarity transform, photo px -> crop px.
    """

    face: Face
    crop: Tensor
    to_crop: NDArray[np.float64]


def check_photo(photo: NDArray[np.uint8]) -> None:
    """Refuse anything but a non-empty uint8 ``[H, W, 3]`` array.

    Raises:
        TypeError: not a numpy array, or not uint8.
        ValueError: another shape.
    """
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8:
        got = photo.dtype if isinstance(photo, np.ndarray) else type(photo).__name__
        raise TypeError(
            f"photo: expected a numpy array of dtype uint8, got {got}; "
            'convert with np.asarray(image.convert("RGB")).'
        )
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise ValueError(
            f"photo: expected shape [H, W, 3] (RGB), got {list(photo.shape)}; "
            'convert with np.asarray(image.convert("RGB")).'
        )
