"""Photos of the demo: opened with their faces, drawn with boxes, shown in small, compared."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusers_dedim.errors import NoFaceError, UnreadablePhotoError
from diffusers_dedim.faces import Face
from diffusers_dedim.faces.find import MIN_FACE_SIZE, FaceDetection
from diffusers_dedim.images.files import Photo, decode_photo
from diffusers_dedim.images.modes import PixelArray

MAX_DEMO_PIXELS = 25_000_000
"""Largest photo the page takes, in pixels: a phone's 24 megapixels and a little more."""
SHOWN_SIDE = 1280
"""Longest side of the copies that the page shows, in pixels; the file to keep has the photo's own size."""
DIFFERENCE_GAIN = 8

_ACCENT, _LEFT_OUT, _DARK = "#2f9d94", "#f2efe8", "#101418"
_DASH = 9  # px of a dash in the shown copy


@dataclass(frozen=True, eq=False)  # eq=False: holds arrays
class OpenedPhoto:
    """A photo and the faces found in it, from left to right.

    Attributes:
        photo: the pixels, upright, with what is needed to write it back.
        faces: every face found, also those too small to be changed, which are blurred.
    """

    photo: Photo
    faces: tuple[Face, ...]

    @property
    def everybody(self) -> list[int]:
        """Indices of all faces."""
        return list(range(len(self.faces)))

    @property
    def small(self) -> list[int]:
        """Indices of the faces that are blurred where they are chosen."""
        return [index for index, face in enumerate(self.faces) if face.size < MIN_FACE_SIZE]


def open_photo(
    path: str | os.PathLike[str], detector: FaceDetection, max_pixels: int = MAX_DEMO_PIXELS
) -> OpenedPhoto:
    """Read a photo and find its faces.

    Args:
        path: the file; its name is neither kept nor told.
        detector: photo -> faces.
        max_pixels: largest width times height.

    Raises:
        UnreadablePhotoError: no photo, damaged, too large.
        NoFaceError: no face was found.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadablePhotoError(f"cannot be opened ({error.strerror})") from None
    photo = decode_photo(data, max_pixels)
    faces = tuple(detector(photo.pixels))
    if not faces:
        raise NoFaceError("no face was found")
    return OpenedPhoto(photo, faces)


def shown(pixels: PixelArray) -> Image.Image:
    """A copy for the page, no side longer than `SHOWN_SIDE`, without metadata."""
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return image


def mark_faces(opened: OpenedPhoto, chosen: Collection[int]) -> Image.Image:
    """The photo with a numbered box around each face: solid where chosen, dashed where left out.

    Args:
        opened: the photo and its faces.
        chosen: indices of the chosen faces.

    Returns:
        RGB image of the size of `shown`.
    """
    image = shown(opened.photo.pixels)
    scale = image.width / opened.photo.pixels.shape[1]
    draw = ImageDraw.Draw(image)
    line = max(3, round(max(image.size) / 190))
    font = ImageFont.load_default(size=max(14, round(max(image.size) / 28)))
    for index, face in enumerate(opened.faces):
        x0, y0, x1, y1 = (edge * scale for edge in face.box)
        corners = (max(x0, 0.0), max(y0, 0.0), min(x1, image.width - 1.0), min(y1, image.height - 1.0))
        if index in chosen:
            draw.rectangle(corners, outline=_DARK, width=line + 2)
            draw.rectangle(corners, outline=_ACCENT, width=line)
        else:
            _dashed(draw, corners, line)
        _tag(draw, corners, _tag_text(opened, index, chosen), font, index in chosen)
    return image


def face_at(opened: OpenedPhoto, x: float, y: float) -> int | None:
    """Index of the face whose box holds a point of the shown copy; of several the smallest box; or None."""
    scale = opened.photo.pixels.shape[1] / shown_size(opened.photo.pixels)[0]
    point = np.array([x, y]) * scale
    hits = [
        (face.size, index)
        for index, face in enumerate(opened.faces)
        if face.box[0] <= point[0] <= face.box[2] and face.box[1] <= point[1] <= face.box[3]
    ]
    return min(hits)[1] if hits else None


def shown_size(pixels: PixelArray) -> tuple[int, int]:
    """Width and height of `shown`, without making it: a draft of one row and column would round alike."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SHOWN_SIDE / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def difference(before: PixelArray, after: PixelArray) -> Image.Image:
    """What changed, `DIFFERENCE_GAIN` times enlarged around mid-grey, as the page shows it."""
    change = (after.astype(np.int16) - before.astype(np.int16)) * DIFFERENCE_GAIN + 128
    return shown(change.clip(0, 255).astype(np.uint8))


def largest(faces: Sequence[Face]) -> Face:
    """The face with the longest side."""
    return max(faces, key=lambda face: face.size)


def _tag_text(opened: OpenedPhoto, index: int, chosen: Collection[int]) -> str:
    if index not in chosen:
        return f"{index + 1} left out"
    return f"{index + 1} to be blurred" if index in opened.small else f"{index + 1}"


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], width: int) -> None:
    x0, y0, x1, y1 = corners
    edges = (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0)))
    for start, end in edges:
        a, b = np.array(start), np.array(end)
        count = max(1, round(float(np.linalg.norm(b - a)) / (2 * _DASH)))
        for step in range(count):
            piece = [tuple(a + (b - a) * part / count) for part in (step, step + 0.5)]
            draw.line(piece, fill=_DARK, width=width + 2)
            draw.line(piece, fill=_LEFT_OUT, width=width)


def _tag(
    draw: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    is_chosen: bool,
) -> None:
    """The number of the face, above its box where there is room, else inside, always within the picture."""
    width, height = (edge + 10 for edge in draw.textbbox((0, 0), text, font=font, anchor="lt")[2:])
    x0, y0, _, _ = corners
    x = min(x0, draw.im.size[0] - width - 1)
    y = y0 - height if y0 >= height else y0
    draw.rectangle((x, y, x + width, y + height), fill=_ACCENT if is_chosen else _LEFT_OUT)
    draw.text((x + 5, y + 5), text, fill="white" if is_chosen else _DARK, font=font, anchor="lt")
