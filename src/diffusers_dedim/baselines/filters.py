"""Blurring and pixelating the face, as photo editors do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from diffusers_dedim.faces import Face


def blur_face(photo: NDArray[np.uint8], face: Face, strength: float = 0.1) -> NDArray[np.uint8]:
    """Blur the face's box.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB; not modified.
        face: its box is blurred, the rest keeps its bits.
        strength: standard deviation as a share of the box's longer side, so that large and small faces lose
            the same detail.

    Returns:
        A new photo.

    Raises:
        ValueError: the strength is not above 0 and at most 1.

    Example:
        >>> from diffusers_dedim.faces import ARCFACE_TEMPLATE
        >>> face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE, 1.0)
        >>> blur_face(np.full((200, 200, 3), 7, np.uint8), face)[50, 50].tolist()
        [7, 7, 7]
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength: expected a share above 0 and up to 1, got {strength}.")
    x0, y0, x1, y1 = box_region(photo, face)
    result: NDArray[np.uint8] = photo.copy()
    sigma = strength * face.size
    margin = int(np.ceil(3 * sigma))  # so that the surroundings flow in at the edge of the box
    height, width = photo.shape[:2]
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    around = photo[top : min(height, y1 + margin), left : min(width, x1 + margin)]
    blurred = np.asarray(Image.fromarray(around).filter(ImageFilter.GaussianBlur(sigma)))
    result[y0:y1, x0:x1] = blurred[y0 - top : y1 - top, x0 - left : x1 - left]
    return result


def pixelate_face(photo: NDArray[np.uint8], face: Face, blocks: int = 12) -> NDArray[np.uint8]:
    """Replace the face's box by squares of one colour, the mean of what they cover.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB; not modified.
        face: its box is pixelated, the rest keeps its bits.
        blocks: squares along the longer side of the box.

    Returns:
        A new photo.

    Raises:
        ValueError: there is less than one block.
    """
    if blocks < 1:
        raise ValueError(f"blocks: expected at least 1, got {blocks}.")
    x0, y0, x1, y1 = box_region(photo, face)
    result: NDArray[np.uint8] = photo.copy()
    width, height = x1 - x0, y1 - y0
    side = max(width, height) / blocks
    coarse = (max(1, round(width / side)), max(1, round(height / side)))
    small = Image.fromarray(photo[y0:y1, x0:x1]).resize(coarse, Image.Resampling.BOX)
    result[y0:y1, x0:x1] = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
    return result


def box_region(photo: NDArray[np.uint8], face: Face) -> tuple[int, int, int, int]:
    """Pixels x0 <= x < x1, y0 <= y < y1 of the face's box inside the photo.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        face: found in it; its box, in photo px, may reach beyond the photo.

    Returns:
        x0, y0, x1, y1 in whole photo px, 0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H; no pixel that the box touches is
        left out.

    Raises:
        ValueError: the box lies outside the photo.

    Example:
        >>> face = Face((-3.0, 1.5, 4.2, 8.0), np.zeros((5, 2)), 1.0)
        >>> box_region(np.zeros((6, 10, 3), np.uint8), face)
        (0, 1, 6, 6)
    """
    height, width = photo.shape[:2]
    x0, y0 = max(0, int(np.floor(face.box[0]))), max(0, int(np.floor(face.box[1])))
    x1, y1 = min(width, int(np.ceil(face.box[2])) + 1), min(height, int(np.ceil(face.box[3])) + 1)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"face: expected a box inside the photo of {width}x{height} px, got "
            f"{tuple(round(value, 1) for value in face.box)}; was it found in another photo?"
        )
    return x0, y0, x1, y1
