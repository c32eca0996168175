"""The faces of a photo that are to be protected: found, chosen, large enough, aligned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.faces import AlignedFace, Face, align_face

MIN_FACE_SIZE = 40
"""Photo px; a smaller face has too little of the structure that DeDiM changes."""

FaceDetection = Callable[[NDArray[np.uint8]], list[Face]]
FaceChoice = Callable[[Face], bool]
_USERS_LINE = 5  # warn_small, find_faces, __call__, its no_grad wrapper, the line that called the pipeline


def find_faces(
    photo: NDArray[np.uint8],
    index: int,
    detector: FaceDetection,
    *,
    small_faces: Literal["error", "skip"] = "error",
    select_faces: FaceChoice | None = None,
) -> list[AlignedFace]:
    """Detect, choose and align; say aloud what cannot be protected.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        index: the photo's place in the call, for messages.
        detector: photo -> faces.
        small_faces: whether a chosen face under `MIN_FACE_SIZE` is an "error", or left as it is ("skip").
        select_faces: says of each face whether it is to be protected; None for all of them.

    Raises:
        NoFaceError: there is no face, or none was chosen.
        FaceTooSmallError: a chosen face is too small, or (with "skip") all of them are.

    Example:
        >>> from diffusers_dedim.faces import ARCFACE_TEMPLATE
        >>> face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE, 1.0)
        >>> len(find_faces(np.zeros((112, 112, 3), np.uint8), 0, lambda photo: [face]))
        1
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
        _warn_small(index, len(small), len(chosen))
    return [align_face(photo, face) for face in large]


def _warn_small(index: int, small: int, chosen: int) -> None:
    warnings.warn(
        f"image {index}: {small} of {chosen} faces are smaller than {MIN_FACE_SIZE} px and "
        "were left UNPROTECTED (small_faces='skip').",
        stacklevel=_USERS_LINE,
    )
