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


FaceDetection = Callable[[NDArray[np.uint8]], list[Face]]
FaceChoice = Callable[[Face], bool]


def find_faces(
    detector: FaceDetection,
    photo: NDArray[np.uint8],
    index: int,
    small_faces: Literal["error", "skip"],
    stacklevel: int,
    select_faces: FaceChoice | None = None,
) -> list[AlignedFace]:
    """Detect, choose and align the faces of a photo.

    Args:
        detector: photo -> faces from left to right, such as a `FaceDetector`.
        photo: ``[H, W, 3]`` uint8 RGB, upright.
        index: number of the photo, for the messages.
        small_faces: what to do with a face under `MIN_FACE_SIZE` photo px: "error", or "skip" with a warning.
        stacklevel: of that warning, counted from here as in `warnings.warn`.
        select_faces: says of each face whether it is to be protected; None for all of them.

    Raises:
        NoFaceError: there is no face, or none was chosen.
        FaceTooSmallError: a chosen face is too small ("error"), or all are.

    Example:
        >>> find_faces(lambda photo: [], np.zeros((64, 64, 3), np.uint8), 0, "error", 2)
        Traceback (most recent call last):
        diffusers_dedim.errors.NoFaceError: image 0: no face was found, so nothing was protected.
    """
    faces = detector(photo)
    if not faces:
        raise NoFaceError(f"image {index}: no face was found, so nothing was protected.")
    chosen = [face for face in faces if select_faces is None or select_faces(face)]
    if not chosen:
        raise NoFaceError(
            f"image {index}: select_faces chose none of the {len(faces)} faces found, so nothing was "
            "protected; let it return True for at least one."
        )
    small = [face for face in chosen if face.size < MIN_FACE_SIZE]
    large = [face for face in chosen if face.size >= MIN_FACE_SIZE]
    if small and (small_faces == "error" or not large):
        raise FaceTooSmallError(
            f"image {index}: {len(small)} of {len(chosen)} faces are smaller than {MIN_FACE_SIZE} px (the "
            f"smallest {min(face.size for face in small):.0f} px) and cannot be protected; use a larger "
            "photo, or small_faces='skip' to leave them as they are."
        )
    if small:
        warnings.warn(
            f"image {index}: {len(small)} of {len(chosen)} faces are smaller than {MIN_FACE_SIZE} px and "
            "were left UNPROTECTED (small_faces='skip').",
            stacklevel=stacklevel,
        )
    return [align_face(photo, face) for face in large]
