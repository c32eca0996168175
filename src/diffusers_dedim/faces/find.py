"""Choose the faces of a photo that can be protected, and say which cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.faces.types import Face

MIN_FACE_SIZE = 40  # pixels; a smaller face has too little of the structure that DeDiM changes


TOO_SMALL = f"under {MIN_FACE_SIZE} px"  # the reason, see `Face`

SmallFaces = Literal["blur", "pixelate", "skip", "error"]
SMALL_FACES: tuple[str, ...] = get_args(SmallFaces)

FaceDetection = Callable[[NDArray[np.uint8]], list[Face]]
FaceChoice = Callable[[Face], bool]


def choose_faces(
    found: Sequence[Face],
    index: int,
    small_faces: SmallFaces = "error",
    select_faces: FaceChoice | None = None,
) -> tuple[list[Face], list[Face]]:
    """Which of a photo's faces are changed, and which are too small for that.

    Args:
        found: what the detector found.
        index: number of the photo, for the messages.
        small_faces: what to do with a face under `MIN_FACE_SIZE` photo px: "error", "skip" (leave it as it is), or
            "blur" or "pixelate" it.
        select_faces: says of each face whether it is to be protected; None for all of them.

    Returns:
        The faces to change and the chosen ones that are too small, at least one face in all.

    Raises:
        NoFaceError: there is no face, or none was chosen.
        FaceTooSmallError: a chosen face is too small ("error"), or all are ("skip").

    Example:
        >>> choose_faces([], 0)
        Traceback (most recent call last):
        diffusers_dedim.errors.NoFaceError: image 0: no face was found, so nothing was protected.
    """
    if not found:
        raise NoFaceError(f"image {index}: no face was found, so nothing was protected.")
    chosen = [face for face in found if select_faces is None or select_faces(face)]
    if not chosen:
        raise NoFaceError(
            f"image {index}: select_faces chose none of the {len(found)} faces found, so nothing was "
            "protected; let it return True for at least one."
        )
    small = [face for face in chosen if face.size < MIN_FACE_SIZE]
    large = [face for face in chosen if face.size >= MIN_FACE_SIZE]
    if small and (small_faces == "error" or (small_faces == "skip" and not large)):
        raise FaceTooSmallError(
            f"image {index}: {len(small)} of {len(chosen)} faces are smaller than {MIN_FACE_SIZE} px (the "
            f"smallest {min(face.size for face in small):.0f} px) and cannot be protected; use a larger "
            "photo, or small_faces='blur' to make them unrecognisable."
        )
    return large, small


_DONE_WITH_SMALL = {
    "blur": "are blurred (small_faces='blur')",
    "pixelate": "are pixelated (small_faces='pixelate')",
    "skip": "were left UNPROTECTED (small_faces='skip')",
}


def warn_small(
    small: int, chosen: int, index: int, stacklevel: int, small_faces: SmallFaces = "skip"
) -> None:
    """Say aloud what becomes of small faces of a photo; ``stacklevel`` counts from here, as in `warnings.warn`.

    Args:
        small: how many of the chosen faces are too small.
        chosen: how many faces were chosen.
        index: number of the photo.
        stacklevel: of the warning.
        small_faces: what becomes of them.
    """
    if small:
        warnings.warn(
            f"image {index}: {small} of {chosen} faces are smaller than {MIN_FACE_SIZE} px and "
            f"{_DONE_WITH_SMALL[small_faces]}.",
            stacklevel=stacklevel,
        )
