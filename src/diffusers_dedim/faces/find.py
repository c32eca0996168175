"""Find the faces of a photo that can be protected, and say aloud which cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.faces.align import align_face
from diffusers_dedim.faces.types import AlignedFace, Face

MIN_FACE_SIZE = 40  # pixels; a smaller face has too little of the structure that DeDiM changes


def find_faces(
    detector: Callable[[NDArray[np.uint8]], list[Face]],
    photo: NDArray[np.uint8],
    index: int,
    small_faces: Literal["error", "skip"],
    stacklevel: int,
) -> list[AlignedFace]:
    """Detect and align the faces of a photo.

    Args:
        detector: photo -> faces from left to right, such as a `FaceDetector`.
        photo: ``[H, W, 3]`` uint8 RGB, upright.
        index: number of the photo, for the messages.
        small_faces: what to do with a face under `MIN_FACE_SIZE` photo px: "error", or "skip" with a warning.
        stacklevel: of that warning, counted from here as in `warnings.warn`.

    Raises:
        NoFaceError: there is no face. FaceTooSmallError: a face is too small ("error"), or all are.

    Example:
        >>> find_faces(lambda photo: [], np.zeros((64, 64, 3), np.uint8), 0, "error", 2)
        Traceback (most recent call last):
        diffusers_dedim.errors.NoFaceError: image 0: no face was found, so nothing was protected.
    """
    faces = detector(photo)
    if not faces:
        raise NoFaceError(f"image {index}: no face was found, so nothing was protected.")
    small = [face for face in faces if face.size < MIN_FACE_SIZE]
    large = [face for face in faces if face.size >= MIN_FACE_SIZE]
    if small and (small_faces == "error" or not large):
        raise FaceTooSmallError(
            f"image {index}: {len(small)} of {len(faces)} faces are smaller than {MIN_FACE_SIZE} px (the "
            f"smallest {min(face.size for face in small):.0f} px) and cannot be protected; use a larger "
            "photo, or small_faces='skip' to leave them as they are."
        )
    if small:
        warnings.warn(
            f"image {index}: {len(small)} of {len(faces)} faces are smaller than {MIN_FACE_SIZE} px and "
            "were left UNPROTECTED (small_faces='skip').",
            stacklevel=stacklevel,
        )
    return [align_face(photo, face) for face in large]
